"""Anchors and their neighbours. In section 3.2's triplets positives are near in the input space, negatives on the sphere."""

import logging
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

import catalyzer
from catalyzer.cache import ArrayCache
from catalyzer.datasets import Split
from catalyzer.errors import InvalidInput
from catalyzer.neighbors import knn_graph
from catalyzer.nn import embed
from catalyzer.vectors import fingerprint

log = logging.getLogger(__name__)

NEGATIVE_NPROBE = 8  # negatives only have to be hard, not to be the exact k-th; positives are mined once and carefully


class AnchorData(LightningDataModule, ABC):
    """Serves every training vector once an epoch as an anchor, batch by batch, with neighbours that were mined for it.

    A batch is drawn where it is used: the loader only counts batches, and what batch i is made of is looked up in the tables
    of the epoch, which depend on seed, epoch and weights alone. A resumed run therefore sees what the run it goes on from
    would have seen.

    Args:
        train: `(n, d)` training vectors, kept in their dtype.
        validation: where recall is measured between epochs.
        batch_size: anchors a batch, on each device.
        k_pos: how many nearest neighbours in the input space are found for each.
        k_neg: how many among the mapped vectors.
        miner: `method` of `catalyzer.neighbors.knn_graph`.
        seed: decides what is drawn.
        cache: keeps the neighbours in the input space.

    Raises:
        InvalidInput: fewer training vectors than k_pos, k_neg or the batch size ask for.
    """

    def __init__(
        self,
        train: np.ndarray,
        validation: Split,
        *,
        batch_size: int,
        k_pos: int,
        k_neg: int,
        miner: str,
        seed: int,
        cache: ArrayCache,
    ) -> None:
        super().__init__()
        needed = max(k_pos + 1, k_neg + 1, batch_size)
        if len(train) < needed:
            raise InvalidInput(
                f"{len(train):,} training vectors are too few for k_pos = {k_pos}, k_neg = {k_neg} and batch_size = "
                f"{batch_size}, which need {needed:,}; lower them or give more vectors"
            )
        self.train, self.validation = train, validation
        self.batch_size, self.k_pos, self.k_neg = batch_size, k_pos, k_neg
        self.miner, self.seed, self.cache = miner, seed, cache

    def prepare_data(self) -> None:
        """Find the positives and the validation ground truth; they are cached for `setup`, which every process runs."""
        self._positives()
        _ = self.validation.ground_truth

    def setup(self, stage: str) -> None:
        """Load what `prepare_data` found."""
        self.vectors = torch.from_numpy(self.train)
        self.positives = self._positives()

    def _positives(self) -> np.ndarray:
        # The version, since approximate neighbours depend on how this version searches.
        key = (fingerprint(self.train, "checking training vectors"), self.k_pos, self.miner, catalyzer.__version__)
        return self.cache.get(
            "positives", key, lambda: knn_graph(self.train, self.k_pos, self.miner, description="mining positives")
        )

    order: Tensor
    """Row numbers of the anchors, in an epoch's order."""

    @abstractmethod
    def mine(self, transform: nn.Module, epoch: int) -> float:
        """Set the order of an epoch and the neighbours in it; every process of a distributed run finds the same.

        Args:
            transform: f, on whatever device.
            epoch: counts from 0.

        Returns:
            Seconds it took.
        """

    @abstractmethod
    def batch(self, anchors: Tensor) -> Any:
        """What `training_step` gets for the anchors of these row numbers."""

    def train_dataloader(self) -> DataLoader:
        """Numbers of batches; incomplete ones are left out."""
        world = self.trainer.world_size if self.trainer else 1
        return DataLoader(range(len(self.train) // (self.batch_size * world)), batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        """All validation queries in one batch."""
        return DataLoader([torch.from_numpy(self.validation.queries)], batch_size=None)  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Tensor | int, dataloader_idx: int) -> Any:
        """Turn the number of a training batch into what it is made of."""
        if isinstance(batch, Tensor) and batch.ndim:  # validation queries
            return batch
        assert self.trainer is not None
        mine = self.order[self.trainer.global_rank :: self.trainer.world_size]
        made = self.batch(mine[int(batch) * self.batch_size :][: self.batch_size])
        return move_data_to_device(made, self.trainer.strategy.root_device)


class TripletData(AnchorData):
    """Triplets: an anchor, one of its k_pos neighbours in the input space, and the k_neg-th nearest neighbour of its f(x)."""

    def mine(self, transform: nn.Module, epoch: int) -> float:
        """Set order, positives and negatives of an epoch; see `AnchorData.mine`."""
        start = time.perf_counter()
        random = np.random.default_rng((self.seed, epoch))
        n = len(self.train)
        chosen = random.integers(self.k_pos, size=n)
        latent = embed(transform, self.train, "mining negatives: embedding")
        graph = knn_graph(latent, self.k_neg, self.miner, NEGATIVE_NPROBE, "mining negatives: searching")
        self.order = torch.from_numpy(random.permutation(n))
        self.positive = torch.from_numpy(self.positives[np.arange(n), chosen])
        self.negative = torch.from_numpy(graph[:, -1].copy())
        return time.perf_counter() - start

    def batch(self, anchors: Tensor) -> Tensor:
        """`(3, len(anchors), d)` float32: anchors, their positives, their negatives."""
        rows = torch.stack([anchors, self.positive[anchors], self.negative[anchors]])
        return self.vectors[rows].float()
