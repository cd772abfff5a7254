"""The learning rate over a training: in steps as in section 5.2, or as a cosine, after a warm-up."""

import math
from collections.abc import Sequence
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from catalyzer.errors import InvalidInput

PAPER = ((80 / 300, 0.5), (120 / 300, 0.1))
"""Section 5.2: half of the learning rate from epoch 80 of 300 on, a tenth from epoch 120."""


class Decay(LambdaLR):
    """Multiplies the learning rate by a factor that depends on the share of training that is done.

    Args:
        optimizer: optimizer; its learning rate is the highest.
        total_steps: number of optimizer steps of the training.
        decay: pairs (share of training, factor from then on), in order; or "cosine", half a wave from 1 down to 0.
        warmup: share of training in which the learning rate increases linearly from 0.

    >>> [factor(epoch / 300, PAPER) for epoch in (0, 79, 80, 120)]
    [1.0, 1.0, 0.5, 0.1]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        decay: Literal["cosine"] | Sequence[Sequence[float]] = PAPER,
        warmup: float = 0.0,
    ) -> None:
        if decay != "cosine" and [*decay] != sorted(decay, key=lambda pair: pair[0]):
            raise InvalidInput(f"the shares in decay must be ascending, got {[*decay]}")
        first = 1 if warmup else 0  # with a warm-up, the first step would have a rate of 0
        super().__init__(optimizer, lambda step: factor((step + first) / total_steps, decay, warmup))


def factor(share: float, decay: Literal["cosine"] | Sequence[Sequence[float]], warmup: float = 0.0) -> float:
    """The factor on the learning rate when `share` of the training is done; see `Decay`.

    >>> [round(factor(share, "cosine", warmup=0.2), 2) for share in (0.0, 0.1, 0.5, 1.0)]
    [0.0, 0.49, 0.5, 0.0]
    """
    growth = min(1.0, share / warmup) if warmup else 1.0
    if decay == "cosine":
        return growth * (1 + math.cos(math.pi * share)) / 2
    return growth * ([1.0] + [after for start, after in decay if share >= start])[-1]
