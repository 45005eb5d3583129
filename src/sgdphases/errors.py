"""The one exception whose message is meant for the user."""


class InputError(Exception):
    """A fault in what the user gave: a configuration, a data file, a folder.

    The message is a single line that says what is wrong, where, and what is allowed.
    Entry points print it and exit with a non-zero code, without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
