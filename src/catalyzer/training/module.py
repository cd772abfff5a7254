"""The Lightning module: losses of section 3, schedule of section 5.2, recall on the validation split."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from catalyzer.evaluation import measure
from catalyzer.nn import Catalyzer, KoLeoLoss, RankLoss, StraightThrough, embed
from catalyzer.quantizers import MAX_TRAINING, LatticeQuantizer, Quantizer
from catalyzer.training.data import TripletData

METRICS = ("loss", "rank", "koleo", "violated")
"""Logged as train/... every few steps and as epoch/..., the mean over an epoch; violated is the share of triplets whose
negative is nearer than the positive."""


@dataclass(frozen=True)
class Optimization:
    """What section 5.2 sets: SGD with momentum, and a learning rate that falls in steps.

    Attributes:
        learning_rate: at the start.
        momentum: of SGD.
        decay: pairs (share of training done, factor on the learning rate from there on), in order.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    decay: tuple[tuple[float, float], ...] = ((80 / 300, 0.5), (120 / 300, 0.1))

    def factor(self, share: float) -> float:
        """The factor on the learning rate when `share` of the training is done.

        >>> [Optimization().factor(epoch / 300) for epoch in (0, 79, 80, 120)]
        [1.0, 1.0, 0.5, 0.1]
        """
        return ([1.0] + [factor for start, factor in self.decay if share >= start])[-1]


class CatalyzerTraining(LightningModule):
    """Trains a catalyzer by L_rank + λ L_KoLeo (equation 4); its trainer needs a `TripletData` as datamodule.

    Args:
        catalyzer: the network, fitted to the input's scale.
        quantizer: what recall is measured with on the validation split.
        lambda_: weight of the KoLeo loss.
        optimization: optimizer and schedule.
        end_to_end: quantize positives and negatives in the rank loss through a straight-through layer (section 4.2).
            Anchors play the query, which search does not quantize either, and KoLeo spreads the unquantized points.
    """

    def __init__(
        self,
        catalyzer: Catalyzer,
        quantizer: Quantizer,
        lambda_: float,
        optimization: Optimization,
        end_to_end: bool = False,
    ) -> None:
        super().__init__()
        self.catalyzer, self.quantizer = catalyzer, quantizer
        self.lambda_, self.optimization = lambda_, optimization
        self.rank_loss, self.koleo_loss = RankLoss(reduction="none"), KoLeoLoss()
        self.quantize: StraightThrough | None = None
        if end_to_end:
            assert isinstance(quantizer, LatticeQuantizer)
            self.quantize = StraightThrough(quantizer.lattice)

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
        settings = self.optimization
        optimizer = torch.optim.SGD(self.catalyzer.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: settings.factor(step / total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit_quantizer(quantizer: Quantizer, transform: torch.nn.Module, train: np.ndarray) -> None:
    """Fit `quantizer` to transformed training vectors; what is fixed learns nothing and costs nothing."""
    if type(quantizer).fit is not Quantizer.fit:
        rows = np.random.default_rng(0).permutation(len(train))[:MAX_TRAINING]
        quantizer.fit(embed(transform, train[rows], "embedding for the quantizer"))
