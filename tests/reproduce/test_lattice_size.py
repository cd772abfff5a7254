"""Figure 6 as a user makes it."""

import csv
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def reproduce(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "src/reproduce.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_figure6(tmp_path: Path) -> None:
    process = reproduce("figure6", "--out", str(tmp_path / "new"))
    assert process.returncode == 0, process.stderr
    paths = [Path(line) for line in process.stdout.splitlines()]
    assert [path.name for path in paths] == ["figure6.png", "figure6.csv"]
    assert min(Image.open(paths[0]).size) > 400
    with paths[1].open() as file:
        rows = {int(row["radius_sq"]): (int(row["atoms"]), int(row["points"])) for row in csv.DictReader(file)}
    assert rows[79] == (256, 17319684851070915840)
    assert rows[1] == (1, 48)


def test_an_unknown_target_is_refused() -> None:
    process = reproduce("figure99")
    assert process.returncode == 2
    assert "figure6" in process.stderr
    assert "Traceback" not in process.stderr
