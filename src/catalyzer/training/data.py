"""Anchors and their neighbours. In section 3.2's triplets positives are near in the input space, negatives on the sphere."""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

import catalyzer
from catalyzer.datasets import Split
from catalyzer.errors import InvalidInput
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.vectors import fingerprint
from catalyzer.neighbors import METHODS, Method, graph_recall, knn_graph
from catalyzer.nn import Transform, embed
from catalyzer.outliers import without_outliers
from catalyzer.parts import Part

log = logging.getLogger(__name__)

NEGATIVE_NPROBE = 8  # negatives only have to be hard, not to be the exact k-th; positives are mined once and carefully


class Miner(Part):
    """Finds the neighbours in triplets; see `catalyzer.neighbors.knn_graph` for the methods.

    Args:
        positives: method for neighbours in the input space, which are found once.
        negatives: method for neighbours on the sphere, which are found in every epoch.

    Raises:
        InvalidInput: another method.

    >>> Miner("exact").find_positives(np.eye(4, dtype=np.float32), k=1, rows=slice(0, 2)).shape
    (2, 1)
    """

    def __init__(self, positives: Method = "auto", negatives: Method = "auto") -> None:
        for method in (positives, negatives):
            if method not in METHODS:
                raise InvalidInput(f"expected one of {', '.join(METHODS)} to mine neighbours; got {method}")
        self.positives, self.negatives = positives, negatives

    def find_positives(self, x: np.ndarray, k: int, rows: slice) -> np.ndarray:
        """The k nearest other vectors of some rows of `(n, d)` training vectors: `(rows, k)` integers."""
        return knn_graph(x, k, self.positives, description="mining positives", rows=rows)

    def find_negatives(self, latent: np.ndarray, k: int, rows: slice, description: str = "mining negatives") -> np.ndarray:
        """The k nearest other points of some rows of `(n, d_out)` points on the sphere: `(rows, k)` integers."""
        return knn_graph(latent, k, self.negatives, NEGATIVE_NPROBE, description, rows)


class Batches:
    """The numbers of an epoch's batches; after `load_state_dict`, those that remain.

    >>> batches = Batches(4)
    >>> numbers = iter(batches)
    >>> next(numbers), next(numbers), batches.state_dict()
    (0, 1, {'done': 2})
    >>> resumed = Batches(4)
    >>> resumed.load_state_dict({"done": 2})
    >>> list(resumed), list(resumed)
    ([2, 3], [0, 1, 2, 3])
    """

    def __init__(self, n: int) -> None:
        self.n, self.done = n, 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        for number in range(self.done % self.n, self.n):  # all done: the next epoch
            self.done = number + 1
            yield number

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


class AnchorData(LightningDataModule, ABC):
    """Batches of anchors with their mined neighbours; each training vector is an anchor once per epoch.

    The loader yields only batch numbers. The rows of batch i are looked up in the tables of the epoch, which depend on seed,
    epoch and weights alone. Vectors and tables are on the training's device. So a resumed run gets the batches of an
    uninterrupted one, and several processes divide an epoch without overlap: step i of all processes has the anchors of step i
    of one process with the joined batch.

    Args:
        train: `(n, d)` training vectors, kept in their dtype; outliers are left out, with a warning.
        validation: split for the recall after each epoch; None measures none.
        batch_size: anchors per batch, on each device.
        k_pos: number of nearest neighbours in the input space that are found for each vector.
        k_neg: number of nearest neighbours among the mapped vectors.
        seed: seed of the order and of what is drawn.
        miner: finds the neighbours.
        cache: stores the neighbours in the input space; by default in memory.

    Raises:
        InvalidInput: fewer training vectors than k_pos, k_neg or the batches of all processes need.
    """

    def __init__(
        self,
        train: np.ndarray,
        validation: Split | None = None,
        *,
        batch_size: int = 128,
        k_pos: int = 10,
        k_neg: int = 10,
        seed: int = 0,
        miner: Miner | None = None,
        cache: ArrayCache | None = None,
    ) -> None:
        super().__init__()
        train = without_outliers(train)
        needed = max(k_pos + 1, k_neg + 1, batch_size)
        if len(train) < needed:
            raise InvalidInput(
                f"{len(train):,} training vectors are too few for k_pos = {k_pos}, k_neg = {k_neg} and batch_size = "
                f"{batch_size}, which need {needed:,}; lower them or give more vectors"
            )
        self.train, self.validation = train, validation
        self.batch_size, self.k_pos, self.k_neg = batch_size, k_pos, k_neg
        self.seed, self.miner, self.cache = seed, miner or Miner(), cache or ArrayCache()
        self.recall: dict[str, float] = {}
        """Share of the true neighbours that were found, of a sample, by the kind of neighbour."""

    @property
    def processes(self) -> tuple[int, int]:
        """The number of this process and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def device(self) -> torch.device:
        """That batches are made on."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def prepare_data(self) -> None:
        """Compute the validation ground truth, which every process then loads from the cache."""
        if self.validation is not None:
            _ = self.validation.ground_truth

    def setup(self, stage: str) -> None:
        """Find the positives, or load them from the cache.

        Raises:
            InvalidInput: fewer training vectors than a batch of all processes has.
        """
        if not self.steps:
            world = self.processes[1]
            raise InvalidInput(
                f"{len(self.train):,} training vectors are too few for a batch of batch_size = {self.batch_size} on each of "
                f"{world} devices; lower batch_size"
            )
        # Lightning flattens loaders by a call that newer versions of torch deprecate.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        # Torch warns of an array that is read-only.
        self.vectors = torch.from_numpy(np.require(self.train, requirements="W")).to(self.device)
        positives = self._positives()
        self.recall["positives"] = graph_recall(self.train, positives)
        log.info("positives: mined with recall@%d of %.1f%%", self.k_pos, 100 * self.recall["positives"])
        self.positives = torch.from_numpy(positives).to(self.device)

    def _positives(self) -> np.ndarray:
        # The version, since approximate neighbours depend on how this version searches.
        miner = f"{type(self.miner).__module__}.{type(self.miner).__qualname__}", sorted(self.miner.arguments.items())
        key = (fingerprint(self.train, "checking training vectors"), self.k_pos, miner, catalyzer.__version__)

        def mine(rows: slice) -> np.ndarray:
            return self.miner.find_positives(self.train, self.k_pos, rows).astype(np.int32)

        # Machines may have caches of their own, and one that has to mine alone would wait for the others for ever.
        if self.agreed(self.cache.has("positives", key)):
            return self.cache.get("positives", key, lambda: mine(slice(None)))
        found = self.shared_out(mine)
        return self.cache.get("positives", key, lambda: found)

    def agreed(self, here: bool) -> bool:
        """Whether `here` is true in all processes."""
        return self.trainer.strategy.reduce_boolean_decision(here, all=True) if self.trainer else here

    def shared_out(self, make: Callable[[slice], np.ndarray]) -> np.ndarray:
        """The output of `make` for all training vectors, where each process computes the rows of its share."""
        rank, world = self.processes
        shares = [slice(len(self.train) * i // world, len(self.train) * (i + 1) // world) for i in range(world)]
        mine = make(shares[rank])
        if world == 1:
            return mine
        sizes = [share.stop - share.start for share in shares]
        padded = np.zeros((max(sizes), *mine.shape[1:]), mine.dtype)  # all processes give arrays of one size
        padded[: len(mine)] = mine
        given = torch.from_numpy(padded).to(self.device)
        parts = [torch.empty_like(given) for _ in range(world)]
        torch.distributed.all_gather(parts, given)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).cpu().numpy()

    order: Tensor
    """Row numbers of the anchors, in an epoch's order."""

    @abstractmethod
    def mine(self, transform: Transform, epoch: int) -> None:
        """Set the order and the neighbours of an epoch; all processes of a distributed run have the same.

        Args:
            transform: f, on any device.
            epoch: number of the epoch, from 0.
        """

    @abstractmethod
    def batch(self, anchors: Tensor) -> Any:
        """The batch of `training_step` for the anchors of these row numbers."""

    @property
    def steps(self) -> int:
        """Number of batches of an epoch, without an incomplete one."""
        return len(self.train) // (self.batch_size * self.processes[1])

    def train_dataloader(self) -> Batches:
        """Numbers of batches, from which `on_after_batch_transfer` makes batches."""
        return Batches(self.steps)

    def val_dataloader(self) -> DataLoader | list:
        """All validation queries in one batch."""
        if self.validation is None:
            # Lightning takes loaders without batches for a mistake; here they mean that no recall is measured.
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
            return []
        queries = torch.from_numpy(np.require(self.validation.queries, requirements="W"))
        return DataLoader([queries], batch_size=None)  # type: ignore[arg-type]

    def anchors(self, number: int) -> Tensor:
        """Row numbers of the anchors in this process's share of a batch."""
        rank, world = self.processes
        size = self.batch_size * world
        return self.order[number * size : (number + 1) * size][rank::world]

    def on_after_batch_transfer(self, batch: Tensor | int, dataloader_idx: int) -> Any:
        """Make a training batch from its number; validation queries stay the same."""
        return batch if isinstance(batch, Tensor) else self.batch(self.anchors(batch))


class TripletData(AnchorData):
    """Triplets: an anchor, one of its k_pos neighbours in the input space, and the k_neg-th nearest neighbour of its f(x)."""

    def mine(self, transform: Transform, epoch: int) -> None:
        """Set order, positives and negatives of an epoch; see `AnchorData.mine`."""
        latent = self.shared_out(lambda rows: embed(transform, self.train[rows], "mining negatives: embedding"))

        def search(rows: slice) -> np.ndarray:
            graph = self.miner.find_negatives(latent, self.k_neg, rows)
            self.recall["negatives"] = graph_recall(latent, graph, rows.start)
            return graph[:, -1].astype(np.int32)

        self.negative = torch.from_numpy(self.shared_out(search)).to(self.device)
        self._draw(epoch)

    def _draw(self, epoch: int) -> None:
        self.epoch = epoch
        random, n = np.random.default_rng((self.seed, epoch)), len(self.train)
        chosen = torch.from_numpy(random.integers(self.k_pos, size=n)).to(self.device)
        self.positive = self.positives.gather(1, chosen[:, None])[:, 0]
        self.order = torch.from_numpy(random.permutation(n)).to(self.device)

    def batch(self, anchors: Tensor) -> Tensor:
        """`(3, len(anchors), d)` float32: anchors, their positives, their negatives."""
        rows = torch.stack([anchors, self.positive[anchors].long(), self.negative[anchors].long()])
        return self.vectors[rows].float()

    def state_dict(self) -> dict[str, Any]:
        """The epoch and its negatives, since the weights that mined them have changed by the middle of the epoch."""
        return {"epoch": self.epoch, "negative": self.negative.cpu(), "recall": self.recall["negatives"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.negative, self.recall["negatives"] = state_dict["negative"].to(self.device), state_dict["recall"]
        self._draw(state_dict["epoch"])
