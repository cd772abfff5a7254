"""What the pages for engineers show runs as it stands there, in the order of the page."""

import re
import runpy
import shlex
import warnings
from itertools import pairwise
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pyarrow
import pytest
import yaml
from pyarrow import parquet

import catalyzer
from catalyzer import CatalyzerIndex, LatticeQuantizer, ProductLattice, SphericalLattice
from catalyzer.commands.cli import main
from catalyzer.files.vectors import write_vecs
from catalyzer.index.recipe import learn_codec
from catalyzer.runs.compose import CONF
from tests.helpers import ROOT, blocks, clustered, make_run


def run(page: str) -> dict[str, object]:
    """Run all blocks in this process; returns the names that Python's have made."""
    names: dict[str, object] = {}
    for language, content in blocks(page):
        if language == "python":
            exec(compile(content, page, "exec"), names)
            continue
        assert language == ""
        for line in content.splitlines():
            command, *arguments = shlex.split(line)
            if command == "pip":
                assert re.fullmatch(r'pip install -c constraints.txt "\.\[cpu(,onnx)?\]"', line)
            else:
                assert command == "catalyzer"
                main(arguments)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, (name, n) in enumerate((("learn", 600), ("base", 1500), ("queries", 20))):
        write_vecs(Path(f"{name}.fvecs"), [clustered(n, 32, seed)])
    with h5py.File("photos.hdf5", "w") as file:
        file["train"], file["test"] = clustered(30, 32, 3), clustered(5, 32, 4)
    columns = {"id": range(10_000, 10_030), "embedding": list(clustered(30, 32, 5))}
    parquet.write_table(pyarrow.table(columns), "wiki.parquet")
    return tmp_path


def test_the_quick_start(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalyzer.index.recipe.EPOCHS", 2)
    # The dimension is named, and networks are small: three trainings by default would take a minute.
    small = {"d_out": 24, "hidden": 64}
    monkeypatch.setattr("catalyzer.index.recipe.learn_codec", lambda x, **options: learn_codec(x, **options | small))
    names = run("docs/index.md")
    output = capsys.readouterr().out
    assert "photos.catalyzer holds 1,500" in output
    assert "is intact: 1,500 vectors" in output
    assert "1499 32 (1499, 8)" in output
    assert "lists  64" in output
    assert names["vectors"].shape == (10, 32)  # type: ignore[attr-defined]
    assert (names["codes"] == CatalyzerIndex.load("photos.catalyzer").codes).all(axis=1).mean() > 0.5  # type: ignore[attr-defined]
    assert {path.name for path in folder.iterdir()} == {
        "learn.fvecs", "base.fvecs", "queries.fvecs", "photos.catalyzer", "my.catalyzer", "large.catalyzer",
        "opq.catalyzer", "texts.catalyzer", "nested.catalyzer", "photos.hdf5", "wiki.parquet", "recall.png",
        "found.ivecs", "found.fvecs", "model.onnx",
    }  # fmt: skip


def test_the_readme_has_the_same_five_commands() -> None:
    lines = re.findall(r"^    ((?:pip|catalyzer) .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    commands = [shlex.split(line, comments=True) for line in lines]
    five = [shlex.split(line) for line in blocks("docs/index.md")[0][1].splitlines()]
    assert [command for command in commands if command in five] == five
    assert [command for command in commands if command[0] == "catalyzer"] == five[1:]


def test_the_snippets_of_the_readme(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        names = run("README.md")
    assert not [warning for warning in caught if issubclass(warning.category, UserWarning | FutureWarning)]
    assert names["I"].shape == (20, 10)  # type: ignore[attr-defined]
    assert names["index"].codes.shape == (5000, 32)  # type: ignore[attr-defined]
    assert Path("wiki.catalyzer").exists()


def test_the_snippets_of_pretrained_maps(folder: Path) -> None:
    names = run("docs/pretrained.md")
    assert names["I"].shape == (5, 10)  # type: ignore[attr-defined]
    assert names["index"].origin == "sift-64"  # type: ignore[attr-defined]


def test_the_snippets_of_the_experiments(folder: Path) -> None:
    run_folder, *_ = re.findall(r'TrainedRun.load\("(.*)"\)', (ROOT / "docs/experiments.md").read_text())
    make_run(folder / run_folder)
    Path("queries.fvecs").rename("q.fvecs")
    names = run("docs/experiments.md")
    assert names["I"].shape[1] == 10  # type: ignore[attr-defined]
    assert names["vectors"].shape == (1000, 24)  # type: ignore[attr-defined]
    assert names["long_codes"].shape == (1000, 32)  # type: ignore[attr-defined]


def test_choosing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("docs/choosing.md")
    output = capsys.readouterr().out
    printed = re.findall(r"^      (\w+Lattice\(.*\))$", (ROOT / "docs/choosing.md").read_text(), re.MULTILINE)
    assert len(printed) == 9
    assert all(f"\n  {line}\n" in output for line in printed)
    assert "LatticeQuantizer(dim=12, bits=32, radius_sq=" in output
    assert len(re.findall(r"^(32|64) bits, rerank (0|100|500) R@10 \d+\.\d$", output, re.MULTILINE)) == 6


def test_choosing_quotes_what_was_measured() -> None:
    quoted, measured = (
        {*re.findall(r"\d+\.\d+", (ROOT / page).read_text())} for page in ("docs/choosing.md", "docs/results.md")
    )
    assert len(quoted) > 30
    assert quoted <= measured


def test_the_format(folder: Path, fitted: Path) -> None:
    index = CatalyzerIndex.load(fitted)
    index.add("base.fvecs")
    index.save("photos.catalyzer")
    names = run("docs/format.md")
    assert (names["ids"] == index.ids).all()  # type: ignore[attr-defined]
    assert (names["codes"] == index.codes).all()  # type: ignore[attr-defined]
    assert names["points"].shape == (1000, 24)  # type: ignore[attr-defined]
    np.testing.assert_allclose(names["same"], names["points"][:100], atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize(
    "lattice",
    [
        *(SphericalLattice.for_bits(*each) for each in ((40, 128), (20, 64), (8, 32))),  # leaves of 3 and 1, 3 and 2, 2
        ProductLattice.for_bits(60, 160),
        ProductLattice([(24, 79), (128, 1), (5, 7), (4, 700)]),  # of 8, 1, 2 and 2 bytes
    ],
    ids=repr,
)
def test_points_of_other_lattices_in_python_alone(lattice: SphericalLattice | ProductLattice) -> None:
    random = Random(0)

    def codes_of(sphere: SphericalLattice) -> np.ndarray:
        numbers = [0, sphere.num_points - 1, *(random.randrange(sphere.num_points) for _ in range(98))]
        return np.array([[*number.to_bytes(sphere.code_size, "little")] for number in numbers], np.uint8)

    quantizer = {"dim": lattice.dim, "radius_sq": None, "blocks": [[each.dim, each.radius_sq] for each in lattice.spheres]}
    if isinstance(lattice, SphericalLattice):
        quantizer = {"dim": lattice.dim, "radius_sq": lattice.radius_sq}  # as in files from before there were products
    codes = np.concatenate([codes_of(sphere) for sphere in lattice.spheres], axis=1)
    names = {"quantizer": quantizer, "codes": codes}
    exec(blocks("docs/format.md")[-1][1], names)
    np.testing.assert_allclose(names["same"], lattice.decode(codes), atol=1e-6)


@pytest.mark.parametrize("norms", [None, [0.8, 0.6]])
@pytest.mark.parametrize("blocks_", [[(28, 42)] * 2, [(5, 7), (24, 79)]])
def test_points_with_gains_of_blocks_in_python_alone(
    blocks_: list[tuple[int, int]], norms: list[float] | None, random: np.random.Generator
) -> None:
    quantizer = LatticeQuantizer(sum(dim for dim, _ in blocks_), 128, blocks=blocks_, gain="blocks", norms=norms)
    codes = quantizer.encode((random.normal(size=(100, quantizer.dim)) / quantizer.dim**0.5).astype(np.float32))
    names = {"quantizer": quantizer.arguments, "codes": codes}
    exec(blocks("docs/format.md")[-1][1], names)
    np.testing.assert_allclose(names["same"], quantizer.decode(codes), atol=1e-6)


def test_the_reference_has_every_name() -> None:
    pages = "".join(path.read_text() for path in ROOT.glob("website/reference/*.md"))
    assert set(catalyzer.__all__) - {"__version__"} <= {*re.findall(r"\w+", pages)}


def test_in_the_reference_of_settings_text_ends_a_table() -> None:
    lines = "\n".join(runpy.run_path(str(ROOT / "website/hooks.py"))["settings"]()).splitlines()
    behind = [line for row, line in pairwise(lines) if row.startswith("|") and not line.startswith("|")]
    assert behind
    assert not any(behind)


def keys(values: dict[str, object], prefix: str) -> list[str]:
    found = [keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key] for key, value in values.items()]
    return [key for part in found for key in part]


def test_the_reference_has_every_key() -> None:
    page = "\n".join(runpy.run_path(str(ROOT / "website/hooks.py"))["settings"]())
    for path in [*CONF.glob("*.yaml"), *CONF.glob("*/*.yaml"), *CONF.glob("hydra/launcher/*.yaml")]:
        group, text = path.parent.relative_to(CONF), path.read_text()
        if group.name in ("experiment", "scale"):
            assert re.sub(r"^#.*\n", "", text, flags=re.MULTILINE) in page
            continue
        values = {key: value for key, value in yaml.safe_load(text).items() if key not in ("defaults", "hydra")}
        prefix = "" if "_global_" in text else "".join(f"{part}." for part in group.parts)
        for key in keys(values, prefix):
            assert f"| `{key}` |" in page, f"{path}: {key}"
