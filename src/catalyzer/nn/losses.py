"""The losses of section 3: KoLeo, which spreads points evenly, and rank losses, which keep neighbours; and ListNet's."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KoLeoLoss(nn.Module):
    """Kozachenko-Leonenko entropy regularizer, equation 2: minus the mean log distance to the nearest other point.

    The distance is taken as rho + eps: exact duplicates then have a finite loss and zero gradient (they have no direction in
    which to separate), and near duplicates have a gradient of at most 1 / (n eps).

    Args:
        eps: summand of each distance, which on the unit sphere is between 0 and 2.

    Shape:
        points `(n, d)`, n at least 2, usually of norm 1; the loss is a scalar, computed in float32.

    >>> square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> KoLeoLoss()(square)  # the nearest neighbours are sqrt(2) apart: -log(sqrt(2))
    tensor(-0.3466)
    """

    def __init__(self, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, points: Tensor) -> Tensor:
        # Half precision cannot tell near neighbours apart, so autocast is off in here.
        with torch.autocast(points.device.type, enabled=False):
            points = points.float()
            with torch.no_grad():
                squared = points.square().sum(1)
                distances = squared[:, None] + squared - 2 * points @ points.T
                nearest = distances.fill_diagonal_(torch.inf).argmin(1)
            # The product above only finds who is nearest; the distance itself is taken without its cancellation.
            rho = torch.linalg.vector_norm(points - points[nearest], dim=1)
            return -(rho + self.eps).log().mean()


class RankLoss(nn.Module):
    """Triplet loss without a margin, equation 3: max(0, |f(x) - f(x+)| - |f(x) - f(x-)|).

    Args:
        reduction: "mean" over the batch, or "none" for the loss of each triplet, which is positive if it is violated.

    Shape:
        anchor, positive, negative `(n, d)`; the loss is a scalar or `(n,)`, computed in float32.

    >>> x = torch.tensor([[0.0, 0.0]])
    >>> near, far = torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0]])
    >>> RankLoss()(x, near, far), RankLoss()(x, far, near)
    (tensor(0.), tensor(5.))
    """

    def __init__(self, reduction: Literal["mean", "none"] = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        anchor, positive, negative = anchor.float(), positive.float(), negative.float()
        # vector_norm has gradient 0 at 0, so that duplicates do not make it infinite.
        near = torch.linalg.vector_norm(anchor - positive, dim=1)
        far = torch.linalg.vector_norm(anchor - negative, dim=1)
        losses = (near - far).clamp(min=0)
        return losses.mean() if self.reduction == "mean" else losses


class TriangleLoss(nn.Module):
    """The rank loss at every corner of a triplet, in the order of the input instead of that of the mining.

    At each of the three corners two sides meet. With lengths s, t on the sphere and S < T in the input, the loss is max(0, s -
    t), as in equation 3; it is 0 if S = T. So a negative that is nearer in the input than the positive is not pushed away, and
    a triplet teaches three comparisons for the same three points.

    Shape:
        points `(3, n, d)` on the sphere, inputs `(3, n, d_in)`; the losses are `(3, n)`, one for each corner, computed in
        float32 and above 0 where the order is violated.

    >>> inputs = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[0.0, 6.0]]])  # sides 5 (first to second), 3.6 and 6
    >>> TriangleLoss()(inputs, inputs).T
    tensor([[0., 0., 0.]])
    >>> TriangleLoss()(inputs[[0, 2, 1]], inputs).T  # those that meet in the first corner are now 6 and 5
    tensor([[1., 0., 0.]])
    """

    def forward(self, points: Tensor, inputs: Tensor) -> Tensor:
        # Row i has the side from corner i to the one before it, so rows i and i + 1 meet in corner i.
        sides, lengths = (torch.linalg.vector_norm(x.float() - x.float().roll(1, 0), dim=2) for x in (points, inputs))
        return ((sides - sides.roll(-1, 0)) * (lengths.roll(-1, 0) - lengths).sign()).clamp(min=0)


class ListNetLoss(nn.Module):
    """Lists in the input's order (ListNet, Cao et al. 2007): cross entropy of the first place, in the input and on the sphere.

    Of a list of m others at distances D_j in the input and d_j on the sphere, the targets are p_j ∝ exp(-D_j / (T min D)) and
    the predictions q_j ∝ exp(-scale d_j² / 2), which on the unit sphere is exp(scale · cosine); the loss is -Σ p_j log q_j.

    Args:
        temperature: T; a small one gives weight only to the nearest.
        scale: factor of squared distances on the sphere.

    Shape:
        squared `(n, m)`, squared distances on the sphere, and distances `(n, m)` in the input, inf for what is not in the
        list; the losses are `(n,)`, computed in float32.

    >>> distances = torch.tensor([[1.0, 1.1, 2.0, torch.inf]])
    >>> ListNetLoss()(torch.tensor([[0.1, 0.2, 0.9, 0.0]]), distances)
    tensor([0.5827])
    >>> ListNetLoss()(torch.tensor([[0.9, 0.2, 0.1, 0.0]]), distances)  # the nearest in the input is the farthest here
    tensor([6.4307])
    """

    def __init__(self, temperature: float = 0.1, scale: float = 20.0) -> None:
        super().__init__()
        self.temperature, self.scale = temperature, scale

    def forward(self, squared: Tensor, distances: Tensor) -> Tensor:
        unit = distances.amin(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)  # duplicates are at distance 0
        targets = F.softmax(-distances.float() / (self.temperature * unit), dim=1)
        scores = (-self.scale / 2 * squared.float()).masked_fill(distances.isinf(), torch.finfo(torch.float32).min)
        return -(targets * F.log_softmax(scores, dim=1)).sum(1)
