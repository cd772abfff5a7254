"""The terms of the loss: a run minimizes their weighted sum. Equation 4 is the sum of `TripletRank` and λ · `KoLeo`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from catalyzer.errors import InvalidInput
from catalyzer.nn import KoLeoLoss, RankLoss, TriangleLoss, rows_of_all_processes
from catalyzer.parts import Part


@dataclass(frozen=True)
class Triplets:
    """A batch of n triplets in a training step: anchors, positives and negatives, in this order.

    Attributes:
        inputs: `(3, n, d_in)` float32 vectors.
        points: three tensors `(n, d_out)`, the mapped vectors.
        compared: three tensors `(n, d_out)`, the points that a search compares: quantized if training is end-to-end.
        decoded: `(3, n, d_in)`, the decoded quantized points; None without a decoder.
        deviation: standard deviation of the data, a scalar.
    """

    inputs: Tensor
    points: tuple[Tensor, Tensor, Tensor]
    compared: tuple[Tensor, Tensor, Tensor]
    decoded: Tensor | None
    deviation: Tensor


class LossTerm(Part, nn.Module, ABC):
    """Base of all terms. A subclass defines `forward`; it may have parameters, which are trained too.

    Args:
        weight: weight of the term in the sum.

    Raises:
        InvalidInput: a negative weight.

    >>> class Variance(LossTerm):
    ...     def forward(self, triplets: Triplets) -> Tensor:
    ...         return -torch.cat(triplets.points).var(dim=0).mean()
    >>> Variance(weight=0.1).weight
    0.1
    """

    needs_decoder: ClassVar[bool] = False
    """Where true, the term is left out of a training without a decoder."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise InvalidInput(f"the weight of a loss term must be at least 0, got {weight}")
        self.weight = weight

    @abstractmethod
    def forward(self, triplets: Triplets) -> Tensor | dict[str, Tensor]:
        """The term's value, a scalar, or as in Lightning's `training_step` a dict with it as "loss" and more scalars to log."""


class TripletRank(LossTerm):
    """The rank loss of equation 3; logs "violated", the share of negatives nearer than the positive.

    Args:
        weight: weight of the term.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.loss = RankLoss(reduction="none")

    def forward(self, triplets: Triplets) -> dict[str, Tensor]:
        return _ranked(self.loss(*triplets.compared))


class TriangleRank(LossTerm):
    """The rank loss at all three corners of a triplet, in the input's order; logs "violated". See `TriangleLoss`.

    Args:
        weight: weight of the term.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.loss = TriangleLoss()

    def forward(self, triplets: Triplets) -> dict[str, Tensor]:
        return _ranked(self.loss(torch.stack(triplets.compared), triplets.inputs))


def _ranked(losses: Tensor) -> dict[str, Tensor]:
    return {"loss": losses.mean(), "violated": (losses > 0).float().mean()}


class KoLeo(LossTerm):
    """The entropy loss of equation 2 on the anchors alone, since a positive is near its anchor on purpose.

    Args:
        weight: λ of equation 4.
        scope: "local" spreads the anchors of each process's batch, "global" those of all processes together.
    """

    def __init__(self, weight: float = 0.02, scope: Literal["local", "global"] = "local") -> None:
        super().__init__(weight)
        self.scope = scope
        self.loss = KoLeoLoss()

    def forward(self, triplets: Triplets) -> Tensor:
        anchors = triplets.points[0]
        # Every process then computes the loss of all anchors. DDP averages the gradients, so the mean is that of one process.
        everywhere = self.scope == "global" and torch.distributed.is_initialized()
        return self.loss(rows_of_all_processes(anchors) if everywhere else anchors)


class Reconstruction(LossTerm):
    """The mean squared error of the decoded vectors, divided by the variance of the data. The paper has no decoder.

    Args:
        weight: weight of the term.
    """

    needs_decoder = True

    def forward(self, triplets: Triplets) -> Tensor:
        assert triplets.decoded is not None
        return ((triplets.decoded - triplets.inputs) / triplets.deviation).square().mean()
