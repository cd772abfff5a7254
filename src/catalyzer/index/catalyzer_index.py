"""`CatalyzerIndex`: your vectors in 8 bytes each, from `fit` to `search`, and back from a file."""

import operator
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from catalyzer.codec import PAIRS, Codec
from catalyzer.errors import CatalyzerError, InvalidInput, Unavailable
from catalyzer.files.vectors import BLOCK
from catalyzer.index import file as index_file
from catalyzer.index.contents import MAX_ID, Contents
from catalyzer.index.lists import InvertedLists, check_learn, check_quantizer
from catalyzer.index.metric import Metric, MetricName
from catalyzer.index.source import VectorSource, name_of, open_source, sample, valid_rows
from catalyzer.nn import embed
from catalyzer.nn.storage import digest
from catalyzer.parts import Trust, find_class
from catalyzer.progress import progress
from catalyzer.quantizers import Quantizer

DEFAULT_RERANK = 500  # candidates
DEFAULT_NPROBE = 16  # lists, of an index that has so many

# One computation at a time in a process: the parallel loops of numba may not be entered by two threads at once, and networks
# are switched between training and evaluation.
_COMPUTING = threading.Lock()


class CatalyzerIndex:
    """Vectors as codes of a trained transform and a quantizer, and the search in them.

    Several threads may call its methods at once. Searches take turns, and see all of an addition or none of it.

    Args:
        bits: of a code, at most; 64 make 8 bytes.
        metric: "l2"; "cosine", where lengths say nothing; or "ip", the inner product, for which the longest training vector
            must be at least as long as every vector that is added.
        d_out: dimension that vectors are mapped to; "auto" tries which suits the data.
        hidden: width of the networks.
        decoder: train a decoder, for searches in two stages and for `reconstruct`.
        ivf: number of inverted lists; a search scans those nearest to the query. 0 makes none, and a search scans all codes.
            4 to 16 times the square root of the number of vectors is a good number.
        overrides: settings of `src/train.py`, written as on its command line: other networks, quantizers and losses, also
            of your own modules.

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
        d_out: int | Literal["auto"] = "auto",
        hidden: int = 1024,
        decoder: bool = True,
        ivf: int = 0,
        overrides: Sequence[str] = (),
    ) -> None:
        if not isinstance(decoder, bool):
            raise InvalidInput(f"decoder must be True or False, got {decoder!r}")
        if not isinstance(overrides, list | tuple) or not all(isinstance(each, str) for each in overrides):
            raise InvalidInput(f'overrides must be a list of texts such as "quantizer=opq", got {overrides!r}')
        self._ivf = _integer("ivf", ivf, 0)
        self._options: dict[str, Any] | None = {
            "bits": _integer("bits", bits, 1),
            "d_out": d_out if d_out == "auto" else _integer('d_out, if not "auto",', d_out, 2),
            "hidden": _integer("hidden", hidden, 1),
            "decoder": decoder,
            "overrides": list(overrides),
        }
        self._metric = Metric(metric)
        # Readers see one object that never changes; a writer replaces it.
        self._contents: Contents | None = None
        self._writing = threading.Lock()
        # Ids and codes have capacity behind the published rows, so that additions do not copy what is there each time.
        self._ids, self._codes = np.empty(0, np.int64), np.empty((0, 0), np.uint8)

    @classmethod
    def from_codec(cls, codec: Codec, metric: MetricName = "l2") -> Self:
        """An empty index of a trained codec, such as that of a run.

        Args:
            codec: trained; it is not copied.
            metric: "l2", or "cosine" for a codec that was trained on vectors of norm 1.

        Raises:
            InvalidInput: "ip", whose longest norm only `fit` learns; or a quantizer that is not fitted.

        >>> from catalyzer.nn import Identity
        >>> from catalyzer.quantizers import LatticeQuantizer
        >>> index = CatalyzerIndex.from_codec(Codec(Identity(d_in=24), LatticeQuantizer(dim=24)))
        >>> index.add(np.eye(24)).size, index.search(np.eye(24)[:2], k=1)[1].tolist()
        (0, [[0], [1]])
        """
        if metric == "ip":
            raise InvalidInput("an index for inner products learns the longest norm, so it cannot be made of a codec; call fit")
        if codec.quantizer.is_learned and not any(array.any() for array in codec.quantizer.state_dict().values()):
            raise InvalidInput(f"the codec's {type(codec.quantizer).__name__} is not fitted; call codec.fit(train) first")
        return cls._holding(_empty(codec, Metric(metric)))

    @classmethod
    def _holding(cls, contents: Contents) -> Self:
        index = cls(metric=contents.metric.name, ivf=0 if contents.lists is None else len(contents.lists))
        index._options, index._metric = None, contents.metric
        index._publish(contents)
        return index

    @property
    def is_trained(self) -> bool:
        """Whether `fit` has ended, or the index comes from a file or a codec."""
        return self._contents is not None

    @property
    def metric(self) -> MetricName:
        """How vectors are compared."""
        return self._metric.name

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        return self._trained().d

    @property
    def ntotal(self) -> int:
        """How many vectors there are."""
        return 0 if self._contents is None else len(self._contents.ids)

    @property
    def ivf(self) -> int:
        """How many lists the codes are in; 0 where there are none."""
        return self._ivf

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

        At most half a million of the vectors are used, spread evenly over `learn`; 5 to 20% of them are held out, and the
        epoch with the best recall on these is kept. Training seeds the random generators of torch, NumPy and Python, so the
        same call gives the same networks on the same machine. Searches of other threads wait until it ends.

        Args:
            learn: `(n, d)`, at least 500 of them, like those that will be added.
            epochs: passes over the training vectors, 20 by default. 40 find a little more; see docs/index.md.
            budget: a duration such as "90s", "10min" or "2h" instead: a few steps are timed, and as many epochs are trained as
                fit, at most 300. The learning rate follows its schedule over exactly these. Lists come on top: seconds for
                thousands.
            folder: keep the training here, so that the same call resumes one that was interrupted. By default a temporary
                folder, which is removed.
            skip_invalid: leave out vectors with NaN or infinity (for "cosine", of norm 0 too), instead of refusing all.

        Returns:
            The index itself.

        Raises:
            InvalidInput: too few vectors, also for so many lists, invalid ones, both epochs and budget, a budget too small for
                one epoch, a folder of another training, a quantizer that searches no lists, an index that comes from a file or
                a codec, or one that holds vectors already, whose codes would become void.
            Unavailable: the folder cannot be written.
        """
        if epochs is not None and budget is not None:
            raise InvalidInput(f"epochs = {epochs} and budget = {budget} both say how long to train; give one of them")
        if budget is not None and not isinstance(budget, str):
            raise InvalidInput(f'budget must be a duration such as "10min", got {budget!r}')
        if epochs is not None:
            _integer("epochs", epochs, 1)
        from catalyzer.index.recipe import EPOCHS, LEARN, learn_codec  # loads Lightning, which nothing else here needs
        from catalyzer.training import seconds_of

        seconds = None if budget is None else seconds_of(budget)
        epochs = (epochs or EPOCHS) if budget is None else None
        with self._writing, _COMPUTING, ExitStack() as stack:
            if self.ntotal:
                raise InvalidInput(f"the index holds {self.ntotal:,} vectors, whose codes another training would make void")
            if self._options is None:
                raise InvalidInput("the index is trained already, since it comes from a file or a codec; make another to fit")
            if self._ivf:
                check_quantizer(_quantizer_class(self._options["overrides"]))
            x = sample(open_source(learn), LEARN, self._metric, skip_invalid)
            check_learn(self._ivf, len(x))
            metric = self._metric.fit(x)
            try:
                if folder is None:
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="catalyzer-"))
                base = metric.base(x)
                codec = learn_codec(base, epochs=epochs, seconds=seconds, folder=Path(folder), **self._options)
            except OSError as error:
                if isinstance(error, CatalyzerError):
                    raise
                raise Unavailable(
                    f"the training cannot be kept in {folder}: {error.strerror or error}; give another folder"
                ) from None
            lists = InvertedLists.fit(codec, base, self._ivf) if self._ivf else None
            self._publish(_empty(codec, metric, lists))
            self._metric = metric
        return self

    def add(self, vectors: VectorSource, ids: np.ndarray | None = None, *, skip_invalid: bool = False) -> np.ndarray:
        """Code vectors and add them, block by block; if one is refused, none is added.

        Args:
            vectors: `(n, d)`; n may be 0.
            ids: `(n,)` integers, distinct, not in the index yet, and not -1, which means nothing found. By default they
                continue from the largest id that there has been: 0 to n - 1 at first.
            skip_invalid: leave out vectors with NaN or infinity (for "cosine", zeros only too), and their ids.

        Returns:
            `(m,)` int64, the rows that were left out.

        Raises:
            InvalidInput: not trained, another dimension, invalid vectors, ids that do not fit or are there already, or for
                "ip" a vector that is longer than all training vectors.
        """
        with self._writing:
            old = self._trained()
            source = open_source(vectors, old.d)
            wanted = _check_ids(ids, old, len(source))
            new_ids, new_codes = self._reserve(old, len(source))
            in_lists = np.empty(0 if old.lists is None else len(source), np.int32)
            n = 0
            skipped = [np.empty(0, np.int64)]
            with progress("adding", len(source), "vectors") as advance:
                for first in range(0, len(source), BLOCK):
                    block, invalid = valid_rows(source, first, BLOCK, old.metric, skip_invalid)
                    if (longer := old.metric.too_long(block)).any():
                        row = first + int(np.flatnonzero(~invalid)[np.argmax(longer)])
                        raise InvalidInput(
                            f"{name_of(source)}row {row:,} is longer than the longest training vector, of norm "
                            f"{old.metric.max_norm:.6g}, which is the limit for inner products; fit an index to vectors "
                            "among which is the longest of the base"
                        )
                    base, rows = old.metric.base(block), slice(n, n + len(block))
                    with _COMPUTING:
                        latent = embed(old.codec.transform, base)
                        new_codes[rows] = old.codec.encode_mapped(latent, base)
                        if old.lists is not None:
                            in_lists[rows] = old.lists.nearest(latent)[:, 0]
                    new_ids[rows] = wanted[first : first + BLOCK][~invalid]
                    n += len(block)
                    skipped.append(first + np.flatnonzero(invalid))
                    advance(len(invalid))
            self._append(old, new_ids[:n], new_codes[:n], in_lists[:n], int(wanted.max(initial=-1)))
        return np.concatenate(skipped)

    def search(
        self, queries: VectorSource, k: int = 10, rerank: int | None = None, nprobe: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k vectors nearest to each query, by their codes.

        Args:
            queries: `(nq, d)`, read block by block.
            k: neighbours per query.
            rerank: candidates of the first stage that are decoded and ranked by distance to the decoded vectors; 0 is the first
                stage alone. By default 500, or 0 without a decoder.
            nprobe: lists to scan per query, those nearest to it, 16 by default. All of them find what an index without lists
                would.

        Returns:
            `D` `(nq, k)` float32 and `I` `(nq, k)` int64 ids, best first. Where the index or its lists hold fewer than k
            vectors, `I` ends with -1, and `D` with inf or, for similarities, -inf.
            For "l2", `D` are squared distances as `Codec.search` defines them. For "cosine" and "ip" they are similarities to
            the decoded vectors. With rerank=0 they compare points on the sphere, for "ip" by their cosine.

        Raises:
            InvalidInput: not trained, another dimension, k below 1, rerank without a decoder, nprobe without lists or beyond
                their number, or an invalid query.
        """
        contents = self._trained()
        source = open_source(queries, contents.d)
        nprobe = _check_nprobe(nprobe, contents.lists)
        if rerank is None:
            rerank = DEFAULT_RERANK if contents.codec.decodes else 0
        k, rerank = _integer("k", k, 1), _integer("rerank", rerank, 0)
        if rerank:
            contents.codec.decode(contents.codes[:0])  # refuses without a decoder, also in an empty index
        found = min(k, len(contents.ids))
        scores = np.full((len(source), k), contents.metric.worst, np.float32)
        ids = np.full((len(source), k), -1, np.int64)
        size = min(BLOCK, max(1, PAIRS // max(k, rerank, nprobe)))
        several = len(source) > size
        with progress("queries" if several else None, len(source), "queries") as advance:
            for first in range(0, len(source), size):
                block, _ = valid_rows(source, first, size, contents.metric, skip=None)
                if found:
                    mapped = contents.metric.queries(block)
                    with _COMPUTING:
                        if contents.lists is None:
                            distances, rows = contents.codec.search(mapped, contents.codes, found, rerank)
                        else:
                            distances, rows = contents.lists.search(
                                contents.codec, mapped, contents.codes, found, rerank, nprobe
                            )
                    there = rows >= 0
                    told = contents.metric.scores(np.where(there, distances, 0), block, on_sphere=not rerank)
                    scores[first : first + size, :found] = np.where(there, told, contents.metric.worst)
                    ids[first : first + size, :found] = np.where(there, contents.ids[rows], -1)
                advance(len(block))
        return scores, ids

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        """The vectors, `(n, d)` float32, that the codes of `(n,)` ids decode to; for "cosine" of norm 1.

        Raises:
            InvalidInput: an id that is not there, or no decoder.
        """
        contents = self._trained()
        rows = _rows(contents, ids)
        with _COMPUTING:
            decoded = contents.codec.decode(np.asarray(contents.codes[rows]))
        return contents.metric.restore(decoded) if len(rows) else np.empty((0, contents.d), np.float32)

    def remove(self, ids: np.ndarray) -> None:
        """Remove the vectors of `(n,)` ids, which are not given out again.

        Raises:
            InvalidInput: an id that is not there; nothing is removed then.
        """
        with self._writing:
            contents = self._trained()
            kept = np.ones(len(contents.ids), bool)
            kept[_rows(contents, ids)] = False
            lists = None if contents.lists is None else contents.lists.keep(kept)
            # Arrays of their own, also where those before are mapped.
            ids, codes = np.array(contents.ids[kept]), np.array(contents.codes[kept])
            self._publish(replace(contents, ids=ids, codes=codes, lists=lists))

    def merge(self, other: "CatalyzerIndex") -> None:
        """Add all vectors of another index, with their ids; the other one stays as it is.

        Raises:
            InvalidInput: an index of another codec, metric or partition, whose codes mean other vectors, or an id of both.
        """
        added = other._trained()
        with self._writing:
            old = self._trained()
            same = old.metric == added.metric and np.array_equal(_centroids(old), _centroids(added))
            if not same or digest(old.codec.parts) != digest(added.codec.parts):
                raise InvalidInput(
                    "the two indexes come from different trainings, so their codes mean different vectors; "
                    "load both from copies of one fitted index, and add to these"
                )
            _check_new(added.ids, old)
            new_ids, new_codes = self._reserve(old, len(added.ids))
            new_ids[:], new_codes[:] = added.ids, added.codes
            lists = np.empty(0, int) if added.lists is None else np.repeat(np.arange(len(added.lists)), added.lists.sizes)
            self._append(old, new_ids, new_codes, lists, added.last_id)

    def save(self, path: str | Path) -> None:
        """Write the index to one file (docs/format.md), atomically.

        Raises:
            InvalidInput: not trained, or a part of your own that no file can hold.
            Unavailable: the file cannot be written, as on a full disk.
        """
        index_file.write(Path(path).expanduser(), self._trained())

    @classmethod
    def load(cls, path: str | Path, mmap: bool = False, trust: Trust = ()) -> Self:
        """Read what `save` wrote; nothing in the file is unpickled, and no code runs but that of modules that you trust.

        Args:
            path: of the file.
            mmap: leave ids and codes in the file, so that loading takes no longer for many vectors than for few, and processes
                share the memory; the first addition copies them. They are not compared with their checksums then: run
                `catalyzer verify` before you save what was added, or damage would be saved too.
            trust: modules beside this package whose classes the file may name; their code runs.

        Raises:
            InvalidInput: no such file, not an index, or one of a later format.
            DamagedFile: it is truncated, differs from its checksums or contradicts itself.
            UntrustedPart: it names a class of a module that is not in `trust`.
        """
        return cls._holding(index_file.read(Path(path).expanduser(), mmap, trust))

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


def _empty(codec: Codec, metric: Metric, lists: InvertedLists | None = None) -> Contents:
    return Contents(codec, metric, np.empty(0, np.int64), np.empty((0, codec.quantizer.code_size), np.uint8), lists=lists)


def _integer(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise InvalidInput(f"{name} must be an integer of at least {least}, got {value!r}")
    return number


def _quantizer_class(overrides: list[str]) -> type[Quantizer]:
    from catalyzer.runs.compose import compose_config

    return find_class(compose_config("train", overrides).quantizer._target_, Quantizer)


def _check_ids(ids: np.ndarray | None, contents: Contents, n: int) -> np.ndarray:
    if ids is None:
        if contents.last_id >= MAX_ID - n:
            raise InvalidInput(f"there are no {n:,} ids above {contents.last_id}, the largest so far; give ids")
        return np.arange(contents.last_id + 1, contents.last_id + 1 + n)
    ids = _int64(ids)
    if len(ids) != n:
        raise InvalidInput(f"expected an id for each of {n:,} vectors, got {len(ids):,}")
    distinct, first = np.unique(ids, return_index=True)
    if len(distinct) < n:
        again = int(np.setdiff1d(np.arange(n), first)[0])
        raise InvalidInput(f"row {again:,} has the id {ids[again]}, as a row before it; ids must be distinct")
    if (ids == -1).any():
        raise InvalidInput(f"row {int(np.argmax(ids == -1)):,} has the id -1, which stands for nothing found; give another")
    _check_new(ids, contents)
    return ids


def _check_new(ids: np.ndarray, contents: Contents) -> None:
    known = np.isin(ids, contents.ids)
    if known.any():
        raise InvalidInput(
            f"{int(known.sum()):,} of the ids are in the index already, the first of them {ids[np.argmax(known)]}; "
            "remove those from it, or give others"
        )


def _int64(ids: np.ndarray) -> np.ndarray:
    array = np.asarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.max(initial=0) > MAX_ID):
        raise InvalidInput(f"ids must be int64 of shape (n,), got shape {array.shape} of {array.dtype}")
    return array.astype(np.int64)


def _check_nprobe(nprobe: int | None, lists: InvertedLists | None) -> int:
    if lists is None:
        if nprobe is not None:
            raise InvalidInput(
                f"nprobe = {nprobe} is for an index with lists, and this one has none; fit one with ivf, or leave it out"
            )
        return 0
    if nprobe is None:
        return min(DEFAULT_NPROBE, len(lists))
    if _integer("nprobe", nprobe, 1) > len(lists):
        raise InvalidInput(f"nprobe must be between 1 and the number of lists, {len(lists):,}; got {nprobe}")
    return nprobe


def _centroids(contents: Contents) -> np.ndarray:
    return np.empty(0) if contents.lists is None else contents.lists.centroids


def _rows(contents: Contents, ids: np.ndarray) -> np.ndarray:
    ids = _int64(ids)
    order = np.argsort(contents.ids, kind="stable")
    at = np.searchsorted(contents.ids, ids, sorter=order)
    rows = order[np.minimum(at, len(order) - 1)] if len(order) else np.full(len(ids), -1)
    missing = np.ones(len(ids), bool) if not len(order) else contents.ids[rows] != ids
    if missing.any():
        raise InvalidInput(
            f"{int(missing.sum()):,} of the ids are not in the index, the first of them {ids[np.argmax(missing)]}"
        )
    return rows


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
