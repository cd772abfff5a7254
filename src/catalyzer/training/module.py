"""The Lightning module: losses of section 3, schedule of section 5.2, recall on the validation split."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from catalyzer.codec import Codec
from catalyzer.evaluation import measure
from catalyzer.nn import KoLeoLoss, RankLoss, TriangleLoss, embed
from catalyzer.quantizers import MAX_TRAINING, Quantizer
from catalyzer.training.data import TripletData

METRICS = ("loss", "rank", "koleo", "violated", "reconstruction")
"""Logged as train/... every few steps and as epoch/..., the mean over an epoch; violated is the share of comparisons that
come out wrong, such as a negative nearer than the positive, and reconstruction is there with a decoder only."""


LOGGED_RANKS = (1, 10, 100)
"""val/recall_at_k is logged for these k, of the search as the settings have it; where it reranks, the first stage's as
val/latent_recall_at_k too."""


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


@dataclass(frozen=True)
class Loss:
    """What is minimized: rank · L_rank + koleo · L_KoLeo + reconstruction · L_reconstruction; equation 4 has the first two.

    L_reconstruction is the mean squared error of the decoded vectors, of all three of a triplet and over all coordinates, in
    units of the data's standard deviation.

    Attributes:
        koleo: λ, weight of the KoLeo loss.
        rank: weight of the rank loss.
        reconstruction: weight of the reconstruction loss, where there is a decoder.
        rank_loss: "triplet" is equation 3; "triangle" is `TriangleLoss`.
    """

    koleo: float
    rank: float = 1.0
    reconstruction: float = 1.0
    rank_loss: Literal["triplet", "triangle"] = "triplet"


class CatalyzerTraining(LightningModule):
    """Trains a catalyzer, and a decoder with it where one is given; its trainer needs a `TripletData` as datamodule.

    Args:
        codec: catalyzer, fitted to the input's scale, decoder or None, and the quantizer that the decoder reads through a
            straight-through layer. With it recall is measured on the validation split.
        loss: what is minimized.
        optimization: optimizer and schedule.
        end_to_end: quantize in the rank loss, through a straight-through layer (section 4.2): positives and negatives,
            and where search quantizes queries as well (`Quantizer.symmetric`), anchors too, which play the query. KoLeo
            spreads the unquantized points.
        rerank: of the search on the validation split; see `Codec.search`.
    """

    def __init__(self, codec: Codec, loss: Loss, optimization: Optimization, end_to_end: bool = False, rerank: int = 0) -> None:
        super().__init__()
        self.codec, self.loss, self.optimization, self.rerank = codec, loss, optimization, rerank
        self.catalyzer, self.decoder = codec.transform, codec.decoder  # here too, so that Lightning finds their weights
        self.triangle_loss = TriangleLoss() if loss.rank_loss == "triangle" else None
        self.rank_loss, self.koleo_loss = RankLoss(reduction="none"), KoLeoLoss()
        self.end_to_end = end_to_end
        self.straight_through = codec.quantizer.straight_through() if end_to_end or codec.decoder is not None else None

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
        points = self.catalyzer(triplets.flatten(0, 1))
        anchor, positive, negative = points.chunk(3)
        koleo = self.koleo_loss(anchor)
        reconstruction = koleo.new_zeros(())
        if self.straight_through is not None:
            quantized = self.straight_through(points)
            if self.decoder is not None:
                error = self.decoder(quantized) - triplets.flatten(0, 1)
                reconstruction = (error / self.decoder.scale).square().mean()
            if self.end_to_end:
                _, positive, negative = quantized.chunk(3)
                if self.codec.quantizer.symmetric:
                    anchor = quantized[: len(anchor)]
        if self.triangle_loss is not None:
            ranks = self.triangle_loss(torch.stack([anchor, positive, negative]), triplets)
        else:
            ranks = self.rank_loss(anchor, positive, negative)
        rank = ranks.mean()
        loss = self.loss.rank * rank + self.loss.koleo * koleo + self.loss.reconstruction * reconstruction
        with torch.no_grad():
            metrics = torch.stack([loss, rank, koleo, (ranks > 0).float().mean(), reconstruction])
            self._sum += metrics
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict({f"train/{name}": value for name, value in self._named(metrics)})
        return loss

    def _named(self, metrics: Tensor) -> Iterable[tuple[str, Tensor]]:
        return zip(METRICS if self.decoder is not None else METRICS[:-1], metrics, strict=False)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            means = {f"epoch/{name}": value for name, value in self._named(self._sum / self.trainer.num_training_batches)}
            self.log_dict(means, on_step=False, on_epoch=True, sync_dist=True)

    def validation_step(self, queries: Tensor, batch_idx: int) -> None:
        split = self.data.validation
        fit_quantizer(self.codec.quantizer, self.catalyzer, self.data.train)
        rows = measure(
            "validation", self.codec, split.base, queries.cpu().numpy(), split.ground_truth, sorted({0, self.rerank})
        )
        values = {f"val/recall_at_{k}": rows[-1].recall[k] for k in LOGGED_RANKS if k in rows[-1].recall}
        if self.rerank:
            values |= {f"val/latent_recall_at_{k}": rows[0].recall[k] for k in LOGGED_RANKS if k in rows[0].recall}
        if rows[0].error is not None:
            values["val/squared_error"] = rows[0].error
        self.log_dict(values, sync_dist=True)

    def configure_optimizers(self) -> Any:
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.optimization.build(self.parameters(), total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit_quantizer(quantizer: Quantizer, transform: torch.nn.Module, train: np.ndarray) -> None:
    """Fit `quantizer` to transformed training vectors; what is fixed learns nothing and costs nothing."""
    if type(quantizer).fit is not Quantizer.fit:
        rows = np.random.default_rng(0).permutation(len(train))[:MAX_TRAINING]
        quantizer.fit(embed(transform, train[rows], "embedding for the quantizer"))
