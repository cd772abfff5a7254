"""Vectors to codes and back, and the search in the codes, in one stage or in two.

In two stages, the nearest codes by distance on the sphere are decoded to the original space, and reranked by their distance
to the query there, or by a mean of both distances. The paper has the first stage only.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch

from catalyzer.errors import InvalidInput, integer
from catalyzer.files.vectors import BLOCK, Vectors, as_float32, check_finite
from catalyzer.nn import Descent, Identity, Transform, embed, row_wise
from catalyzer.nn.embedding import evaluating
from catalyzer.outliers import outliers
from catalyzer.parts import Part
from catalyzer.progress import progress
from catalyzer.quantizers import MAX_TRAINING, Quantizer

PAIRS = 1 << 23  # (query, candidate) pairs that are reranked together
DECODED = 1 << 14  # candidates that are held decoded at a time
MAX_STEPS, MAX_REFINE = 100, 1 << 12  # far above what gains anything; a file could claim more, and adding would never end
ERROR_SHARE = 0.5  # of the estimated error; chosen on validation vectors, for which 0.25 and 0.75 are nearly as good
ERROR_SAMPLE = 1 << 16  # training vectors that errors are estimated from


@dataclass(frozen=True)
class Codec:
    """A transform, the quantizer of its output and, optionally, a decoder back to the original space.

    Attributes:
        transform: maps vectors to the quantizer's dimension.
        quantizer: codes mapped vectors; `fit` trains it if it has something to learn.
        decoder: maps from the quantizer's dimension to the original one. Without it, codes can be decoded only if the transform
            is the identity and the quantizer is not of signs.
        steps: number of gradient steps that move a mapped vector to where it decodes better, before the nearest point is taken;
            see `catalyzer.nn.Descent`. 0 codes the mapped vector itself, as in the paper; at most 100.
        refine: number of lattice points near the mapped vector that are tried; the one that decodes nearest to the vector is
            taken. 1 takes the nearest point; at most 4,096.
        latent_share: weight, from 0 to 1, of the distance on the sphere when candidates are reranked; 0 uses only the distance
            to the decoded vector. So does a search of the first blocks, whose distances on the sphere are less accurate.
        query: network that maps queries, if it is not the transform.
        blocks: number of blocks of each code, from the first, that a search scans; None is all. Reranking then uses the full
            codes: their decoded vectors or, without a decoder, their points on the sphere.
        error_share: share of a code's estimated squared error that reranking adds to distances, if the decoder estimates it
            (see `catalyzer.nn.Decoder`). With x̂ the mean of all vectors x of a code, the mean of |q - x|² over them is
            |q - x̂|² plus the mean of |x - x̂|². The nearest of them matter more than the mean, hence a share.

    >>> from catalyzer.nn import Identity
    >>> from catalyzer.quantizers import LatticeQuantizer
    >>> codec = Codec(Identity(d_in=24), LatticeQuantizer(dim=24, bits=64))
    >>> x = np.random.default_rng(0).normal(size=(100, 24)).astype(np.float32)
    >>> codes = codec.encode(x)
    >>> codes.shape, codec.search(x[:1], codes, k=1)[1].tolist()
    ((100, 8), [[0]])
    """

    transform: Transform
    quantizer: Quantizer
    decoder: Transform | None = None
    steps: int = 0
    refine: int = 1
    latent_share: float = 0.0
    query: Transform | None = None
    blocks: int | None = None
    error_share: float = ERROR_SHARE

    def __post_init__(self) -> None:
        integer("steps", self.steps, 0, MAX_STEPS)
        integer("refine", self.refine, 1, MAX_REFINE)
        if not 0 <= self.latent_share <= 1:
            raise InvalidInput(f"latent_share must be between 0 and 1, got {self.latent_share}")
        if self.steps and self.decoder is None:
            raise InvalidInput(f"steps = {self.steps} go down the error of a decoder; train with decoder=mlp, or use steps=0")
        if self.refine > 1 and self.decoder is None:
            raise InvalidInput(
                f"refine = {self.refine} needs a decoder, which says how good a point is; train with decoder=mlp"
            )
        if self.refine > 1 and not self.quantizer.can("nearest"):
            raise InvalidInput(
                f"refine = {self.refine} tries lattice points, {type(self.quantizer).__name__} has none; "
                "use quantizer=lattice, or refine=1"
            )
        if self.decoder is not None:
            self.decoder.check_decodes(self.transform)
        if self.quantizer.gain and not self.transform.keeps_norm:
            raise InvalidInput(
                f"a gain codes the norms of vectors, and {type(self.transform).__name__} makes all of them equal; "
                "use gain=false"
            )
        if self.quantizer.gain == "blocks" and isinstance(self.transform, Identity):
            raise InvalidInput("gain=blocks is for vectors whose blocks have norms near those of the lattice; use gain=true")
        if self.transform.d_out != self.quantizer.dim:
            raise InvalidInput(
                f"{type(self.quantizer).__name__} codes {self.quantizer.dim} dimensions, but {type(self.transform).__name__} "
                f"makes {self.transform.d_out}; give both the same"
            )

    @cached_property
    def _first_stage(self) -> Quantizer:
        first = self.quantizer if self.blocks is None else self.quantizer.first(self.blocks)
        return first.of_rotated() if self.transform.rotates else first

    def first_stage(self, latent: np.ndarray, codes: np.ndarray) -> tuple[Quantizer, np.ndarray, np.ndarray]:
        """Quantizer, mapped queries and codes of the first stage: of all blocks, or of the first ones alone."""
        first = self._first_stage
        if self.blocks is None:
            return first, latent, codes
        return first, np.ascontiguousarray(latent[:, : first.dim]), codes[:, : first.code_size]

    @property
    def parts(self) -> dict[str, Part | None]:
        """The parts that codes and searches depend on, by their names in files."""
        return {"transform": self.transform, "quantizer": self.quantizer, "decoder": self.decoder, "query": self.query}

    @cached_property
    def for_search(self) -> "Codec":
        """The same codec with query network and decoder as searches use them (`catalyzer.nn.inference`), made once.

        A query then has the same results alone and in a batch. Distances to decoded vectors differ by about 1%.
        """
        decoder = None if self.decoder is None else row_wise(self.decoder.with_error())
        return replace(self, query=row_wise(self.query or self.transform), decoder=decoder)

    @property
    def plain(self) -> "Codec":
        """The same codec, whose reranked distances are those to decoded vectors alone."""
        return replace(self, latent_share=0.0, error_share=0.0)

    @cached_property
    def descent(self) -> Descent:
        """The gradient steps of `steps`, prepared once, with the decoder's weights at that time."""
        assert self.decoder is not None
        return Descent(self.decoder, self.quantizer.spheres)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def decodes(self) -> bool:
        """Whether codes can be decoded to the original space."""
        return self.decoder is not None or (isinstance(self.transform, Identity) and not self.quantizer.symmetric)

    def adapt(self, train: np.ndarray) -> Self:
        """Adapt transform and decoder to `(n, d_in)` training vectors; see `Transform.adapt`."""
        for part in (self.transform, self.decoder):
            if part is not None:
                part.adapt(train)
        return self

    def fit(self, train: np.ndarray) -> None:
        """Fit to training vectors what needs no gradient: a quantizer that learns, and a decoder's estimate of errors.

        Args:
            train: `(n, d_in)`, of which outliers are left out.
        """
        estimates = self.decoder is not None and self.decoder.estimates_error
        if not (self.quantizer.is_learned or estimates):
            return
        size = MAX_TRAINING if self.quantizer.is_learned else ERROR_SAMPLE
        sample = train[np.random.default_rng(0).permutation(len(train))[:size]]
        sample = sample[~outliers(sample)]
        if self.quantizer.is_learned:
            self.quantizer.fit(embed(self.transform, sample, "embedding for the quantizer"))
        if self.decoder is not None and estimates:
            sample = sample[:ERROR_SAMPLE]
            # A copy encodes, which knows nothing of an earlier state of the decoder.
            points = self.quantizer.decode(replace(self).encode(sample, "encoding for the estimate of errors"))
            apart = embed(self.decoder, points) - as_float32(sample)
            with evaluating(self.decoder):
                self.decoder.fit_error(torch.from_numpy(points), torch.from_numpy(np.einsum("nd,nd->n", apart, apart)))

    def encode(self, vectors: Vectors, description: str | None = "encoding") -> np.ndarray:
        """Map and encode vectors block by block, so that only the codes are held in memory.

        Args:
            vectors: `(n, d_in)`, in memory or in a file.
            description: text of the progress display; None shows none.

        Returns:
            `(n, code_size)` uint8.

        Raises:
            InvalidInput: another shape or type, NaN or infinity, or numbers whose squares float32 cannot hold.
        """
        check_vectors(vectors, self.transform.d_in)
        codes = np.empty((len(vectors), self.quantizer.code_size), np.uint8)
        with progress(description, len(vectors), "vectors") as advance:
            size = max(1, BLOCK // self.refine)
            for first in range(0, len(vectors), size):
                block = vectors[first : first + size]
                check_finite(block, "vectors", first)
                codes[first : first + size] = self.encode_mapped(embed(self.transform, block), block)
                advance(len(block))
        return codes

    def encode_mapped(self, latent: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """`encode` for vectors whose mapped points, `(n, dim)` float32, are `latent`."""
        if self.steps:
            latent = self.descent(latent, vectors, self.steps)
        return self.quantizer.encode(self._refined(latent, vectors) if self.refine > 1 else latent)

    def _refined(self, latent: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        points = self.quantizer.nearest(latent, self.refine)
        assert self.decoder is not None
        decoded = embed(self.decoder, points.reshape(-1, points.shape[2])).reshape(*points.shape[:2], -1)
        decoded -= as_float32(vectors)[:, None]
        best = np.einsum("nkd,nkd->nk", decoded, decoded).argmin(axis=1)
        return points[np.arange(len(points)), best]

    @cached_property
    def reranking_pays(self) -> bool:
        """Whether a second stage finds more: it does with a trained decoder, but not with a linear one."""
        return self.decoder is not None and self.decoder.is_trained

    @property
    def reranks_on_sphere(self) -> bool:
        """Whether the second stage compares points on the sphere."""
        return self.blocks is not None and self.decoder is None

    def check_reranks(self) -> None:
        """Raise `InvalidInput` unless candidates can be reranked."""
        if not self.reranks_on_sphere:
            self.check_decodes()

    def check_decodes(self) -> None:
        """Raise `InvalidInput` unless codes can be decoded to the original space."""
        if not self.decodes:
            raise InvalidInput(
                "these codes cannot be decoded to the original space, because no decoder was trained; train with decoder=mlp"
            )

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode `(n, code_size)` uint8 codes to `(n, d_in)` float32 vectors of the original space.

        Raises:
            InvalidInput: invalid codes, or no decoder.
        """
        self.check_decodes()
        if codes.ndim != 2 or codes.shape[1] != self.quantizer.code_size or codes.dtype != np.uint8:
            raise InvalidInput(f"codes must be (n, {self.quantizer.code_size}) uint8, got {codes.shape} {codes.dtype}")
        latent = self.quantizer.decode(codes)
        return latent if self.decoder is None else embed(self.decoder, latent)

    def _decoded_with_error(self, codes: np.ndarray) -> np.ndarray:
        """`decode`; where the decoder estimates errors, with the root of what is added to squared distances as a coordinate."""
        if self.decoder is None:
            return self.decode(codes)
        decoded = embed(self.decoder.with_error(), self.quantizer.decode(codes))
        if decoded.shape[1] > self.transform.d_in:
            decoded[:, -1] = np.sqrt(self.error_share * np.maximum(decoded[:, -1], 0))
        return decoded

    def search(self, queries: Vectors, codes: np.ndarray, k: int, rerank: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The k codes nearest to each query.

        Args:
            queries: `(nq, d_in)`.
            codes: `(n, code_size)` uint8.
            k: number of codes per query, at most n.
            rerank: number of candidates of the first stage, at least k, that are reranked by distance to their decoded vectors;
                0 is the first stage alone, the paper's search.

        Returns:
            `D` `(nq, k)` float32 squared L2 distances, on the sphere or, reranked, in the original space, ascending, and `I`
            `(nq, k)` int64 rows of `codes`; ties by lower row. Reranked, it is d = |q - x̂|² + `error_share` · e, with the
            decoded vector x̂ and its estimated squared error e. With `latent_share` w it is (1 - w) · d + w · c · s, with s the
            squared distance on the sphere; c makes the means of d and c · s over a query's candidates equal.

        Raises:
            InvalidInput: shapes or k that do not fit, or rerank where codes cannot be decoded.
        """
        k, rerank = integer("k", k, 1, len(codes), "the number of codes"), integer("rerank", rerank, 0)
        check_vectors(queries, self.transform.d_in)
        given = queries[:]
        check_finite(given, "queries")
        original = as_float32(given)
        quantizer, latent, first = self.first_stage(self.map_queries(original), codes)
        if not rerank:
            return quantizer.search(latent, first, k)
        self.check_reranks()  # before the search and not after it
        on_sphere, candidates = quantizer.search(latent, first, min(max(k, rerank), len(codes)))
        block = max(1, PAIRS // candidates.shape[1])
        parts = [
            self.rerank(original[rows], codes, on_sphere[rows], candidates[rows], k)
            for rows in (slice(first, first + block) for first in range(0, max(1, len(original)), block))
        ]
        distances, ids = zip(*parts, strict=True)
        return np.concatenate(distances), np.concatenate(ids)

    def map_queries(self, queries: Vectors) -> np.ndarray:
        """`(nq, d_in)` queries mapped to `(nq, dim)` float32, by the query network if there is one."""
        return embed(self.query or self.transform, queries)

    def rerank(
        self, queries: np.ndarray, codes: np.ndarray, on_sphere: np.ndarray, ids: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The second stage alone: the best k of each query's candidates, as `search` ranks them.

        Args:
            queries: `(nq, d_in)` float32.
            codes: `(n, code_size)` uint8.
            on_sphere: `(nq, m)` float32 squared distances of the candidates in the first stage.
            ids: `(nq, m)` int64, the candidates' rows of `codes`; -1 if a query has fewer than m.
            k: number of results per query, at most m.

        Returns:
            `(nq, k)` float32 distances, ascending, and `(nq, k)` of the `ids`; ties by lower id. If a query has fewer than k
            candidates, inf and -1 at the end.
        """
        from catalyzer.scan.kernels import pair_distances

        decode = self._decoded_with_error
        if self.reranks_on_sphere:
            queries, decode = self.map_queries(queries), self.quantizer.decode
        elif self.decoder is not None and self.decoder.with_error().d_out > self.transform.d_in:
            queries = np.pad(queries, ((0, 0), (0, 1)))
        # Candidate by candidate instead of query by query: each is decoded once, however many queries share it.
        missing = ids < 0
        there = np.flatnonzero(~missing)
        candidates = ids.reshape(-1)[there]
        if len(ids) == 1:
            distinct, place = candidates, np.arange(len(candidates))
        else:
            distinct, place = np.unique(candidates, return_inverse=True)
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], np.arange(0, len(distinct) + DECODED, DECODED))
        distances = np.zeros(ids.size, np.float32)
        with progress("reranking", len(distinct), "codes") as advance:
            for first, start, end in zip(range(0, len(distinct), DECODED), starts, starts[1:], strict=False):
                rows = distinct[first : first + DECODED]
                decoded, pairs = as_float32(decode(codes[rows])), order[start:end]
                of_pairs = np.empty(len(pairs), np.float32)
                pair_distances(queries, decoded, there[pairs] // ids.shape[1], place[pairs] - first, of_pairs)
                distances[there[pairs]] = of_pairs
                advance(len(rows))
        table = distances.reshape(ids.shape)
        if self.latent_share and self.blocks is None:
            on_sphere = np.where(missing, 0, on_sphere)
            count = np.maximum((~missing).sum(axis=1, keepdims=True), 1).astype(np.float32)
            mean, mean_on_sphere = (stage.sum(axis=1, keepdims=True) / count for stage in (table, on_sphere))
            scale = mean / np.where(mean_on_sphere == 0, 1, mean_on_sphere)  # 0 where all are the query's own code
            table = (1 - self.latent_share) * table + self.latent_share * scale * on_sphere
        table[missing] = np.inf
        best, rows = np.lexsort((ids, table), axis=1)[:, :k], np.arange(len(ids))[:, None]
        return table[rows, best], ids[rows, best]


def check_vectors(vectors: object, d: int) -> None:
    """Raise `InvalidInput` unless these are `(n, d)` vectors of numbers, in memory or in a file."""
    if not isinstance(vectors, Vectors):
        raise InvalidInput(f"expected vectors as an array (n, {d}), got {type(vectors).__name__}")
    if len(vectors.shape) != 2 or vectors.shape[1] != d or vectors.dtype.kind not in "fiu":
        raise InvalidInput(f"expected vectors as numbers of shape (n, {d}), got {vectors.shape} of {vectors.dtype}")
