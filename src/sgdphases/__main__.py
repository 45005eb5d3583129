"""`python -m sgdphases`: the command line."""

import sys

from sgdphases.command import main

sys.exit(main())
