"""Every experiment that the atlas leaves out, at smoke scale."""

import json
from pathlib import Path

import pytest

from atlas import check_figures, check_scorecard, check_tables, make_atlas
from sgdphases.config import find_experiments

pytestmark = pytest.mark.slow


EXPERIMENTS = Path(__file__).parents[1] / "config/experiments"
NAMES = sorted(
    find_experiments(EXPERIMENTS, "all").keys() - find_experiments(EXPERIMENTS, "headline").keys()
)


@pytest.fixture(scope="module")
def smoke(make_workspace, tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("smoke") / "project")
    return make_atlas(workspace, f"experiments={json.dumps(NAMES)}")


def test_every_experiment_leaves_its_tables(smoke):
    check_tables(smoke, NAMES)


def test_figures_are_pictures_with_their_numbers(smoke):
    check_figures(smoke, NAMES)


def test_scorecard_lists_every_claim_and_computes_verdicts(smoke):
    check_scorecard(smoke)
