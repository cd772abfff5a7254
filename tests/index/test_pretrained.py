"""Maps that ship with the package: they need no training, stay small, and name themselves."""

from pathlib import Path

import numpy as np
import pytest

from catalyzer import CatalyzerIndex, InvalidInput
from catalyzer.commands.cli import main
from catalyzer.index.file import verify
from catalyzer.index.pretrained import FOLDER, names
from tests.helpers import ROOT, clustered

MAPS = [(name, int(bits)) for name, bits in (each.rsplit("-", 1) for each in names())]


def test_there_are_maps() -> None:
    assert ("all-MiniLM-L6-v2", 256) in MAPS


@pytest.mark.parametrize(("name", "bits"), MAPS)
def test_a_map_needs_no_training_and_names_itself(name: str, bits: int, tmp_path: Path) -> None:
    index = CatalyzerIndex.pretrained(name, bits)
    base = 100 * np.abs(clustered(2000, index.d, 0))
    index.add(base)
    index.save(tmp_path / "a.catalyzer")
    loaded = CatalyzerIndex.load(tmp_path / "a.catalyzer")
    assert loaded.origin == f"{name}-{bits}"
    assert loaded.bits <= bits
    found = index.search(base[:50], k=10)
    assert (found[1] == np.arange(50)[:, None]).any(axis=1).mean() > 0.5
    for mine, others in zip(found, loaded.search(base[:50], k=10), strict=True):
        np.testing.assert_array_equal(mine, others)


@pytest.mark.parametrize(("name", "bits"), MAPS)
def test_a_map_is_small_intact_and_has_a_card(name: str, bits: int) -> None:
    path = FOLDER / f"{name}-{bits}.catalyzer"
    assert path.stat().st_size <= 4_000_000
    assert len(verify(path).ids) == 0
    assert f'CatalyzerIndex.pretrained("{name}", bits={bits})' in (ROOT / "docs/pretrained.md").read_text()


def test_an_unknown_map_is_refused_with_those_that_there_are() -> None:
    for name, bits in (("word2vec", 64), ("all-MiniLM-L6-v2", 8), ("../index/x", 64)):
        with pytest.raises(InvalidInput, match="choose among all-MiniLM-L6-v2 with 256 bits"):
            CatalyzerIndex.pretrained(name, bits)


def test_bits_may_be_left_out() -> None:
    for name, bits in MAPS:
        assert CatalyzerIndex.pretrained(name).origin == f"{name}-{bits}"
    with pytest.raises(InvalidInput, match="bits must be an integer of at least 1; got '64'"):
        CatalyzerIndex.pretrained("sift", "64")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="there is no pretrained map word2vec; choose among"):
        CatalyzerIndex.pretrained("word2vec")


def test_vectors_of_another_dimension_are_refused() -> None:
    with pytest.raises(InvalidInput, match="384"):
        CatalyzerIndex.pretrained("all-MiniLM-L6-v2", 256).add(np.ones((10, 300), np.float32))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "texts.catalyzer")
    main(["pretrained", path, "all-MiniLM-L6-v2", "--bits", "256"])
    assert f"catalyzer add {path} BASE" in capsys.readouterr().out
    main(["info", path])
    assert "origin  all-MiniLM-L6-v2-256" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["pretrained", path, "all-MiniLM-L6-v2", "--bits", "256"])
    assert "already exists" in capsys.readouterr().err
