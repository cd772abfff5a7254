"""glosses: embeddings of the definitions in two dictionaries, or of your own texts, which anybody can make.

The texts are shuffled by a seed. The first are the queries, the following the base, and the rest the learn set. They are
embedded in parts, and a part that is written is never embedded again, however often the process is killed.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from catalyzer.datasets.dictionaries import gcide_definitions, wordnet_definitions
from catalyzer.datasets.encoders import FOLDER_FILES, load_encoder, model_folder, require_sentence_transformers
from catalyzer.datasets.files import UNFINISHED, Layout, Made
from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import locked, write_atomically
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import VectorFile, write_npy, write_vecs
from catalyzer.progress import progress

log = logging.getLogger(__name__)

PART = 4096  # texts that are embedded before they are kept
BATCH = 64  # texts that go through the network at once


class Glosses(Made):
    """Embeddings of texts, made by `make_glosses`. See `Published` for the arguments.

    `learn.txt`, `base.txt` and `queries.txt` next to the vectors have the text of each vector, one per line.
    """

    label = "glosses"
    source = "made by: python src/prepare.py dataset=glosses"

    @staticmethod
    def layout(base_size: int) -> Layout:
        return Layout("learn.fvecs", "base.fvecs", "queries.fvecs", f"groundtruth_{base_size}.ivecs")


def make_glosses(
    root: Path,
    *,
    texts: Path | None,
    wordnet: Path,
    gcide: Path,
    model: str | None,
    dtype: str,
    device: str,
    normalize: bool,
    base_size: int,
    learn_size: int | None,
    queries_size: int,
    seed: int,
) -> None:
    """Make `learn.fvecs`, `base.fvecs` and `queries.fvecs` in `root`, each with a file of its texts, one per line.

    Texts that differ only in case, punctuation or white space count as one, so no text is in two of the three files. Embeddings
    survive SIGKILL, and are reused if only the sizes change. A finished folder is left alone.

    Args:
        root: folder to make.
        texts: file of texts, one per line, UTF-8; None is the definitions of WordNet and GCIDE.
        wordnet: folder of WordNet's `data.noun`, `data.verb`, `data.adj` and `data.adv`.
        gcide: GCIDE's `gcide.dict.dz`, with `gcide.index` in the same folder.
        model: see `model_folder`.
        dtype: dtype of the network's weights and activations, "bfloat16" or "float32"; pooling is in float32.
        device: "cpu", "cuda", ..., or "auto": a GPU where there is one.
        normalize: scale each embedding to an L2 norm of 1.
        base_size: number of base vectors.
        learn_size: number of learn vectors; None is all that are left.
        queries_size: number of queries.
        seed: seed of the order of the texts.

    Raises:
        InvalidInput: no texts, or too few for the sizes; a model that cannot be used; a `root` that holds something else.
        DamagedFile: a dictionary that cannot be read.
        MissingPackage: sentence-transformers is not installed.
        Unavailable: another process makes it; a model that cannot be fetched.
    """
    root = expanded(root)
    require_sentence_transformers()
    every = _distinct(_lines(expanded(texts)) if texts else _definitions(expanded(wordnet), expanded(gcide)))
    learn = len(every) - base_size - queries_size if learn_size is None else learn_size
    needed = queries_size + base_size + max(learn, 1)
    if len(every) < needed:
        raise InvalidInput(
            f"{texts or 'WordNet and GCIDE'}: there are {len(every):,} different texts, too few for {queries_size:,} queries, "
            f"{base_size:,} base and {max(learn, 1):,} learn vectors; add texts, or lower queries_size, "
            "dataset.base_size or learn_size"
        )
    folder = model_folder(model)
    embedding = {
        "texts": _digest(every),
        "model": _digest_of_files(folder),
        "dtype": dtype,
        "normalize": normalize,
        "seed": seed,
    }
    origin = embedding | {"base_size": base_size, "learn_size": learn, "queries_size": queries_size}
    layout = Glosses.layout(base_size)
    unfinished = root / UNFINISHED
    files = [layout.queries, layout.base, layout.learn]
    if Glosses.is_made(root, [*files, *map(_texts_of, files)], origin):
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
        log.info("%s is already complete", root)
        return
    root.mkdir(parents=True, exist_ok=True)
    with locked(unfinished):
        # Parts depend on everything but the sizes, which only say how many of them there are.
        parts = unfinished / hashlib.blake2b(json.dumps([embedding, PART]).encode(), digest_size=8).hexdigest()
        parts.mkdir(parents=True, exist_ok=True)
        shuffled = [every[i] for i in np.random.default_rng(seed).permutation(len(every))]
        _embed(shuffled, needed, parts, lambda: load_encoder(folder, dtype, device, normalize))
        start = 0
        for file, size in zip(files, (queries_size, base_size, learn), strict=True):
            write_vecs(root / file, _rows(parts, start, start + size))
            _write_lines(root / _texts_of(file), shuffled[start : start + size])
            start += size
        made = origin | {"dim": VectorFile(root / layout.base).shape[1]}
        write_atomically(Glosses.record(root), lambda file: file.write(json.dumps(made, indent=1).encode()))
        shutil.rmtree(unfinished)
        log.info("%s: %s learn, %s base and %s query vectors", root, f"{learn:,}", f"{base_size:,}", f"{queries_size:,}")


def _texts_of(file: str) -> str:
    return str(Path(file).with_suffix(".txt"))


def _definitions(wordnet: Path, gcide: Path) -> Iterator[str]:
    log.info("reading the definitions in %s and %s", wordnet, gcide)
    yield from wordnet_definitions(wordnet)
    yield from gcide_definitions(gcide)


def _lines(path: Path) -> Iterator[str]:
    try:
        content = path.read_text("utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"texts={path} cannot be read ({error.strerror}); expected a file with one text a line") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"texts={path} is not UTF-8 at byte {error.start:,}; convert it, as iconv does") from None
    yield from content.split("\n")


def _distinct(texts: Iterable[str]) -> list[str]:
    """The texts in their order, white space as single spaces, without empty ones and repetitions."""
    first: dict[str, str] = {}
    for text in texts:
        if flat := " ".join(text.split()):
            first.setdefault(re.sub(r"\W+", " ", flat).strip().casefold() or flat, flat)
    return list(first.values())


def _digest(texts: list[str]) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()


def _digest_of_files(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.suffix in FOLDER_FILES):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _embed(texts: list[str], needed: int, parts: Path, load: Callable[[], Callable[[list[str]], np.ndarray]]) -> None:
    """Embed `texts` from the first on, until there are at least `needed`; parts that are there are kept."""
    starts = range(0, needed, PART)
    todo = [start for start in starts if not _part(parts, start).exists()]
    if not todo:
        return
    if len(todo) < len(starts):
        log.info("resuming after %s of %s parts", f"{len(starts) - len(todo):,}", f"{len(starts):,}")
    encode = load()
    with progress("embedding", sum(len(texts[start : start + PART]) for start in todo), "texts") as advance:
        for start in todo:
            part = texts[start : start + PART]
            by_length = sorted(range(len(part)), key=lambda row: len(part[row]))  # texts of a batch are padded to the longest
            rows: list[np.ndarray] = []
            for first in range(0, len(part), BATCH):
                rows.append(encode([part[row] for row in by_length[first : first + BATCH]]))
                advance(len(rows[-1]))
            embedded = np.empty((len(part), rows[0].shape[1]), np.float32)
            embedded[by_length] = np.concatenate(rows)
            write_npy(_part(parts, start), embedded)


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start // PART:06}.npy"


def _rows(parts: Path, start: int, stop: int) -> Iterator[np.ndarray]:
    for first in range(start // PART * PART, stop, PART):
        yield VectorFile(_part(parts, first))[max(start - first, 0) : stop - first]


def _write_lines(path: Path, texts: list[str]) -> None:
    write_atomically(path, lambda file: file.write("".join(f"{text}\n" for text in texts).encode()))
