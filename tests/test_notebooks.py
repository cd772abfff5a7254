"""The notebooks run as they are, and say what they said when they were committed."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image, ImageChops, ImageStat

from tests.helpers import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> str:
    return "".join(output.get("text") or output.data["text/plain"] for output in cell.outputs)


def pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text)


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


@pytest.mark.timeout(900)  # half a minute of work each, but trainings, on whatever else the machine does
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_again_what_is_committed(path: Path, environment: dict[str, str], tmp_path: Path) -> None:
    committed, fresh = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    NotebookClient(fresh, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute(env=environment)
    for before, after in zip(code_cells(committed), code_cells(fresh), strict=True):
        assert pictures(after) == pictures(before)
        assert words(texts(after)) == words(texts(before))
        if "varies" not in before.metadata.get("tags", []):  # which say how long things took
            # Shares are in percent; training on another processor, or with more threads, may move them a little.
            assert numbers(texts(after)) == pytest.approx(numbers(texts(before)), abs=4)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_whole_and_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all("execution" not in cell.metadata for cell in cells)  # times of day, which would change with every run
    outputs = [output for cell in cells for output in cell.outputs]
    assert any(pictures(cell) for cell in cells)
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # no warnings
    assert not re.search(r"(?<!\w)/(tmp|home|root|Users|var)/|\x1b", "".join(texts(cell) for cell in cells))
    assert path.stat().st_size < 400_000


def test_the_pictures_of_the_results(environment: dict[str, str], tmp_path: Path) -> None:
    page = ROOT / "docs/results.md"
    script = ROOT / "notebooks" / "results_figures.py"
    subprocess.run([sys.executable, script, page, tmp_path], check=True, env=environment)
    for picture in ("recall-by-bytes.png", "recall-by-time.png"):
        with Image.open(tmp_path / picture) as drawn, Image.open(ROOT / "docs/images" / picture) as committed:
            assert drawn.size == committed.size
            difference = ImageChops.difference(drawn.convert("L"), committed.convert("L"))
            assert ImageStat.Stat(difference).mean[0] < 1  # of 255
    # Recalls are those of other sections, times aside, which are measured in one run for all methods.
    before, _, after = page.read_text().partition("## R@1 by bytes\n")
    by_bytes, _, after = after.partition("\n## R@1 by encoding time\n")
    by_time, _, after = after.partition("\n## ")
    rows = [line.split("|")[3:] for line in by_time.splitlines() if line.startswith("| ")]
    for section in (by_bytes, "".join(cell for cells in rows for cell in cells)):
        shown = set(re.findall(r"\b\d+\.\d\b", section))
        assert len(shown) > 25
        assert shown <= set(re.findall(r"\b\d+\.\d\b", before + after)) | {"65.5"}  # a published one is of no other section


def test_the_pictures_of_the_sphere(environment: dict[str, str], tmp_path: Path) -> None:
    script = ROOT / "notebooks" / "sphere.py"
    subprocess.run([sys.executable, script, tmp_path, "--epochs", "2"], check=True, env=environment, cwd=tmp_path)
    with Image.open(tmp_path / "sphere.gif") as animation, Image.open(tmp_path / "method.png") as picture:
        assert animation.n_frames == 3  # before the first epoch, and after each
        assert animation.size == (528, 212)
        assert picture.width == 990
    assert (ROOT / "docs/images/sphere.gif").stat().st_size < 600_000
