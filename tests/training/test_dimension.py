"""The choice of the dimension against its definition, measured here step by step."""

from pathlib import Path

import numpy as np
import pytest

from catalyzer import InvalidInput, LatticeQuantizer, recall_at
from catalyzer.datasets import Split
from catalyzer.files.array_cache import ArrayCache
from catalyzer.nn import Linear, embed
from catalyzer.quantizers import MOST_ATOMS
from catalyzer.training import choose_dimension
from catalyzer.training.dimension import DIMENSIONS, TOLERANCE, dimensions


def in_a_subspace(n: int, seed: int, inner: int = 12, dim: int = 32) -> np.ndarray:
    """Vectors of 32 dimensions that need 12 of them; the rest is noise."""
    axes = np.random.default_rng(99).normal(size=(inner, dim))
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, inner)) @ axes + random.normal(0, 0.05, (n, dim))).astype(np.float32)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return Split(in_a_subspace(2000, 1), in_a_subspace(300, 2), cache=ArrayCache(tmp_path))


def test_the_smallest_dimension_that_finds_nearly_as_much_as_the_best(split: Split, tmp_path: Path) -> None:
    train = in_a_subspace(3000, 0)
    recall = {}
    for dim in (d for d in DIMENSIONS if d <= 32):
        linear, quantizer = Linear(32, dim).adapt(train), LatticeQuantizer(dim, 32)
        ids = quantizer.search(embed(linear, split.queries), quantizer.encode(embed(linear, split.base)), 10)[1]
        recall[dim] = recall_at(10, ids, split.ground_truth)
    expected = min(dim for dim, value in recall.items() if value >= (1 - TOLERANCE) * max(recall.values()))
    assert expected == 10
    assert choose_dimension(train, split, 32, ArrayCache(tmp_path)) == expected


def test_the_choice_is_kept(split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, train = ArrayCache(tmp_path), in_a_subspace(3000, 0)
    with caplog.at_level("INFO"):
        first = choose_dimension(train, split, 32, cache)
        assert f"d_out = {first}: of the 10 nearest, a linear map + lattice finds" in caplog.text
        caplog.clear()
        assert choose_dimension(train, split, 32, cache) == first
        assert "d_out" not in caplog.text


def test_dimensions_without_a_lattice_of_that_size_are_left_out(split: Split, tmp_path: Path) -> None:
    assert choose_dimension(in_a_subspace(3000, 0), split, 64, ArrayCache(tmp_path)) >= 16  # 8 and 12 have none of 64 bits


def test_lattices_that_are_slow_to_code_with_are_left_out(
    split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, train = ArrayCache(tmp_path), in_a_subspace(3000, 0)
    with caplog.at_level("INFO"):
        chosen = choose_dimension(train, split, 64, cache)
    assert chosen >= 20  # of 16 dimensions, 64 bits have r² = 515 and 62,175 atoms
    assert "left out for more than 50,000 atoms, which are slow to code with: 16" in caplog.text
    for bits in range(8, 600):
        lattice = LatticeQuantizer(LatticeQuantizer.default_dim(bits), bits).lattice
        assert sum(len(sphere.atoms) for sphere in lattice.spheres) <= MOST_ATOMS


def test_products_of_spheres_are_tried_in_more_dimensions(tmp_path: Path) -> None:
    cache, random = ArrayCache(tmp_path), np.random.default_rng(0)
    x = random.normal(size=(3000, 96)).astype(np.float32)
    assert choose_dimension(x, Split(x[:2000], x[:200], cache=cache), 128, cache) in dimensions(128, 96)


def test_no_lattice_of_so_many_bits_in_so_few_dimensions(tmp_path: Path) -> None:
    cache, x = ArrayCache(tmp_path), in_a_subspace(500, 0, 4, 12)
    with pytest.raises(InvalidInput, match=r"no lattice of 64 bits in 8 to 12 dimensions; use fewer bits"):
        choose_dimension(x, Split(x, x[:10], cache=cache), 64, cache)


def test_vectors_of_few_dimensions(tmp_path: Path) -> None:
    cache, x = ArrayCache(tmp_path), np.zeros((500, 4), np.float32)
    with pytest.raises(InvalidInput, match=r"chooses among 8 dimensions and more, but the vectors have 4; set d_out"):
        choose_dimension(x, Split(x, x[:10], cache=cache), 64, cache)
