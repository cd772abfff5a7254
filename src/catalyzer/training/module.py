"""The Lightning modules: the base of all trainings, and the training of the catalyzer (section 3)."""

import inspect
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import measure
from catalyzer.nn import BatchNorm, mean_and_deviation
from catalyzer.training.checkpoints import checkpoint_files
from catalyzer.training.data import AnchorData
from catalyzer.training.schedule import Decay
from catalyzer.training.terms import KoLeo, LossTerm, Reconstruction, TripletRank, Triplets

log = logging.getLogger(__name__)

LOGGED_RANKS = (1, 10, 100)
CHANCE_RANK = 10  # by which a training is compared with chance
VALIDATED = {
    *(f"val/recall_at_{k}" for k in LOGGED_RANKS),
    *(f"val/latent_recall_at_{k}" for k in LOGGED_RANKS),
    "val/squared_error",
}
"""What is logged of a validation: the recall of the search that was asked for; where that reranks, also of its first stage, on
the sphere; and the error of decoded codes, where there is a decoder."""

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[..., LRScheduler]
SGD: MakeOptimizer = partial(torch.optim.SGD, lr=0.2, momentum=0.9)
COSINE: MakeScheduler = partial(Decay, decay="cosine")


class Training(LightningModule, ABC):
    """Base of the trainings: mining before each epoch, metrics, and a stop if the loss is no longer finite.

    Its trainer needs an `AnchorData` as datamodule. A subclass calls `note` in each step; noted metrics are logged as train/...
    every few steps, and as epoch/..., the mean over an epoch.

    Args:
        codec: codec whose transform mines neighbours on the sphere, and whose recall is measured on the validation split.
        optimizer: function that makes the optimizer of the parameters.
        scheduler: function that makes the schedule of an optimizer. One that takes `total_steps` gets this number and steps
            after each batch; any other steps after each epoch, Lightning's default.
        sync_batchnorm: whether batch norm sees the batches of all processes; see `BatchNorm`.
    """

    def __init__(self, codec: Codec, optimizer: MakeOptimizer, scheduler: MakeScheduler, sync_batchnorm: bool = False) -> None:
        super().__init__()
        self.codec, self.sync_batchnorm = codec, sync_batchnorm
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        # Not parameters, but of the training's state: names and sums of what was noted in an epoch, and the first step whose
        # loss was not finite.
        self._names: list[str] = []
        self._noted = 0  # how often; LBFGS takes several looks at a batch
        self._sum, self._broken = torch.zeros(0), torch.tensor(-1)
        self._clock, self._since, self._mining = time.perf_counter(), 0, 0.0
        self._best = -1.0  # validation recall

    @property
    def data(self) -> AnchorData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def batches(self) -> int:
        """Number of batches of an epoch on each device, with the trainer's limit."""
        limit = self.trainer.limit_train_batches
        steps = self.data.steps
        return min(steps, limit) if isinstance(limit, int) else int(steps * (1.0 if limit is None else limit))

    @property
    def steps(self) -> int:
        """Number of optimizer steps of an epoch; with accumulated gradients several batches make one step."""
        return -(-self.batches // self.trainer.accumulate_grad_batches)

    def on_fit_start(self) -> None:
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.synchronized = self.sync_batchnorm
        self.codec.transform.to(self.device)  # Lightning moves what is trained, which this need not be

    def on_train_epoch_end(self) -> None:
        self._best = max(self._best, float(self.trainer.callback_metrics.get(f"val/recall_at_{CHANCE_RANK}", -1.0)))

    def on_train_end(self) -> None:
        split = self.data.validation
        if split is None or self._best < 0 or not self.trainer.is_global_zero:
            return
        chance = CHANCE_RANK / len(split.base)
        if self._best <= chance + 3 * (chance * (1 - chance) / len(split.queries)) ** 0.5:  # standard errors
            log.warning(
                "validation R@%d is %.1f%%, and chance gives %.1f%%: nothing was learned; check the vectors, or lower "
                "learning_rate", CHANCE_RANK, 100 * self._best, 100 * chance,
            )  # fmt: skip

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
        self._noted = 0

    def note(self, values: Mapping[str, Tensor]) -> None:
        """Note the metrics of a step, scalars with the same names in each step; one of them is "loss"."""
        noted = torch.stack([torch.as_tensor(value, device=self.device).detach().float() for value in values.values()])
        if self._names != [*values]:
            self._names, self._sum = [*values], torch.zeros_like(noted)
        self._sum += noted
        self._noted += 1
        # Not torch.where, which copies a number to the GPU and waits.
        self._broken = self._broken.masked_fill((self._broken < 0) & ~values["loss"].isfinite(), self.global_step)
        logged = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logged:
            means = self.trainer.strategy.reduce(noted, reduce_op="mean")  # over all processes
            self.log_dict({f"train/{name}": mean for name, mean in zip(self._names, means, strict=True)}, sync_dist=False)
        if logged or self.device.type == "cpu":  # to look at a value on a GPU is to wait for it
            self.stop_if_broken()

    def stop_if_broken(self) -> None:
        """Raise `InvalidInput` if the loss is no longer a finite number."""
        if (step := int(self._broken)) < 0:
            return
        epoch, step_of_epoch = divmod(step, self.steps)
        batch = step_of_epoch * self.trainer.accumulate_grad_batches
        anchors = ", ".join(str(row) for row in self.data.anchors(batch)[:5].tolist())
        files = checkpoint_files(Path(self.trainer.default_root_dir))
        raise InvalidInput(
            f"the loss is no longer a finite number from step {step:,} on (epoch {epoch + 1}, batch {batch + 1:,} of "
            f"{self.batches:,}, whose first anchors are training vectors {anchors}); the last good checkpoint is "
            f"{files[0] if files else 'not there yet'}; lower learning_rate, or check these vectors"
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self.stop_if_broken()
            means = self._sum / self._noted
            plateau = self.lr_schedulers()
            if isinstance(plateau, ReduceLROnPlateau):
                loss = self.trainer.strategy.reduce(means[self._names.index("loss")], reduce_op="mean")
                plateau.step(float(loss))
            values: dict[str, Any] = {f"epoch/{name}": mean for name, mean in zip(self._names, means, strict=True)}
            values |= {f"epoch/{kind}_recall": share for kind, share in self.data.recall.items()}
            vectors = (batch_idx + 1 - self._since) * self.data.batch_size * self.trainer.world_size
            values["epoch/vectors_per_second"] = vectors / (time.perf_counter() - self._clock)
            values["epoch/mining_seconds"] = self._mining
            self.log_dict(values, on_step=False, on_epoch=True, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all(bool(weight.isfinite().all()) for weight in self.parameters()):  # by the gradient of a finite loss
            self._broken.fill_(self.global_step - 1)
        self.stop_if_broken()
        sums = dict(zip(self._names, self._sum.tolist(), strict=True))
        checkpoint["noted"], checkpoint["sums"], checkpoint["mining"] = self._noted, sums, self._mining

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._noted, sums, self._mining = (checkpoint[key] for key in ("noted", "sums", "mining"))
        self._names, self._sum = [*sums], torch.tensor([*sums.values()])

    def configure_optimizers(self) -> Any:
        weights = list(self.parameters())
        # All weights in one kernel; the CPU gains nothing by it.
        fused = {"fused": True} if weights[0].is_cuda and _takes(self.make_optimizer, "fused") else {}
        optimizer = self.make_optimizer(weights, **fused)
        # Not Lightning's estimate, which would make the loader before a checkpoint can say where it stopped.
        total = self.steps * int(self.trainer.max_epochs or 1)
        total = total if self.trainer.max_steps < 0 else min(total, self.trainer.max_steps)
        schedule, interval = self.schedule(optimizer, max(1, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval, "monitor": "epoch/loss"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # Lightning would step this one after the epoch's checkpoint, which then lacked it.
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def schedule(self, optimizer: Optimizer, total_steps: int) -> tuple[LRScheduler, str]:
        """The schedule of an optimizer for a number of steps, and whether it steps after each "step" or "epoch"."""
        if "total_steps" not in inspect.signature(self.make_scheduler).parameters:
            return self.make_scheduler(optimizer), "epoch"
        told = {"total_steps": total_steps} if _takes(self.make_scheduler, "total_steps") else {}
        return self.make_scheduler(optimizer, **told), "step"

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch, after `note`."""


def _takes(make: Callable[..., Any], name: str) -> bool:
    """Whether a callable takes an argument that is not bound yet."""
    given = make.keywords if isinstance(make, partial) else {}
    return name in inspect.signature(make).parameters and name not in given


class CatalyzerTraining(Training):
    """Trains a transform and, if the codec has one, a decoder; its trainer needs a `TripletData` as datamodule.

    Before the first step the networks learn the mean and scale of the training vectors (`Transform.adapt`). The metrics are the
    loss, each term by its name, and the other values that terms log.

    Args:
        codec: codec with the transform, the decoder or None, and the quantizer, through whose straight-through layer the
            decoder is trained. Its recall is measured on the validation split.
        terms: loss terms by name; by default equation 4 with λ = 0.02, and the decoder's error.
        optimizer: see `Training`; by default SGD with a learning rate of 0.2 and momentum.
        scheduler: see `Training`; by default a cosine.
        end_to_end: whether the rank loss uses quantized points, through a straight-through layer (section 4.2): positives and
            negatives and, if search quantizes queries too (`Quantizer.symmetric`), anchors. KoLeo spreads the unquantized
            points.
        rerank: number of candidates on the validation split; see `Codec.search`.
        sync_batchnorm: see `Training`.

    Raises:
        InvalidInput: a transform without parameters, a quantizer that cannot be trained through although that is needed, or a
            term that is not a `LossTerm`.

    >>> from catalyzer.nn import Catalyzer
    >>> from catalyzer.quantizers import LatticeQuantizer
    >>> training = CatalyzerTraining(Codec(Catalyzer(d_in=128, d_out=24), LatticeQuantizer(dim=24, bits=64)))
    >>> list(training.terms)
    ['koleo', 'rank']
    """

    def __init__(
        self,
        codec: Codec,
        terms: Mapping[str, LossTerm] | None = None,
        *,
        optimizer: MakeOptimizer = SGD,
        scheduler: MakeScheduler = COSINE,
        end_to_end: bool = False,
        rerank: int = 0,
        sync_batchnorm: bool = False,
    ) -> None:
        super().__init__(codec, optimizer, scheduler, sync_batchnorm)
        if not codec.transform.is_trained:
            raise InvalidInput(f"{type(codec.transform).__name__} has no parameters to train; its adapt learns everything")
        if terms is None:
            terms = {"koleo": KoLeo(), "rank": TripletRank(), "reconstruction": Reconstruction()}
        for name, term in terms.items():
            if not isinstance(term, LossTerm):
                raise InvalidInput(f"the term {name} of the loss must be derived from LossTerm, got {type(term).__name__}")
            if name == "loss" or "." in name or hasattr(nn.ModuleDict, name):
                raise InvalidInput(f"{name} cannot be the name of a loss term; choose another")
        self.transform, self.decoder = codec.transform, codec.decoder  # here too, so that Lightning finds their weights
        self.terms = nn.ModuleDict(
            {name: term for name, term in terms.items() if codec.decoder is not None or not term.needs_decoder}
        )
        self.end_to_end, self.rerank = end_to_end, rerank
        self.straight_through = codec.quantizer.straight_through() if end_to_end or codec.decoder is not None else None
        self._deviation = torch.ones(())
        self._fitted_at = -1  # the step whose transform a learned quantizer was fitted to

    def setup(self, stage: str) -> None:
        if stage == "fit":
            for network in (self.transform, self.decoder):
                if network is not None:
                    network.adapt(self.data.train)
            if self.decoder is not None:
                self._deviation = mean_and_deviation(self.data.train)[1]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._deviation = self._deviation.to(self.device)  # once, since a copy to a GPU waits for all that it has to do

    def training_step(self, triplets: Tensor, batch_idx: int) -> Tensor:
        values = self.losses(triplets)
        self.note(values)
        return values["loss"]

    def losses(self, triplets: Tensor) -> dict[str, Tensor]:
        """What is minimized, as "loss", each term by its name, and what the terms log besides: scalars.

        Args:
            triplets: `(3, n, d)` float32: anchors, positives and negatives.
        """
        # One pass for all three: batch norm sees anchors, positives and negatives alike, and the GPU is kept busy.
        flat = self.transform(triplets.flatten(0, 1)).float()  # also a network's that ends in bfloat16
        points = compared = flat.chunk(3)
        decoded = None
        if self.straight_through is not None:
            quantized = self.straight_through(flat)
            if self.decoder is not None:
                decoded = self.decoder(quantized).unflatten(0, (3, -1))
            if self.end_to_end:
                compared = quantized.chunk(3)
                if not self.codec.quantizer.symmetric:
                    compared = (points[0], *compared[1:])
        step = Triplets(triplets, points, compared, decoded, self._deviation)
        values: dict[str, Tensor] = {}
        more: dict[str, Tensor] = {}
        loss = flat.new_zeros(())
        for name, term in self.terms.items():
            assert isinstance(term, LossTerm)
            result = term(step)
            result = result if isinstance(result, dict) else {"loss": result}
            values[name] = result["loss"]
            for key in result.keys() - {"loss"}:  # of a name that is taken, with the term's before it
                more[f"{name}_{key}" if key in more or key in self.terms else key] = result[key]
            loss = loss + term.weight * values[name]
        return {"loss": loss, **values, **more}

    def validation_step(self, queries: Tensor, batch_idx: int) -> None:
        split = self.data.validation
        assert split is not None
        if self._fitted_at != self.global_step:
            self.codec.fit(self.data.train)
            self._fitted_at = self.global_step
        # A copy knows nothing yet that it would have kept of the decoder as it was.
        codec = replace(self.codec)
        rows = measure("validation", codec, split.base, queries.cpu().numpy(), split.ground_truth, sorted({0, self.rerank}))
        values = {f"val/recall_at_{k}": rows[-1].recall[k] for k in LOGGED_RANKS if k in rows[-1].recall}
        if self.rerank:
            values |= {f"val/latent_recall_at_{k}": rows[0].recall[k] for k in LOGGED_RANKS if k in rows[0].recall}
        if rows[0].error is not None:
            values["val/squared_error"] = rows[0].error
        self.log_dict(values, sync_dist=True)
