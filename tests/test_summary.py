"""What the record of a run says about the run as a whole."""

import numpy as np
import pandas as pd
import pytest

from sgdphases.summary import time_to_peak


def history_of(**accuracies):
    return pd.concat(
        pd.DataFrame({"run_id": name, "step": 10 * np.arange(len(a)), "test_accuracy": a})
        for name, a in accuracies.items()
    )


def test_time_to_peak():
    history = history_of(
        rising=[0.1, 0.5, 0.9],
        falling=[0.9, 0.5, 0.1],
        flat=[0.3, 0.3, 0.3],
        near=[0.1, 0.896, 0.9, 0.2],
        not_near=[0.1, 0.894, 0.9, 0.2],
        undefined=[np.nan] * 3,
    )
    times = time_to_peak(history.sample(frac=1, random_state=0))
    expected = {"rising": 20, "falling": 0, "flat": 0, "near": 10, "not_near": 20}
    assert times.to_dict() == expected


@pytest.mark.parametrize("num_test", [200, 1000, 2000])
def test_time_to_peak_counts_an_accuracy_exactly_the_margin_below(num_test):
    """Whatever the rounding of float32 accuracies."""
    margin = num_test // 200
    hits = np.arange(margin + 1, num_test + 1)
    shares = (np.arange(num_test + 1) / np.float32(num_test)).astype(np.float32)
    for distance, expected in ((margin, 0), (margin + 1, 10)):
        history = pd.DataFrame(
            {
                "run_id": np.tile(hits, 2),
                "step": np.repeat([0, 10], len(hits)),
                "test_accuracy": np.concatenate([shares[hits - distance], shares[hits]]).astype(
                    float
                ),
            }
        )
        assert (time_to_peak(history) == expected).all()
