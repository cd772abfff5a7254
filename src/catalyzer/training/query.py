"""A network of the queries' own, trained when the codes are fixed; the paper maps queries and base by the same f.

A query is compared with quantized points, and as it is not quantized itself it need not lie where f would put it as a vector
of the base. So a copy of f is trained on, for queries alone, to rank the quantized points as the input space ranks their
vectors. Codes and the cost of a search stay as they are.
"""

import copy
import time
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from catalyzer.codec import Codec
from catalyzer.evaluation import measure
from catalyzer.neighbors import knn_graph
from catalyzer.nn import ListNetLoss, embed
from catalyzer.quantizers import Quantizer
from catalyzer.training.data import NEGATIVE_NPROBE, AnchorData
from catalyzer.training.module import LOGGED_RANKS, Optimization

COMPETITORS = 48  # nearest on the sphere, with which a query's neighbours compete
OPTIMIZATION = Optimization("adamw", learning_rate=1e-3, decay="cosine", warmup=0.1)


class QueryData(AnchorData):
    """Lists: an anchor that plays the query, its k_pos neighbours in the input space and its k_neg on the sphere, quantized.

    Args:
        quantizer: fitted.
        options: of `AnchorData`.
    """

    def __init__(self, *, quantizer: Quantizer, **options: Any) -> None:
        super().__init__(**options)
        self.quantizer = quantizer
        self.lists: Tensor | None = None

    def mine(self, transform: nn.Module, epoch: int) -> float:
        """Set the order of an epoch and, in the first, quantized points and lists; see `AnchorData.mine`."""
        start = time.perf_counter()
        if self.lists is None:
            latent = embed(transform, self.train, "mining competitors: embedding")
            self.points = torch.from_numpy(self.quantizer.decode(self.quantizer.encode(latent)))
            graph = knn_graph(latent, self.k_neg, self.miner, NEGATIVE_NPROBE, "mining competitors: searching")
            lists = np.sort(np.concatenate([self.positives, graph], axis=1), axis=1)
            self.lists = torch.from_numpy(lists)
        self.order = torch.from_numpy(np.random.default_rng((self.seed, epoch)).permutation(len(self.train)))
        return time.perf_counter() - start

    def batch(self, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors `(n, d)`, the quantized points of their lists `(n, m, d_out)`, distances in the input `(n, m)`, all float32.

        A member that a list has twice is at distance inf the second time.
        """
        assert self.lists is not None
        lists, vectors = self.lists[anchors], self.vectors[anchors].float()
        distances = torch.linalg.vector_norm(self.vectors[lists].float() - vectors[:, None], dim=2)
        distances[:, 1:].masked_fill_(lists[:, 1:] == lists[:, :-1], torch.inf)
        return vectors, self.points[lists], distances


class QueryTraining(LightningModule):
    """Trains the query network; its trainer needs a `QueryData` as datamodule.

    Args:
        codec: trained, with a fitted quantizer.
    """

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.query = copy.deepcopy(codec.transform).train()  # as what is trained already is not
        self.codec = Codec(codec.transform, codec.quantizer, query=self.query)
        self.list_loss = ListNetLoss()

    @property
    def data(self) -> QueryData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def on_train_epoch_start(self) -> None:
        self.codec.transform.to(self.device)  # Lightning moves what is trained
        self.log("epoch/mining_seconds", self.data.mine(self.codec.transform, self.current_epoch))
        self._sum = torch.zeros((), device=self.device)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        vectors, points, distances = batch
        squared = (points - self.query(vectors)[:, None]).square().sum(2)
        loss = self.list_loss(squared, distances).mean()
        self._sum += loss.detach()
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self.log("epoch/loss", self._sum / self.trainer.num_training_batches, on_step=False, on_epoch=True, sync_dist=True)

    def validation_step(self, queries: Tensor, batch_idx: int) -> None:
        split = self.data.validation
        row = measure("validation", self.codec, split.base, queries.cpu().numpy(), split.ground_truth)[0]
        self.log_dict({f"val/recall_at_{k}": row.recall[k] for k in LOGGED_RANKS if k in row.recall}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = OPTIMIZATION.build(self.query.parameters(), int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
