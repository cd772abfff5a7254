"""A separate query network, trained when the codes are fixed; the paper maps queries and base by the same f.

A query is compared with quantized points but not quantized itself, so it need not be mapped to the point that f would choose
for a base vector. So a copy of f is trained further, for queries only, to rank the quantized points as the input space ranks
their vectors. Codes and the cost of a search stay the same.
"""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catalyzer.codec import Codec
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import measure
from catalyzer.nn import ListNetLoss, Transform, embed
from catalyzer.training.data import AnchorData
from catalyzer.training.module import LOGGED_RANKS, Training
from catalyzer.training.schedule import Decay

COMPETITORS = 48  # nearest on the sphere, with which a query's neighbours compete


class QueryData(AnchorData):
    """Lists: an anchor as the query, its k_pos neighbours in the input space and its k_neg neighbours on the sphere, quantized.

    Args:
        codec: trained codec with a fitted quantizer.
        options: arguments of `AnchorData`.
    """

    def __init__(self, *, codec: Codec, **options: Any) -> None:
        super().__init__(**options)
        self.codec = codec

    def setup(self, stage: str) -> None:
        """Find quantized points and lists, which stay the same in all epochs."""
        super().setup(stage)
        codec = self.codec
        codec.transform.to(self.device)
        latent = self.shared_out(lambda rows: embed(codec.transform, self.train[rows], "mining competitors: embedding"))
        codes = self.shared_out(lambda rows: codec.encode(self.train[rows], "mining competitors: encoding"))
        self.points = torch.from_numpy(codec.quantizer.decode(codes)).to(self.device)

        def search(rows: slice) -> np.ndarray:
            return self.miner.find_negatives(latent, self.k_neg, rows, "mining competitors").astype(np.int32)

        competitors = torch.from_numpy(self.shared_out(search)).to(self.device)
        self.lists = torch.cat([self.positives, competitors], dim=1).sort(dim=1).values

    def mine(self, transform: Transform, epoch: int) -> None:
        """Set the order of an epoch; see `AnchorData.mine`."""
        self.epoch = epoch
        self.order = torch.from_numpy(np.random.default_rng((self.seed, epoch)).permutation(len(self.train))).to(self.device)

    def batch(self, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors `(n, d)`, the quantized points of their lists `(n, m, d_out)`, distances in the input `(n, m)`, all float32.

        The second of two equal members of a list is at distance inf.
        """
        lists, vectors = self.lists[anchors].long(), self.vectors[anchors].float()
        distances = torch.linalg.vector_norm(self.vectors[lists].float() - vectors[:, None], dim=2)
        distances[:, 1:].masked_fill_(lists[:, 1:] == lists[:, :-1], torch.inf)
        return vectors, self.points[lists], distances

    def state_dict(self) -> dict[str, Any]:
        """The epoch, which decides the order."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mine(self.codec.transform, state_dict["epoch"])


class QueryTraining(Training):
    """Trains the query network; its trainer needs a `QueryData` as datamodule.

    Args:
        codec: trained codec with a fitted quantizer.
        max_epochs: number of passes over the training vectors.
        sync_batchnorm: see `Training`.

    Raises:
        InvalidInput: `max_epochs` below 1.
    """

    def __init__(self, codec: Codec, max_epochs: int = 2, sync_batchnorm: bool = False) -> None:
        if max_epochs < 1:
            raise InvalidInput(f"query.max_epochs must be at least 1, got {max_epochs}")
        query = copy.deepcopy(codec.transform).train()  # as what is trained already is not
        optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
        schedule = partial(Decay, decay="cosine", warmup=0.1)
        super().__init__(replace(codec, query=query), optimizer, schedule, sync_batchnorm)
        self.max_epochs, self.query, self.list_loss = max_epochs, query, ListNetLoss()

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        vectors, points, distances = batch
        squared = (points - self.query(vectors)[:, None]).square().sum(2)
        loss = self.list_loss(squared, distances).mean()
        self.note({"loss": loss})
        return loss

    def validation_step(self, queries: Tensor, batch_idx: int) -> None:
        split = self.data.validation
        assert split is not None
        row = measure("validation", self.codec, split.base, queries.cpu().numpy(), split.ground_truth)[0]
        self.log_dict({f"val/recall_at_{k}": row.recall[k] for k in LOGGED_RANKS if k in row.recall}, sync_dist=True)
