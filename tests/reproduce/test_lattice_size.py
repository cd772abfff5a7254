"""Figure 6 as a user makes it."""

from pathlib import Path

from PIL import Image

from catalyzer.reproduce import Outcome
from tests.helpers import Command


def test_figure6(reproduce: Command, tmp_path: Path) -> None:
    process = reproduce("figure6", "out=new", typed=True)
    names = ["figure6.png", "figure6.svg", "figure6.md", "results.json"]
    assert process.stdout.splitlines()[-4:] == [f"new/demo-demo/figure6/{name}" for name in names]
    outcome = Outcome.load(tmp_path / "new/demo-demo/figure6")
    rows = {row.label: list(row.values) for row in outcome.tables[0].rows}
    assert rows["r² = 79"][:2] == [256, "17319684851070915840"]
    assert rows["r² = 10"][:2] == [4, "2319457632"]
    with Image.open(tmp_path / "new/demo-demo/figure6/figure6.png") as image:
        assert min(image.size) > 400


def test_an_unknown_target_is_refused(reproduce: Command, tmp_path: Path) -> None:
    process = reproduce("figure99", expect=2)
    assert process.stderr.count("\n") == 1
    assert "figure6" in process.stderr
    assert not any(tmp_path.iterdir())
