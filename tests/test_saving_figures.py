"""What a saved figure shows where there is nothing to show."""

import matplotlib.pyplot as plt
import pandas as pd

from sgdphases.figures.saving import save_figure


def test_an_empty_panel_says_so(tmp_path):
    figure, (empty, full, hidden) = plt.subplots(1, 3)
    full.plot([0, 1], [1, 2])
    hidden.axis("off")
    picture, numbers = tmp_path / "figure.svg", tmp_path / "figure.parquet"
    save_figure(figure, pd.DataFrame({"x": [0, 1]}), [picture], numbers)
    assert [text.get_text() for text in empty.texts] == ["no run to show here"]
    assert not full.texts
    assert not hidden.texts
    assert picture.exists()
    assert pd.read_parquet(numbers)["x"].tolist() == [0, 1]
