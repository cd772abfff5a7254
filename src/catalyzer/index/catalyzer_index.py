"""`CatalyzerIndex`: your vectors in 8 bytes each, from `fit` to `search`, and back from a file."""

import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from catalyzer.codec import Codec
from catalyzer.errors import CatalyzerError, Conflict, InvalidInput, Unavailable, finite, integer
from catalyzer.files.atomic import locked
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import BLOCK, Vectors
from catalyzer.index import file as index_file
from catalyzer.index.contents import Contents, Validation
from catalyzer.index.evaluation import Evaluation, Setting, evaluate
from catalyzer.index.ids import IdSource, as_ids, check_new, distinct_ids, ids_for, rows_of
from catalyzer.index.lists import InvertedLists, check_learn, check_quantizer
from catalyzer.index.pretrained import path_of
from catalyzer.index.searching import MOST_RERANKED, Search, check_k
from catalyzer.index.source import VectorSource, check_rows, open_queries, open_source, sample, valid_rows
from catalyzer.index.training_folder import TrainingFolder
from catalyzer.metric import Metric, MetricName
from catalyzer.nn import Transform, embed
from catalyzer.nn.storage import digest
from catalyzer.outliers import without_outliers
from catalyzer.parts import Trust
from catalyzer.progress import progress
from catalyzer.quantizers import Quantizer
from catalyzer.threads import limited

# One large computation at a time in a process. Searches for few queries run in parallel to it.
_COMPUTING = threading.Lock()
_SAVING = threading.Lock()  # threads take turns; what other processes write is refused


# A child process has no thread that could release a lock that another thread held at the fork.
_INDEXES = weakref.WeakSet["CatalyzerIndex"]()
if hasattr(os, "register_at_fork"):

    def _release_in_child() -> None:
        global _COMPUTING, _SAVING
        _COMPUTING, _SAVING = threading.Lock(), threading.Lock()
        for index in _INDEXES:
            index._writing = threading.Lock()

    os.register_at_fork(after_in_child=_release_in_child)


class CatalyzerIndex:
    """An index: vectors stored as codes of a trained transform and quantizer, and the search in these codes.

    Several threads may call its methods at once. Searches for a few queries run in parallel, larger ones take turns. Each sees
    all of an addition or none of it.

    Args:
        bits: largest number of bits of a code; 64 is 8 bytes.
        metric: "l2"; "cosine", which ignores lengths; or "ip", the inner product.
        max_norm: for "ip", the largest allowed norm of an added vector; by default the largest norm of all vectors given to
            `fit`.
        d_out: dimension of the mapped vectors; "auto" chooses it for the data.
        hidden: width of the networks, 768 by default, or 1,024 without a decoder; a linear map has none.
        decoder: whether a decoder is trained, for searches in two stages and for `reconstruct`.
        method: "auto" trains a network, and takes a linear map if that finds as many of the held-out vectors; "linear" only
            fits the linear map, in seconds.
        ivf: number of inverted lists; a search scans those nearest to the query. With 0 a search scans all codes. 4 to 16 times
            the square root of the number of vectors is a good number.
        overrides: settings of `src/train.py`, as on its command line: other networks, quantizers and losses, also of your own
            modules.

    Raises:
        InvalidInput: other values.

    >>> random = np.random.default_rng(0)
    >>> x = random.normal(size=(1000, 4)).astype(np.float32) @ random.normal(size=(4, 16)).astype(np.float32)
    >>> index = CatalyzerIndex(bits=32, d_out=8, hidden=32).fit(x, epochs=2)
    >>> skipped = index.add(x)
    >>> D, I = index.search(x[:3], k=5)
    >>> D.dtype, I.shape, index.ntotal, index.codes.shape
    (dtype('float32'), (3, 5), 1000, (1000, 4))
    """

    def __init__(
        self,
        bits: int = 64,
        metric: MetricName = "l2",
        *,
        max_norm: float | None = None,
        d_out: int | Literal["auto"] = "auto",
        hidden: int | None = None,
        decoder: bool = True,
        method: Literal["auto", "linear"] = "auto",
        ivf: int = 0,
        overrides: Sequence[str] = (),
    ) -> None:
        if not isinstance(decoder, bool):
            raise InvalidInput(f"decoder must be True or False, got {decoder!r}")
        if method not in ("auto", "linear"):
            raise InvalidInput(f'method must be "auto" or "linear", got {method!r}')
        if not isinstance(overrides, list | tuple) or not all(isinstance(each, str) for each in overrides):
            raise InvalidInput(f'overrides must be a list of strings such as "quantizer=opq", got {overrides!r}')
        self._ivf = integer("ivf", ivf, 0)
        self._options: dict[str, Any] | None = {
            "bits": integer("bits", bits, 1),
            "d_out": d_out if d_out == "auto" else integer('d_out, if not "auto",', d_out, 2),
            "hidden": None if hidden is None else integer("hidden", hidden, 1),
            "decoder": decoder,
            "method": method,
            "overrides": list(overrides),
        }
        self._metric, self._max_norm = Metric(metric, max_norm), max_norm
        # Readers see one object that never changes; a writer replaces it.
        self._contents: Contents | None = None
        self._writing = threading.Lock()
        _INDEXES.add(self)
        # Where the contents were read from or written to last, and the digest that the file had then.
        self._file: tuple[Path, str] | None = None
        self._training: TrainingFolder | None = None  # of a training that is in no file yet
        # Ids and codes have capacity behind the published rows, so that additions do not copy what is there each time.
        self._ids, self._codes = np.empty(0, np.int64), np.empty((0, 0), np.uint8)

    @classmethod
    def from_codec(cls, codec: Codec, metric: MetricName = "l2") -> Self:
        """An empty index of a trained codec, such as that of a run.

        Args:
            codec: trained codec; it is not copied, and its networks are set to evaluation mode.
            metric: "l2", or "cosine" for a codec trained on vectors of norm 1.

        Raises:
            InvalidInput: "ip", whose largest norm only `fit` learns; or a quantizer that is not fitted.

        >>> from catalyzer.nn import Identity
        >>> from catalyzer.quantizers import LatticeQuantizer
        >>> index = CatalyzerIndex.from_codec(Codec(Identity(d_in=24), LatticeQuantizer(dim=24)))
        >>> index.add(np.eye(24)).size, index.search(np.eye(24)[:2], k=1)[1].tolist()
        (0, [[0], [1]])
        """
        if metric == "ip":
            raise InvalidInput("an index for inner products needs the largest norm, which a codec does not have; use fit")
        if codec.quantizer.is_learned and not any(array.any() for array in codec.quantizer.state_dict().values()):
            raise InvalidInput(f"the codec's {type(codec.quantizer).__name__} is not fitted; call codec.fit(train) first")
        return cls._holding(_empty(codec, Metric(metric)))

    @classmethod
    def pretrained(cls, name: str, bits: int | None = None) -> Self:
        """An empty index whose map ships with this package, so that nothing is trained; see docs/pretrained.md.

        Args:
            name: what the vectors are, such as "all-MiniLM-L6-v2" for the embeddings of that model.
            bits: bits of a code; None for the only size that ships.

        Raises:
            InvalidInput: no such map; the message has those that there are.

        >>> index = CatalyzerIndex.pretrained("all-MiniLM-L6-v2", bits=256)
        >>> index.d, index.metric, index.codes.shape
        (384, 'cosine', (0, 32))
        """
        return cls._holding(index_file.read(path_of(name, bits), mmap=False))

    @classmethod
    def _holding(cls, contents: Contents, file: tuple[Path, str] | None = None) -> Self:
        index = cls(metric=contents.metric.name, ivf=0 if contents.lists is None else len(contents.lists))
        index._options, index._metric, index._file = None, contents.metric, file
        index._publish(contents)
        return index

    def __repr__(self) -> str:
        trained = f"d={self.d}, ntotal={self.ntotal:,}" if self.is_trained else "not trained"
        return f"{type(self).__name__}(bits={self.bits}, metric={self.metric!r}, ivf={self.ivf}, {trained})"

    # Contents never change, so copies share them. Another process reads them from the file where they are mapped, and shares
    # its pages; otherwise they travel by value.

    def __copy__(self) -> Self:
        if self._contents is not None:
            return self._holding(self._contents, self._file)
        make, arguments = self.__reduce__()
        return make(*arguments)

    def __deepcopy__(self, memo: Any) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, tuple]:
        contents, file = self._contents, self._file
        if contents is None:
            own = {"metric": self.metric, "max_norm": self._max_norm, "ivf": self._ivf}
            return partial(type(self), **own, **self._options), ()  # type: ignore[arg-type]
        if file is not None and isinstance(contents.codes, np.memmap):
            modules = [type(part).__module__ for part in contents.codec.parts.values() if part is not None]
            return self._mapping, (*file, modules)
        return self._holding, (contents, file)

    @classmethod
    def _mapping(cls, path: Path, digest: str, modules: list[str]) -> Self:
        contents, found = index_file.read_with_digest(path, mmap=True, trust=modules)  # those of the index that was sent
        if found != digest:
            raise Conflict(
                f"{path} has changed since the pickled index was loaded from it; send the path instead, and load it there"
            )
        return cls._holding(contents, (path, digest))

    @property
    def is_trained(self) -> bool:
        """Whether `fit` has ended, or the index comes from a file or a codec."""
        return self._contents is not None

    @property
    def metric(self) -> MetricName:
        """How vectors are compared."""
        return self._metric.name

    @property
    def bits(self) -> int:
        """Bits of a code: once trained, those that carry information; before that, the upper limit."""
        if self._contents is not None:
            return self._contents.codec.quantizer.bits
        assert self._options is not None
        return self._options["bits"]

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        return self._trained().d

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return 0 if self._contents is None else len(self._contents.ids)

    @property
    def ivf(self) -> int:
        """Number of inverted lists; 0 without lists."""
        return self._ivf

    @property
    def validation(self) -> Validation | None:
        """Recall on vectors held out of the training; None for an index that `fit` did not train."""
        return self._trained().validation

    @property
    def origin(self) -> str | None:
        """Name of the pretrained map that the index began with; None for others."""
        return self._trained().origin

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer, which turns mapped vectors into codes and back."""
        return self._trained().codec.quantizer

    @property
    def codes(self) -> np.ndarray:
        """`(ntotal, code_size)` uint8, read-only: row i is the code of the vector `ids[i]`."""
        return _read_only(self._trained().codes)

    @property
    def ids(self) -> np.ndarray:
        """`(ntotal,)` int64, read-only."""
        return _read_only(self._trained().ids)

    def fit(
        self,
        learn: VectorSource,
        *,
        epochs: int | None = None,
        budget: str | None = None,
        folder: str | Path | None = None,
        skip_invalid: bool = False,
    ) -> Self:
        """Train transform, decoder and query network, fit the quantizer, and partition the sphere into lists.

        At most 602,000 of the vectors are used, spread evenly over `learn`. A sixteenth to a fifth of them are held out, and
        the epoch with the best recall on these is kept. Training seeds the random generators of torch, NumPy and Python, so the
        same call gives the same networks on the same machine. Searches for many queries wait in other threads until it ends.

        Args:
            learn: `(n, d)` training vectors, at least 500, similar to those that will be added.
            epochs: number of passes over the training vectors, 20 by default. 40 find a little more; see docs/index.md.
            budget: a duration instead of epochs, such as "90s", "10min" or "2h". A few steps are timed, and as many epochs as
                fit are trained, at most 300. The learning rate follows its schedule over exactly these. Inverted lists take
                additional seconds for thousands of lists. "0" is `method="linear"`.
            folder: folder of the training, from which the same call resumes after an interruption. By default a temporary
                folder, which is removed when the index is saved. It is kept, and its path logged, if the training is
                interrupted, the index cannot be saved, or the program ends with an error before.
            skip_invalid: whether vectors with NaN or infinity (for "cosine", also zeros) are skipped, instead of refusing all.

        Returns:
            The index itself.

        Raises:
            InvalidInput: too few vectors, for the training or the lists; invalid vectors, or one longer than `max_norm`; both
                epochs and budget, or a budget too small for one epoch; settings without effect; a folder of another training; a
                quantizer without search in lists; an index that comes from a file or a codec, or that already has vectors,
                whose codes would become invalid.
            Unavailable: the folder cannot be written.
        """
        if epochs is not None and budget is not None:
            raise InvalidInput(f"got epochs = {epochs} and budget = {budget}; give only one of them")
        if budget is not None and not isinstance(budget, str):
            raise InvalidInput(f'budget must be a duration such as "10min", got {budget!r}')
        if epochs is not None:
            epochs = integer("epochs", epochs, 1)
        # It loads Lightning, which nothing else here needs.
        from catalyzer.index.recipe import EPOCHS, LEARN, learn_codec, quantizer_class
        from catalyzer.training import checkpoint_files, seconds_of

        seconds = None if budget is None else seconds_of(budget)
        with self._writing, _COMPUTING:
            if self.ntotal:
                raise InvalidInput(
                    f"the index already contains {self.ntotal:,} vectors, and another training would invalidate "
                    "their codes; fit another index"
                )
            if self._options is None:
                raise InvalidInput("the index is already trained, because it comes from a file or a codec; fit another index")
            options = {name: value for name, value in self._options.items() if name != "method"}
            options["linear"] = self._options["method"] == "linear" or seconds == 0
            if options["linear"] and (epochs is not None or seconds):
                raise InvalidInput(
                    'method="linear" trains no network, so it accepts neither epochs nor a budget; leave them out'
                )
            if options["linear"] and options["hidden"] is not None:
                raise InvalidInput(
                    f"hidden = {options['hidden']} is the width of networks, and a linear map has none; leave it out"
                )
            if budget is None and epochs is None:
                epochs = EPOCHS
            if self._ivf:
                check_quantizer(quantizer_class(options["decoder"], options["linear"], options["overrides"]))
            source, metric = open_source(learn), Metric(self.metric, self._max_norm)
            if self.metric == "ip":  # of all vectors, also those that are not learned from
                longest = check_rows(source, metric, skip_invalid)
                metric = Metric("ip", self._max_norm or longest)
            x, rows = sample(source, LEARN, metric, skip_invalid)
            check_learn(self._ivf, len(x))
            metric.warn_of_rare_length(x)
            self._training = None  # that of an earlier training goes
            if folder is None:
                self._training = TrainingFolder()
                folder = self._training.path
            folder = expanded(folder)
            try:
                base = without_outliers(metric.base(x), rows)
                codec, validation = learn_codec(base, epochs=epochs, seconds=seconds, folder=folder, **options)
                lists = InvertedLists.fit(codec, base, self._ivf) if self._ivf else None
                self._publish(_empty(codec, metric, lists, validation))
            except BaseException as error:
                if self._training is not None:
                    self._training.keep() if checkpoint_files(folder) else self._training.remove()
                if isinstance(error, OSError) and not isinstance(error, CatalyzerError):
                    raise Unavailable(
                        f"the training cannot be saved in {folder}: {error.strerror or error}; give another folder"
                    ) from None
                raise
            self._metric = metric
        return self

    def add(self, vectors: VectorSource, ids: np.ndarray | None = None, *, skip_invalid: bool = False) -> np.ndarray:
        """Encode vectors and add them, block by block; if one is refused, none is added.

        Args:
            vectors: `(n, d)`; n may be 0.
            ids: `(n,)` distinct integers that are not in the index, and not -1, which means that nothing was found. By default
                they continue from the largest id so far: 0 to n - 1 at first.
            skip_invalid: whether vectors with NaN or infinity (for "cosine", also zeros) are skipped, with their ids.

        Returns:
            `(m,)` int64, the skipped rows.

        Raises:
            InvalidInput: an untrained index, another dimension, invalid vectors, invalid or existing ids, or for "ip" a vector
                longer than all given to `fit`, or than `max_norm`.
        """
        with self._writing:
            old = self._trained()
            source = open_source(vectors, old.d)
            wanted = ids_for(len(source), ids, old)
            new_ids, new_codes = self._reserve(old, len(source))
            in_lists, valid = _encode(old, source, new_codes, skip_invalid, "adding")
            m = int(valid.sum())
            new_ids[:m] = wanted[valid]
            self._append(old, new_ids[:m], new_codes[:m], in_lists, int(wanted.max(initial=-1)))
        return np.flatnonzero(~valid)

    def update(self, ids: np.ndarray, vectors: VectorSource) -> None:
        """Replace the vectors of existing ids; readers see all of the new ones or none.

        Args:
            ids: `(n,)` integers, distinct.
            vectors: `(n, d)`; row i is the new vector of `ids[i]`.

        Raises:
            InvalidInput: a missing or repeated id, or vectors that `add` refuses; then nothing changes.

        >>> from catalyzer.nn import Identity
        >>> from catalyzer.quantizers import LatticeQuantizer
        >>> index = CatalyzerIndex.from_codec(Codec(Identity(d_in=24), LatticeQuantizer(dim=24)))
        >>> skipped = index.add(np.eye(24))
        >>> index.update([0, 1], np.eye(24)[[1, 0]])
        >>> index.search(np.eye(24)[:2], k=1)[1].tolist()
        [[1], [0]]
        """
        with self._writing:
            old = self._trained()
            source = open_source(vectors, old.d)
            ids = distinct_ids(len(source), ids)
            rows = rows_of(ids, old)
            codes = np.empty((len(ids), old.codec.quantizer.code_size), np.uint8)
            in_lists, _ = _encode(old, source, codes, None, "updating")
            if old.lists is None:
                all_ids, all_codes = np.array(old.ids), np.array(old.codes)
                all_codes[rows] = codes
                self._publish(replace(old, ids=all_ids, codes=all_codes))
            else:
                left = _without(old, rows)
                assert left.lists is not None
                lists, all_ids, all_codes = left.lists.insert(left.ids, left.codes, in_lists, ids, codes)
                self._publish(replace(old, ids=all_ids, codes=all_codes, lists=lists))

    def search(
        self,
        queries: VectorSource,
        k: int = 10,
        rerank: int | None = None,
        nprobe: int | None = None,
        *,
        blocks: int | None = None,
        ids: IdSource | None = None,
        exclude: IdSource | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k vectors nearest to each query, by their codes.

        With the lattice and the networks of this package, a query has the same results alone and in a batch. With a linear map
        and codes of several blocks, a query alone misses about one of 100,000 neighbours, see docs/lattice.md.

        Args:
            queries: `(nq, d)`, read block by block; or one query, `(d,)`, whose results are `(k,)`.
            k: neighbours per query, at most 1,024 or as many as there are vectors.
            rerank: number of candidates of the first stage that are decoded and ranked by distance to the decoded vectors; 0 is
                the first stage alone. By default ten times k, from 50 to 500; without a trained decoder 0, if all blocks are
                scanned.
            nprobe: number of lists to scan per query, the nearest ones, 16 by default. With all lists the results are those of
                an index without lists. With `ids` or `exclude` the default grows, so that as many codes are scanned; if less
                than an eighth of the vectors is allowed, all lists are.
            blocks: number of blocks of each code to scan, from the first, before reranking by full codes; by default all. It is
                for nested codes (`catalyzer.nested=true`), whose first blocks find nearly as much as codes of their size.
            ids: the only ids to search: `(m,)` integers, a `range`, a mask `(n,)` bool whose element i is for id i, or a file
                of ids. Ids that are not in the index are ignored.
            exclude: ids that are not searched; same types as `ids`.
            threads: largest number of threads; by default all that numba and torch may use.

        Returns:
            `D` `(nq, k)` float32 and `I` `(nq, k)` int64 ids, best first. If the index, its lists or the allowed ids have fewer
            than k vectors, `I` ends with -1, and `D` with inf or, for similarities, -inf. For "l2", `D` are squared distances
            as `Codec.search` defines them. For "cosine" and "ip" they are similarities to the decoded vectors. With rerank=0,
            or with blocks and a linear map, they compare points on the sphere, for "ip" by their cosine. With rerank=0 and
            blocks, they compare the first blocks alone. For codes with a gain the score is 1 - d / 2, where d is the
            squared distance divided by the mean squared norm. It orders results, but is not a cosine.

        Raises:
            InvalidInput: an untrained index, another dimension, k below 1 or above its limit, rerank without a decoder, nprobe
                without lists or beyond their number, more blocks than a code has, an invalid query, or invalid ids.
            Unavailable: the results do not fit into memory.
        """
        contents = self._trained()
        source, single = open_queries(queries, contents.d)
        k = check_k(k, contents)
        with limited(threads):
            scores, found = Search.of(contents, k, rerank, nprobe, ids, exclude, _COMPUTING, blocks).nearest(source, k)
        return (scores[0], found[0]) if single else (scores, found)

    def range_search(
        self,
        queries: VectorSource,
        radius: float | None = None,
        *,
        expected: float | None = None,
        rerank: int | None = None,
        nprobe: int | None = None,
        ids: IdSource | None = None,
        exclude: IdSource | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All vectors within a radius of each query.

        With rerank=0 it compares distances on the sphere, and finds every code within the radius. Vectors are spread evenly
        there, so one radius finds a similar number for all queries (appendix C of the paper). Otherwise it compares squared
        distances to the decoded vectors, or similarities to them. It decodes candidates in the order of their distance on the
        sphere, more and more of them, until the farther half has none within the radius.

        Args:
            queries: as for `search`.
            radius: upper limit of the distances, D < radius, to the decoded vectors alone, without the share of the distance on
                the sphere in `search`; for "cosine" and "ip" lower limit of the similarities, D > radius.
            expected: instead of a radius, the number of results per query on average. To use the radius for other queries,
                pass `D.max()` (for similarities `D.min()`) as `radius`.
            rerank: number of candidates to begin with, 500 by default; 0 compares on the sphere.
            nprobe: as for `search`; nothing outside these lists is found.
            ids: as for `search`, like exclude and threads.

        Returns:
            As faiss: `lims` `(nq + 1,)` int64, `D` float32 and `I` int64; the results of query i are
            `lims[i]` to `lims[i + 1]` of `D` and `I`, best first.

        Raises:
            InvalidInput: as `search`; or not exactly one of radius and expected.
        """
        contents = self._trained()
        source, _ = open_queries(queries, contents.d)
        if (radius is None) == (expected is None):
            raise InvalidInput(f"give one of radius and expected; got radius = {radius} and expected = {expected}")
        radius = None if radius is None else finite("radius", radius)
        expected = None if expected is None else finite("expected", expected, 0)
        with limited(threads):
            search = Search.of(contents, MOST_RERANKED, rerank, nprobe, ids, exclude, _COMPUTING)
            if expected is not None:
                return search.expected(source, expected)
            assert radius is not None
            return search.within(source, radius)

    def evaluate(
        self,
        queries: VectorSource,
        base: VectorSource | None = None,
        *,
        truth: VectorSource | None = None,
        ids: IdSource | None = None,
        k: int = 10,
        rerank: Sequence[int] | None = None,
        nprobe: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> Evaluation:
        """Measure recall against exact search, and time, over a grid of settings.

        Args:
            queries: `(nq, d)` queries like the future ones; with 1,000 or more, recalls can be told apart.
            base: all vectors in the index, for an exact search.
            truth: instead of a base, the `(nq, at least k)` ids of the true neighbours, nearest first.
            ids: ids of the rows of `base`; by default 0 to n - 1, as in `add`.
            k: neighbours per query.
            rerank: numbers of candidates to try; by default 0 and, with a trained decoder or with blocks, 20 to 500.
            nprobe: numbers of lists to try; by default the powers of two from 2 to 128.
            blocks: numbers of first blocks to scan; by default all blocks are scanned.
            threads: as for `search`.

        Returns:
            An `Evaluation`, with `rows`, `table()`, `figure()` and `cheapest(recall)`.

        Raises:
            InvalidInput: a base other than the vectors in the index, not exactly one of base and truth, or what `search`
                refuses.
        """
        contents = self._trained()

        def search(x: np.ndarray, setting: Setting) -> np.ndarray:
            with limited(threads):
                found = Search.of(contents, k, setting.rerank, setting.nprobe, None, None, _COMPUTING, setting.blocks)
                return found.nearest(x, k)[1]

        grid = {"rerank": rerank, "nprobe": nprobe, "blocks": blocks}
        return evaluate(contents, search, queries, base, truth=truth, ids=ids, k=k, **grid)

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        """Decode the codes of `(n,)` ids to `(n, d)` float32 vectors; for "cosine" of norm 1.

        Raises:
            InvalidInput: a missing id, or no decoder.
        """
        contents = self._trained()
        rows = rows_of(as_ids(ids), contents)
        with _COMPUTING:
            decoded = contents.codec.decode(np.asarray(contents.codes[rows]))
        return contents.metric.restore(decoded) if len(rows) else np.empty((0, contents.d), np.float32)

    def remove(self, ids: np.ndarray) -> int:
        """Remove the vectors of `(n,)` ids, which are not reused by default; returns their number.

        Raises:
            InvalidInput: a missing id; then nothing is removed.
        """
        with self._writing:
            old = self._trained()
            left = _without(old, rows_of(as_ids(ids), old))
            self._publish(left)
        return len(old.ids) - len(left.ids)

    def merge(self, other: "CatalyzerIndex") -> None:
        """Add all vectors of another index, with their ids; the other one stays the same.

        Raises:
            InvalidInput: not an index; another codec, metric or partition, by which codes have another meaning; or a common id.
        """
        if not isinstance(other, CatalyzerIndex):
            raise InvalidInput(f"expected a CatalyzerIndex to merge, got {type(other).__name__}; load it first")
        added = other._trained()
        with self._writing:
            old = self._trained()
            same = old.metric == added.metric and np.array_equal(_centroids(old), _centroids(added))
            if not same or digest(old.codec.parts) != digest(added.codec.parts):
                raise InvalidInput(
                    "the two indexes come from different trainings, so their codes are not compatible; "
                    "fit one index, copy its file, and add to the copies"
                )
            check_new(added.ids, old)
            new_ids, new_codes = self._reserve(old, len(added.ids))
            new_ids[:], new_codes[:] = added.ids, added.codes
            lists = np.empty(0, int) if added.lists is None else np.repeat(np.arange(len(added.lists)), added.lists.sizes)
            self._append(old, new_ids, new_codes, lists, added.last_id)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the index to one file (docs/format.md), atomically.

        Args:
            path: path of the file; its folder is made if it is missing.
            overwrite: whether a file is replaced that is no index, or has changed since this index was loaded from it or saved
                to it.

        Raises:
            InvalidInput: an untrained index, a part of your own that cannot be stored in a file, or a file that is no index.
            Conflict: the file has changed, and another process's save would be lost.
            Unavailable: another process writes the file, or it cannot be written, as on a full disk.
        """
        path = expanded(path)
        self._trained()
        target = Path(os.path.realpath(path))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _SAVING, locked(path):
                contents = self._trained()  # now: another thread may have saved what it added
                at, digest = self._file or (None, None)
                if at == target and not overwrite and target.exists() and index_file.digest_of(target) != digest:
                    raise Conflict(
                        f"{path} has changed since this index was loaded from it or saved to it; load it again and repeat "
                        "what you changed, save to another file, or give overwrite=True to replace it"
                    )
                if not overwrite and index_file.is_foreign(target):
                    raise InvalidInput(
                        f"{path} exists and is not an index; choose another name, or replace it by overwrite=True"
                    )
                self._file = (target, index_file.write(path, contents))
        except OSError as error:
            if self._training is not None:
                self._training.keep()
            if isinstance(error, CatalyzerError):
                raise
            raise Unavailable(f"{path} cannot be written ({error.strerror}); what was there is unchanged") from None
        self._training = None

    @classmethod
    def load(cls, path: str | Path, mmap: bool = False, trust: Trust = ()) -> Self:
        """Read an index file; nothing in it is unpickled, and only code of modules that you trust runs.

        Args:
            path: path of the file.
            mmap: whether ids and codes stay in the file, memory-mapped. Loading then takes the same time for any number of
                vectors, and processes share the memory; the first addition copies them. They are not compared with their
                checksums: run `catalyzer verify` before you save an addition, or damage would be saved too.
            trust: other modules whose classes the file may name; their code runs.

        Raises:
            InvalidInput: no such file, not an index, or one of a later format.
            DamagedFile: it is truncated, differs from its checksums or contradicts itself.
            UntrustedPart: it names a class of a module that is not in `trust`.
        """
        target = Path(os.path.realpath(expanded(path)))
        contents, digest = index_file.read_with_digest(expanded(path), mmap, trust)
        return cls._holding(contents, (target, digest))

    def _trained(self) -> Contents:
        contents = self._contents
        if contents is None:
            raise InvalidInput("the index is not trained; call fit(learn) first, or load one from its file")
        return contents

    def _publish(self, contents: Contents) -> None:
        self._contents = contents
        if contents.ids.base is not self._ids:
            self._ids, self._codes = contents.ids, contents.codes

    def _reserve(self, contents: Contents, m: int) -> tuple[np.ndarray, np.ndarray]:
        """Arrays for ids and codes of m more vectors: behind the published rows, or of their own if they go into lists.

        Nobody reads rows behind the published ones, so the next addition overwrites one that failed.
        """
        code_size, n = contents.codec.quantizer.code_size, len(contents.ids)
        if contents.lists is not None:
            return np.empty(m, np.int64), np.empty((m, code_size), np.uint8)
        if n + m > len(self._ids):
            size = max(n + m, 2 * n)
            ids, codes = np.empty(size, np.int64), np.empty((size, code_size), np.uint8)
            ids[:n], codes[:n] = contents.ids, contents.codes
            self._ids, self._codes = ids, codes
        return self._ids[n : n + m], self._codes[n : n + m]

    def _append(self, old: Contents, ids: np.ndarray, codes: np.ndarray, in_lists: np.ndarray, last_id: int) -> None:
        """Publish the old vectors with m new ones, whose ids and codes are in the arrays of `_reserve`."""
        lists, n = old.lists, len(old.ids) + len(ids)
        if lists is None:
            ids, codes = self._ids[:n], self._codes[:n]
        else:
            lists, ids, codes = lists.insert(old.ids, old.codes, in_lists, ids, codes)
        self._publish(replace(old, ids=ids, codes=codes, lists=lists, last_id=max(old.last_id, last_id)))


def _empty(codec: Codec, metric: Metric, lists: InvertedLists | None = None, validation: Validation | None = None) -> Contents:
    for part in codec.parts.values():
        if isinstance(part, Transform):
            part.eval()  # so that searches need not switch them, which others would notice
    ids, codes = np.empty(0, np.int64), np.empty((0, codec.quantizer.code_size), np.uint8)
    return Contents(codec, metric, ids, codes, lists=lists, validation=validation)


def _encode(
    contents: Contents, source: Vectors, codes: np.ndarray, skip_invalid: bool | None, description: str
) -> tuple[np.ndarray, np.ndarray]:
    """Code all vectors of a source, block by block.

    Args:
        contents: contents of the index, whose codec and lists are used.
        source: `(n, d)`.
        codes: `(n, code_size)` uint8, of which the first m rows are written for the m valid vectors.
        skip_invalid: leave out vectors that cannot be compared.
        description: text of the progress display.

    Returns:
        `(m,)` int32, the lists that the vectors belong to, empty without lists; `(n,)` bool, which vectors are valid.
    """
    valid = np.ones(len(source), bool)
    in_lists = np.empty(0 if contents.lists is None else len(source), np.int32)
    m = 0
    check_rows(source, contents.metric, skip_invalid)
    with progress(description, len(source), "vectors") as advance:
        for first in range(0, len(source), BLOCK):
            block, invalid = valid_rows(source, first, BLOCK, contents.metric, skip_invalid)
            base, rows = contents.metric.base(block), slice(m, m + len(block))
            with _COMPUTING:
                latent = embed(contents.codec.transform, base)
                codes[rows] = contents.codec.encode_mapped(latent, base)
                if contents.lists is not None:
                    in_lists[rows] = contents.lists.nearest(latent)
            m += len(block)
            valid[first : first + len(invalid)] = ~invalid
            advance(len(invalid))
    return in_lists[:m], valid


def _without(contents: Contents, rows: np.ndarray) -> Contents:
    """The contents without some rows."""
    kept = np.ones(len(contents.ids), bool)
    kept[rows] = False
    return contents.only(np.flatnonzero(kept))


def _centroids(contents: Contents) -> np.ndarray:
    return np.empty(0) if contents.lists is None else contents.lists.centroids


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
