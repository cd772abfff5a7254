"""The Lightning module: losses of section 3, schedule of section 5.2, recall on the validation split."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from catalyzer.evaluation import measure
from catalyzer.nn import Catalyzer, KoLeoLoss, RankLoss, TriangleLoss, embed
from catalyzer.quantizers import MAX_TRAINING, Quantizer
from catalyzer.training.data import TripletData

METRICS = ("loss", "rank", "koleo", "violated")
"""Logged as train/... every few steps and as epoch/..., the mean over an epoch; violated is the share of comparisons that
come out wrong, such as a negative nearer than the positive."""


@dataclass(frozen=True)
class Optimization:
    """How the weights are learned; the defaults are section 5.2's: SGD with momentum, and a learning rate that falls in steps.

    Attributes:
        optimizer: "sgd" or "adamw".
        learning_rate: where it is highest.
        momentum: of SGD.
        decay: pairs (share of training done, factor on the learning rate from there on), in order; or "cosine", half a
            wave from 1 down to 0.
        warmup: share of training in which the learning rate grows linearly from 0.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    decay: Literal["cosine"] | tuple[tuple[float, float], ...] = ((80 / 300, 0.5), (120 / 300, 0.1))
    warmup: float = 0.0

    def factor(self, share: float) -> float:
        """The factor on the learning rate when `share` of the training is done.

        >>> [Optimization().factor(epoch / 300) for epoch in (0, 79, 80, 120)]
        [1.0, 1.0, 0.5, 0.1]
        >>> [round(Optimization(decay="cosine", warmup=0.2).factor(share), 2) for share in (0.0, 0.1, 0.5, 1.0)]
        [0.0, 0.49, 0.5, 0.0]
        """
        growth = min(1.0, share / self.warmup) if self.warmup else 1.0
        if self.decay == "cosine":
            return growth * (1 + math.cos(math.pi * share)) / 2
        return growth * ([1.0] + [factor for start, factor in self.decay if share >= start])[-1]

    def build(self, parameters: Iterator[torch.nn.Parameter], steps: int) -> tuple[Optimizer, LRScheduler]:
        """Optimizer and schedule for a training of so many steps."""
        optimizer: Optimizer
        if self.optimizer == "adamw":
            # Weight decay would be one more thing to tune, and batch norm makes most of these weights free of scale.
            optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)
        else:
            optimizer = torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum)
        # The first step is not of rate 0.
        return optimizer, LambdaLR(optimizer, lambda step: self.factor((step + 1) / steps if self.warmup else step / steps))


class CatalyzerTraining(LightningModule):
    """Trains a catalyzer by L_rank + λ L_KoLeo (equation 4); its trainer needs a `TripletData` as datamodule.

    Args:
        catalyzer: the network, fitted to the input's scale.
        quantizer: what recall is measured with on the validation split.
        lambda_: weight of the KoLeo loss.
        optimization: optimizer and schedule.
        end_to_end: quantize in the rank loss, through a straight-through layer (section 4.2): positives and negatives,
            and where search quantizes queries as well (`Quantizer.symmetric`), anchors too, which play the query. KoLeo
            spreads the unquantized points.
        rank_loss: "triplet" is equation 3; "triangle" is `TriangleLoss`.
    """

    def __init__(
        self,
        catalyzer: Catalyzer,
        quantizer: Quantizer,
        lambda_: float,
        optimization: Optimization,
        end_to_end: bool = False,
        rank_loss: Literal["triplet", "triangle"] = "triplet",
    ) -> None:
        super().__init__()
        self.catalyzer, self.quantizer = catalyzer, quantizer
        self.lambda_, self.optimization = lambda_, optimization
        self.triangle_loss = TriangleLoss() if rank_loss == "triangle" else None
        self.rank_loss, self.koleo_loss = RankLoss(reduction="none"), KoLeoLoss()
        self.quantize = quantizer.straight_through() if end_to_end else None

    @property
    def data(self) -> TripletData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def on_train_epoch_start(self) -> None:
        seconds = self.data.mine(self.catalyzer, self.current_epoch)
        self.log("epoch/mining_seconds", seconds)
        # Summed here rather than by Lightning, whose bookkeeping for each metric and step costs a fifth of a CPU step.
        self._sum = torch.zeros(len(METRICS), device=self.device)

    def training_step(self, triplets: Tensor, batch_idx: int) -> Tensor:
        # One pass for all three: batch norm sees anchors, positives and negatives alike, and the GPU is kept busy.
        anchor, positive, negative = self.catalyzer(triplets.flatten(0, 1)).chunk(3)
        koleo = self.koleo_loss(anchor)
        if self.quantize is not None:
            positive, negative = self.quantize(torch.cat([positive, negative])).chunk(2)
            if self.quantizer.symmetric:
                anchor = self.quantize(anchor)
        if self.triangle_loss is not None:
            ranks = self.triangle_loss(torch.stack([anchor, positive, negative]), triplets)
        else:
            ranks = self.rank_loss(anchor, positive, negative)
        rank = ranks.mean()
        loss = rank + self.lambda_ * koleo
        with torch.no_grad():
            metrics = torch.stack([loss, rank, koleo, (ranks > 0).float().mean()])
            self._sum += metrics
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict({f"train/{name}": value for name, value in zip(METRICS, metrics, strict=True)})
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            means = dict(zip(METRICS, self._sum / self.trainer.num_training_batches, strict=True))
            self.log_dict({f"epoch/{name}": v for name, v in means.items()}, on_step=False, on_epoch=True, sync_dist=True)

    def validation_step(self, queries: Tensor, batch_idx: int) -> None:
        split = self.data.validation
        fit_quantizer(self.quantizer, self.catalyzer, self.data.train)
        result = measure("validation", self.catalyzer, self.quantizer, split.base, queries.cpu().numpy(), split.ground_truth)
        for k in (1, 10, 100):
            if k in result.recall:
                self.log(f"val/recall_at_{k}", result.recall[k], sync_dist=True)

    def configure_optimizers(self) -> Any:
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.optimization.build(self.catalyzer.parameters(), total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit_quantizer(quantizer: Quantizer, transform: torch.nn.Module, train: np.ndarray) -> None:
    """Fit `quantizer` to transformed training vectors; what is fixed learns nothing and costs nothing."""
    if type(quantizer).fit is not Quantizer.fit:
        rows = np.random.default_rng(0).permutation(len(train))[:MAX_TRAINING]
        quantizer.fit(embed(transform, train[rows], "embedding for the quantizer"))
