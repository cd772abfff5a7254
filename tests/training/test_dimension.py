"""The choice of the dimension against its definition, measured here step by step."""

from pathlib import Path

import numpy as np
import pytest

from catalyzer import InvalidInput, LatticeQuantizer, recall_at
from catalyzer.datasets import Split
from catalyzer.files.array_cache import ArrayCache
from catalyzer.lattice import num_atoms
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
        assert f"d_out = {first}, the smallest with 95% of the best share: of the 10 nearest" in caplog.text
        caplog.clear()
        assert choose_dimension(train, split, 32, cache) == first
        assert "d_out" not in caplog.text


def test_dimensions_that_leave_bits_unused_are_left_out(split: Split, tmp_path: Path) -> None:
    assert choose_dimension(in_a_subspace(3000, 0), split, 64, ArrayCache(tmp_path)) >= 16  # 14 have 53 bits in 10,000 atoms


def test_lattices_chosen_by_their_bits_have_few_atoms() -> None:
    for bits in (8, 33, 56, 64, 72, 100, 256):
        for dim in (LatticeQuantizer.default_dim(bits), *dimensions(bits, 130)[:6]):
            spheres = LatticeQuantizer(dim, bits).lattice.spheres
            assert max(num_atoms(sphere.dim, sphere.radius_sq) for sphere in spheres) <= MOST_ATOMS


@pytest.mark.parametrize("d_in", [8, 9, 11, 13, 15])
def test_vectors_of_few_dimensions_leave_bits_unused(d_in: int, tmp_path: Path) -> None:
    x, cache = in_a_subspace(1000, 0, d_in, d_in), ArrayCache(tmp_path)
    chosen = choose_dimension(x, Split(x[:500], x[:50], cache=cache), 64, cache, tolerance=0)
    assert chosen in dimensions(64, d_in)[-2:]
    quantizer = LatticeQuantizer(chosen, 64)
    assert quantizer.code_size == -(-quantizer.bits // 8) <= 8


def test_a_little_more_than_a_block_is_tried_in_as_many_dimensions() -> None:
    assert dimensions(72, 200)[0] == 24  # two blocks of 36 bits
    assert dimensions(128, 200)[0] == 40


def test_products_of_spheres_are_tried_in_more_dimensions(tmp_path: Path) -> None:
    cache, random = ArrayCache(tmp_path), np.random.default_rng(0)
    x = random.normal(size=(3000, 96)).astype(np.float32)
    assert choose_dimension(x, Split(x[:2000], x[:200], cache=cache), 128, cache) in dimensions(128, 96)


def test_no_lattice_of_so_few_bits(tmp_path: Path) -> None:
    cache, x = ArrayCache(tmp_path), in_a_subspace(500, 0, 4, 12)
    with pytest.raises(InvalidInput, match=r"no lattice of 3 bits in 8 to 12 dimensions; use more bits"):
        choose_dimension(x, Split(x, x[:10], cache=cache), 3, cache)


def test_vectors_of_few_dimensions(tmp_path: Path) -> None:
    cache, x = ArrayCache(tmp_path), np.zeros((500, 4), np.float32)
    with pytest.raises(InvalidInput, match=r"chooses among 8 dimensions and more, but the vectors have 4; give d_out"):
        choose_dimension(x, Split(x, x[:10], cache=cache), 64, cache)
