"""The table and the figures hold what was measured."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalyzer.evaluation import RANKS, Result
from catalyzer.runs.figures import draw_recall, draw_training
from catalyzer.runs.results import COLUMNS, print_table, table_cells

RESULTS = [
    Result("catalyzer + lattice", 64, dict(zip(RANKS, np.linspace(0.25, 0.97, 7), strict=True)), 12.3, 4.5, 6.7, 18870.4),
    Result("OPQ", 64, {1: 0.2, 10: 0.63}, 1.0, 2.0, 3.0),
]


def test_cells_are_percent_and_seconds() -> None:
    cells = table_cells(RESULTS)
    assert cells[0] == ["catalyzer + lattice", 64, 25.0, pytest.approx(61.0), 97.0, 18870.4, 12.3, 4.5, 6.7]
    for column in ("R@100", "error"):
        assert np.isnan(cells[1][COLUMNS.index(column)])


def test_the_printed_table_has_every_column_and_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(RESULTS, "a title")
    shown = capsys.readouterr().out
    for text in ("a title", *COLUMNS, "catalyzer + lattice", "OPQ", "97.0", "63.0", "18,870"):
        assert text in shown


def test_figures_are_images_with_something_on_them(tmp_path: Path) -> None:
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "epoch/rank", "epoch/loss", "val/recall_at_10"])
        writer.writeheader()
        for epoch in range(3):
            writer.writerow({"epoch": epoch, "epoch/rank": 0.1, "epoch/loss": 0.2, "val/recall_at_10": 0.3 + epoch / 10})
    draw_training(tmp_path / "metrics.csv", tmp_path / "training.png")
    draw_recall(RESULTS, "a title", tmp_path / "recall.png")
    for name in ("training", "recall"):
        image = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert image.shape[0] > 400
        assert 0.005 < (image < 200).mean() < 0.5
