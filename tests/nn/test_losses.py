"""The losses against their equations, and their gradients where distances vanish."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from catalyzer import KoLeoLoss, RankLoss, SphericalLattice
from catalyzer.nn import ListNetLoss, StraightThrough, TriangleLoss


@given(n=st.integers(2, 30), dim=st.integers(2, 16))
def test_koleo_is_equation_2(n: int, dim: int) -> None:
    points = np.random.default_rng(n).normal(size=(n, dim))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag([np.inf] * n)
    expected = -np.log(distances.min(1)).mean()
    assert KoLeoLoss(eps=0)(torch.from_numpy(points)).item() == pytest.approx(expected, abs=1e-4)


def test_rank_is_equation_3(random: np.random.Generator) -> None:
    x, near, far = (random.normal(size=(50, 8)) for _ in range(3))
    expected = np.maximum(0, np.linalg.norm(x - near, axis=1) - np.linalg.norm(x - far, axis=1)).mean()
    assert RankLoss()(*map(torch.from_numpy, (x, near, far))).item() == pytest.approx(expected, rel=1e-5)


def test_triangle_is_the_rank_loss_at_every_corner_in_the_order_of_the_input(random: np.random.Generator) -> None:
    points, inputs = (torch.from_numpy(random.normal(size=(3, 50, dim))) for dim in (8, 5))
    expected = []
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        b_is_nearer = ((inputs[a] - inputs[b]).norm(dim=1) < (inputs[a] - inputs[c]).norm(dim=1))[:, None]
        nearer, farther = torch.where(b_is_nearer, points[b], points[c]), torch.where(b_is_nearer, points[c], points[b])
        expected.append(RankLoss()(points[a], nearer, farther))
    losses = TriangleLoss()(points, inputs)
    assert losses.shape == (3, 50)
    assert losses.mean().item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_triangle_is_zero_for_what_keeps_the_order_and_does_not_mind_which_corner_is_first(seed: int) -> None:
    random = np.random.default_rng(seed)
    points, inputs = (torch.from_numpy(random.normal(size=(3, 20, 6))) for _ in range(2))
    assert TriangleLoss()(0.5 * inputs + 3, inputs).max() == 0
    shuffled = random.permutation(3)
    losses, others = TriangleLoss()(points, inputs), TriangleLoss()(points[shuffled], inputs[shuffled])
    torch.testing.assert_close(losses.sort(0).values, others.sort(0).values)


def test_triangle_asks_nothing_of_duplicates_in_the_input() -> None:
    points = torch.randn(3, 4, 8, requires_grad=True)
    losses = TriangleLoss()(points, torch.ones(3, 4, 5))
    losses.sum().backward()
    assert losses.max() == 0
    assert points.grad is not None
    assert points.grad.abs().max() == 0


def test_listnet_is_the_cross_entropy_of_the_first_places(random: np.random.Generator) -> None:
    squared, distances = random.uniform(0, 2, (20, 7)), random.uniform(1, 5, (20, 7))
    targets = np.exp(-distances / (0.3 * distances.min(axis=1, keepdims=True)))
    predictions = np.exp(-5 / 2 * squared)
    targets, predictions = (p / p.sum(axis=1, keepdims=True) for p in (targets, predictions))
    expected = -(targets * np.log(predictions)).sum(axis=1)
    loss = ListNetLoss(temperature=0.3, scale=5)
    losses = loss(torch.from_numpy(squared), torch.from_numpy(distances))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)

    at_inf = torch.cat([torch.from_numpy(distances), torch.full((20, 2), torch.inf)], dim=1)
    more = torch.cat([torch.from_numpy(squared), torch.zeros(20, 2)], dim=1)
    torch.testing.assert_close(loss(more, at_inf), losses)


def test_listnet_has_a_gradient_where_a_list_holds_duplicates_of_the_query() -> None:
    squared = torch.tensor([[0.3, 0.2, 0.1, 0.0]], requires_grad=True)
    losses = ListNetLoss()(squared, torch.tensor([[0.0, 0.0, 1.0, torch.inf]]))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert squared.grad is not None
    assert squared.grad.isfinite().all()
    assert (squared.grad[0, :2] > 0).all()  # they are to come nearer
    assert squared.grad[0, 2] < 0
    assert squared.grad[0, 3] == 0


@pytest.mark.parametrize("distance", [0.0, 1e-30, 1e-12, 1e-7, 1e-4])
def test_gradients_are_bounded_however_near_the_points(distance: float) -> None:
    points = normalize(torch.randn(64, 24, generator=torch.Generator().manual_seed(0)))
    points[1] = points[0]
    points[1, 0] += distance
    points.requires_grad_()
    loss = KoLeoLoss()(points) + RankLoss()(points, points.roll(1, 0), points.flip(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert points.grad is not None
    assert points.grad.abs().max() <= 1 / (64 * 1e-4) * 4


def test_a_batch_of_one_point_repeated_is_finite() -> None:
    points = torch.full((16, 8), 8**-0.5, requires_grad=True)
    loss = KoLeoLoss()(points) + RankLoss()(points, points, points)
    loss.backward()
    assert torch.isfinite(loss)
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()


def test_minimizing_koleo_spreads_points_to_a_regular_polygon() -> None:
    angles = torch.rand(6, generator=torch.Generator().manual_seed(1)) * 2
    angles.requires_grad_()
    optimizer = torch.optim.Adam([angles], lr=0.01)
    for _ in range(4000):
        loss = KoLeoLoss()(torch.stack([angles.cos(), angles.sin()], 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gaps = torch.diff(torch.sort(angles.detach() % (2 * torch.pi)).values)
    assert gaps.numpy() == pytest.approx(np.full(5, np.pi / 3), abs=0.06)


def test_losses_are_taken_in_float32_under_autocast() -> None:
    points = normalize(torch.randn(64, 24))
    others = points.roll(1, 0), points.roll(2, 0)
    koleo, rank = KoLeoLoss()(points), RankLoss()(points, *others)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(KoLeoLoss()(points), koleo)
        assert torch.equal(RankLoss()(points, *others), rank)
    assert koleo.dtype == rank.dtype == torch.float32
    assert koleo.item() == pytest.approx(KoLeoLoss()(points.double()).item(), abs=1e-4)


def test_straight_through_quantizes_forward_and_is_the_identity_backward() -> None:
    lattice = SphericalLattice(24, 79)
    x = normalize(torch.randn(32, 24)).requires_grad_()
    y = StraightThrough(lattice)(x)
    torch.testing.assert_close(y, lattice.quantize(x.detach()).float() / 79**0.5)
    gradient = torch.randn(32, 24)
    y.backward(gradient)
    assert x.grad is not None
    assert torch.equal(x.grad, gradient)
