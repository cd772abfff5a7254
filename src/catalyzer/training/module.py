"""The Lightning module: losses of section 3, schedule of section 5.2, recall on the validation split."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import measure
from catalyzer.nn import BatchNorm, KoLeoLoss, RankLoss, TriangleLoss, rows_of_all_processes
from catalyzer.training.checkpoints import checkpoint_files
from catalyzer.training.data import AnchorData
from catalyzer.training.metrics_file import log_at_once

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
        weights = list(parameters)
        fused = weights[0].is_cuda  # all weights in one kernel; the CPU gains nothing by it
        optimizer: Optimizer
        if self.optimizer == "adamw":
            # Weight decay would be one more thing to tune, and batch norm makes most of these weights free of scale.
            optimizer = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=0.0, fused=fused)
        else:
            optimizer = torch.optim.SGD(weights, lr=self.learning_rate, momentum=self.momentum, fused=fused)
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
        koleo_scope: "local" spreads the anchors of each process's batch, "global" those of all processes together.
    """

    koleo: float
    rank: float = 1.0
    reconstruction: float = 1.0
    rank_loss: Literal["triplet", "triangle"] = "triplet"
    koleo_scope: Literal["local", "global"] = "local"


class Training(LightningModule):
    """What the trainings share: mining before each epoch, metrics without a synchronisation a step, and a stop at NaN.

    Its trainer needs an `AnchorData` as datamodule. A subclass calls `note` in each step.

    Args:
        metrics: names of what `note` takes, the loss first. They are logged as train/... every few steps and as epoch/..., the
            mean over an epoch.
        codec: with its transform neighbours on the sphere are mined, and by it recall is measured on the validation split.
        optimization: optimizer and schedule.
        sync_batchnorm: whether batch norm sees the batches of all processes; see `BatchNorm`.
    """

    def __init__(self, metrics: Sequence[str], codec: Codec, optimization: Optimization, sync_batchnorm: bool = False) -> None:
        super().__init__()
        self.metrics, self.codec, self.optimization, self.sync_batchnorm = metrics, codec, optimization, sync_batchnorm
        # Not parameters, but of the training's state: sums over the epoch, and the first step whose loss was not finite.
        self._sum, self._broken = torch.zeros(len(metrics)), torch.tensor(-1)
        self._clock, self._since, self._mining = time.perf_counter(), 0, 0.0

    @property
    def data(self) -> AnchorData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.synchronized = self.sync_batchnorm
        self.codec.transform.to(self.device)  # Lightning moves what is trained, which this need not be

    def on_train_start(self) -> None:
        self._sum, self._broken = self._sum.to(self.device), self._broken.to(self.device)  # they may be a checkpoint's
        self._clock, self._since = time.perf_counter(), self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def on_train_epoch_start(self) -> None:
        start = time.perf_counter()
        self.data.mine(self.codec.transform, self.current_epoch)
        self._clock, self._since = time.perf_counter(), 0
        self._mining = self._clock - start
        # Summed here rather than by Lightning, whose bookkeeping for each metric and step costs a fifth of a CPU step.
        self._sum.zero_()

    def note(self, values: Tensor) -> None:
        """Take the metrics of a step, the loss first."""
        values = values.detach()
        self._sum += values
        self._broken = torch.where((self._broken < 0) & ~values[0].isfinite(), self.global_step, self._broken)
        logged = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logged:
            means = self.trainer.strategy.reduce(values, reduce_op="mean").tolist()  # over all processes
            log_at_once(
                self.trainer,
                {f"train/{name}": mean for name, mean in zip(self.metrics, means, strict=True)},
                self.global_step,
            )
        if logged or self.device.type == "cpu":  # to look at a value on a GPU is to wait for it
            self.stop_if_broken()

    def stop_if_broken(self) -> None:
        """Raise `InvalidInput` where the loss is no longer a finite number."""
        if (step := int(self._broken)) < 0:
            return
        epoch, batch = divmod(step, self.data.steps)
        anchors = ", ".join(str(row) for row in self.data.anchors(batch)[:5].tolist())
        files = checkpoint_files(Path(self.trainer.default_root_dir))
        raise InvalidInput(
            f"the loss is no longer a finite number from step {step:,} on (epoch {epoch + 1}, batch {batch + 1:,} of "
            f"{self.data.steps:,}, whose first anchors are training vectors {anchors}); the last good checkpoint is "
            f"{files[0] if files else 'not there yet'}; lower learning_rate, or look at these vectors"
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self.stop_if_broken()
            means = self._sum / self.trainer.num_training_batches
            values: dict[str, Any] = {f"epoch/{name}": mean for name, mean in zip(self.metrics, means, strict=True)}
            values |= {f"epoch/{kind}_recall": share for kind, share in self.data.recall.items()}
            vectors = (batch_idx + 1 - self._since) * self.data.batch_size * self.trainer.world_size
            values["epoch/vectors_per_second"] = vectors / (time.perf_counter() - self._clock)
            values["epoch/mining_seconds"] = self._mining
            self.log_dict(values, on_step=False, on_epoch=True, sync_dist=True, logger=False)  # but by `EpochReport`

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all(bool(weight.isfinite().all()) for weight in self.parameters()):  # by the gradient of a finite loss
            self._broken.fill_(self.global_step - 1)
        self.stop_if_broken()
        checkpoint["epoch_sum"], checkpoint["epoch_mining"] = self._sum.cpu(), self._mining

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sum, self._mining = checkpoint["epoch_sum"], checkpoint["epoch_mining"]

    def configure_optimizers(self) -> Any:
        # Not Lightning's estimate, which would make the loader before a checkpoint can say where it stopped.
        total = self.data.steps * int(self.trainer.max_epochs or 1)
        optimizer, schedule = self.optimization.build(self.parameters(), total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class CatalyzerTraining(Training):
    """Trains a catalyzer, and a decoder with it where one is given; its trainer needs a `TripletData` as datamodule.

    The metrics are loss, rank, koleo, violated, the share of comparisons that come out wrong, such as a negative nearer than
    the positive, and with a decoder reconstruction.

    Args:
        codec: catalyzer, fitted to the input's scale, decoder or None, and the quantizer that the decoder reads through a
            straight-through layer. With it recall is measured on the validation split.
        loss: what is minimized.
        optimization: optimizer and schedule.
        end_to_end: quantize in the rank loss, through a straight-through layer (section 4.2): positives and negatives,
            and where search quantizes queries as well (`Quantizer.symmetric`), anchors too, which play the query. KoLeo
            spreads the unquantized points.
        rerank: of the search on the validation split; see `Codec.search`.
        sync_batchnorm: see `Training`.
    """

    def __init__(
        self,
        codec: Codec,
        loss: Loss,
        optimization: Optimization,
        end_to_end: bool = False,
        rerank: int = 0,
        sync_batchnorm: bool = False,
    ) -> None:
        metrics = ["loss", "rank", "koleo", "violated", "reconstruction"][: 4 if codec.decoder is None else 5]
        super().__init__(metrics, codec, optimization, sync_batchnorm)
        self.loss, self.rerank = loss, rerank
        self.catalyzer, self.decoder = codec.transform, codec.decoder  # here too, so that Lightning finds their weights
        self.triangle_loss = TriangleLoss() if loss.rank_loss == "triangle" else None
        self.rank_loss, self.koleo_loss = RankLoss(reduction="none"), KoLeoLoss()
        self.end_to_end = end_to_end
        self.straight_through = codec.quantizer.straight_through() if end_to_end or codec.decoder is not None else None

    def training_step(self, triplets: Tensor, batch_idx: int) -> Tensor:
        # One pass for all three: batch norm sees anchors, positives and negatives alike, and the GPU is kept busy.
        points = self.catalyzer(triplets.flatten(0, 1))
        anchor, positive, negative = points.chunk(3)
        koleo = self.koleo_loss(self._spread(anchor))
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
        violated = (ranks > 0).float().mean()
        self.note(torch.stack([loss, rank, koleo, violated, reconstruction][: len(self.metrics)]))
        return loss

    def _spread(self, anchor: Tensor) -> Tensor:
        if self.loss.koleo_scope == "local" or self.trainer.world_size == 1:
            return anchor
        # Each process has the loss of all points. Its gradient reaches a point from every process, hence as often as there are
        # processes, whose gradients are then averaged: so it is right.
        return rows_of_all_processes(anchor)

    def validation_step(self, queries: Tensor, batch_idx: int) -> None:
        split = self.data.validation
        self.codec.fit(self.data.train)
        rows = measure(
            "validation", self.codec, split.base, queries.cpu().numpy(), split.ground_truth, sorted({0, self.rerank})
        )
        values = {f"val/recall_at_{k}": rows[-1].recall[k] for k in LOGGED_RANKS if k in rows[-1].recall}
        if self.rerank:
            values |= {f"val/latent_recall_at_{k}": rows[0].recall[k] for k in LOGGED_RANKS if k in rows[0].recall}
        if rows[0].error is not None:
            values["val/squared_error"] = rows[0].error
        self.log_dict(values, sync_dist=True)
