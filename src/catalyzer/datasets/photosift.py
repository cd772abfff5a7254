"""photosift: the SIFT descriptors of a folder of photographs in BigANN's layout, which anybody can make.

Learn, base and queries come from different photographs. The same photographs and seed give the same vectors, on any number of
cores and however often the process is killed. All descriptors are appended to one file, photograph by photograph, with a
journal next to it. The three parts are drawn from the complete file.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from catalyzer.datasets.benchmark import GROUND_TRUTH_K
from catalyzer.datasets.files import UNFINISHED, Layout, Photosift, bigann_layout
from catalyzer.datasets.sift import opencv, sift
from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import locked, write_atomically
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import BLOCK, VectorFile, write_vecs
from catalyzer.neighbors import knn
from catalyzer.progress import progress

log = logging.getLogger(__name__)

DIM = 128
LONGEST_SIDE = 640  # pixels, to which larger photographs are reduced
CONTRAST_THRESHOLD = 0.01  # OpenCV's is 0.04: weaker corners make more vectors of a photograph
QUERIES_A_PHOTOGRAPH = 250
BATCH = 64  # photographs that are handed out to the threads together

# As OpenCV lists them. Photographs are told by name, so that a damaged one is noticed, and a README next to them is not.
FORMATS = (
    ".avif", ".bmp", ".dib", ".gif", ".hdr", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".pic", ".png", ".pnm", ".ppm",
    ".pxm", ".ras", ".sr", ".tif", ".tiff", ".webp",
)  # fmt: skip


def make_photosift(
    images: Path, root: Path, *, base_size: int, learn_size: int, queries_size: int, seed: int, skip_unreadable: bool
) -> None:
    """Make `bigann_{learn,base,query}.bvecs` and exact ground truth, `gnd/idx_<n>M.ivecs`, below `root`.

    The photographs are shuffled. The first ones give the queries, at most 250 each, the following ones the base, and all others
    the learn set. Each part is shuffled and cut to its size. Extracted descriptors survive SIGKILL, and a finished folder is
    left alone.

    Args:
        images: folder of photographs in any formats that OpenCV reads; other files in it are skipped.
        root: folder to make.
        base_size: number of base vectors; the three sizes are in vectors of 128 × uint8.
        learn_size: number of learn vectors.
        queries_size: number of queries.
        seed: seed of all random choices; photosift's is 20190.
        skip_unreadable: skip photographs that cannot be read.

    Raises:
        InvalidInput: no photographs, too few for the sizes, or some that cannot be read; a `root` that holds something
            else.
        MissingPackage: OpenCV is not installed.
        Unavailable: another process makes it.
    """
    images, root = expanded(images), expanded(root)
    photographs = _photographs(images)
    origin = {
        "base_size": base_size,
        "learn_size": learn_size,
        "queries_size": queries_size,
        "seed": seed,
        "images": _fingerprint(photographs),
    }
    unfinished = root / UNFINISHED
    layout = bigann_layout(base_size)
    if Photosift.is_made(root, layout, origin):
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
        log.info("%s is already complete", root)
        return
    cv2 = opencv()
    root.mkdir(parents=True, exist_ok=True)
    with locked(unfinished):
        unfinished.mkdir(parents=True, exist_ok=True)

        random = np.random.default_rng(seed)
        shuffled = [photographs[i] for i in random.permutation(len(photographs))]
        counts = _extract(shuffled, unfinished, skip_unreadable)
        unreadable = [photograph for photograph, count in zip(shuffled, counts, strict=True) if count is None]
        if unreadable and not skip_unreadable:
            raise InvalidInput(
                f"OpenCV cannot read {len(unreadable):,} of the {len(shuffled):,} photographs, the first is {unreadable[0]}; "
                "repair or remove them, or leave them out with skip_unreadable=true"
            )
        if unreadable:
            log.warning(
                "%s of the %s photographs cannot be read and are left out", f"{len(unreadable):,}", f"{len(shuffled):,}"
            )
        sizes = (queries_size, base_size, learn_size)
        parts = _draw(np.array([count or 0 for count in counts]), *sizes, random)
        if any(len(rows) < size for rows, size in zip(parts, sizes, strict=True)):
            enough = ", ".join(
                f"{len(rows):,} of {size:,} {name}"
                for rows, size, name in zip(parts, sizes, ("queries", "base vectors", "learn vectors"), strict=True)
            )
            raise InvalidInput(
                f"the {len(shuffled):,} photographs in {images} have {sum(count or 0 for count in counts):,} descriptors, "
                f"enough for {enough}; add photographs, or lower queries_size, dataset.base_size or learn_size; with "
                "other sizes, nothing is extracted again"
            )

        _write(parts, unfinished, layout)
        for file in layout:
            (root / file).parent.mkdir(exist_ok=True)
            (unfinished / file).replace(root / file)
        made = origin | {"opencv": cv2.__version__, "left_out": sorted(photograph.name for photograph in unreadable)}
        write_atomically(Photosift.record(root), lambda file: file.write(json.dumps(made, indent=1).encode()))
        shutil.rmtree(unfinished)
        log.info("%s: %s learn, %s base and %s query vectors", root, f"{learn_size:,}", f"{base_size:,}", f"{queries_size:,}")


def _photographs(images: Path) -> list[Path]:
    if not images.is_dir():
        raise InvalidInput(f"images={images} is not a folder; expected one with photographs")
    found = [path for path in images.iterdir() if path.suffix.lower() in FORMATS and not path.name.startswith(".")]
    if not found:
        raise InvalidInput(f"images={images} has no photographs; expected files that end in {', '.join(FORMATS)}")
    return sorted(found, key=lambda path: path.name)


def _fingerprint(photographs: list[Path]) -> str:
    # Names and sizes, and not contents: it is taken at every start.
    listing = repr([(path.name, path.stat().st_size) for path in photographs])
    return hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()


def _extract(photographs: list[Path], folder: Path, skip_unreadable: bool) -> list[int | None]:
    """Append the descriptors of all photographs, in this order, to a file in `folder`; what is there already is kept.

    Args:
        photographs: photographs in the order of the file.
        folder: folder of descriptors and journal.
        skip_unreadable: whether one that could not be read before is passed over, instead of tried again.

    Returns:
        How many descriptors each photograph has; None for one that cannot be read.
    """
    entries = _extracted(photographs, folder, skip_unreadable)
    counts = [count for _, _, count in entries]
    write_atomically(folder / "journal", lambda file: file.writelines(_line(*entry) for entry in entries))
    if counts:
        log.info("resuming after %s of %s photographs", f"{len(counts):,}", f"{len(photographs):,}")
    todo = photographs[len(counts) :]
    with (
        (folder / "descriptors.u8").open("ab") as descriptors,
        (folder / "journal").open("ab") as journal,
        ThreadPoolExecutor(os.cpu_count()) as threads,
        progress("extracting SIFT descriptors", len(todo), "photographs") as advance,
    ):
        descriptors.truncate(sum(count or 0 for count in counts) * DIM)  # killed before the journal's line was written
        for start in range(0, len(todo), BATCH):
            batch = todo[start : start + BATCH]
            for photograph, found in zip(batch, threads.map(_descriptors, batch), strict=True):
                if found is None:
                    log.warning("%s cannot be read", photograph)
                else:
                    descriptors.write(found.data)
                    descriptors.flush()
                counts.append(None if found is None else len(found))
                journal.write(_line(photograph.name, photograph.stat().st_size, counts[-1]))
                journal.flush()
                advance(1)
    return counts


def _line(name: str, size: int, count: int | None) -> bytes:
    return json.dumps([name, size, count]).encode() + b"\n"


def _extracted(photographs: list[Path], folder: Path, skip_unreadable: bool) -> list[tuple[str, int, int | None]]:
    """The journal's entries for as long as they are of these photographs, in this order and unchanged."""
    journal, descriptors = folder / "journal", folder / "descriptors.u8"
    if not journal.exists() or not descriptors.exists():
        return []
    entries: list[tuple[str, int, int | None]] = []
    left = descriptors.stat().st_size // DIM
    for photograph, line in zip(photographs, journal.read_bytes().splitlines(), strict=False):
        try:
            name, size, count = json.loads(line)
        except ValueError:  # the kill came while it was written
            break
        left -= count or 0
        if (name, size) != (photograph.name, photograph.stat().st_size) or left < 0:
            break
        if count is None and not skip_unreadable:  # tried again, since it may have been mended, or only its disk was away
            break
        entries.append((name, size, count))
    return entries


def _descriptors(photograph: Path) -> np.ndarray | None:
    """`(n, 128)` uint8 of a photograph, or None where it cannot be read."""
    cv2 = opencv()
    try:
        grey = cv2.imread(str(photograph), cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # more pixels than OpenCV takes
        return None
    if grey is None:
        return None
    height, width = grey.shape
    if max(height, width) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return sift(grey, contrastThreshold=CONTRAST_THRESHOLD)


def _draw(
    counts: np.ndarray, queries_size: int, base_size: int, learn_size: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows of the extracted descriptors are queries, base and learn; fewer than the sizes where there are no more.

    Args:
        counts: descriptors of each photograph.
        queries_size: see `make_photosift`.
        base_size: see `make_photosift`.
        learn_size: see `make_photosift`.
        random: draws the queries of a photograph that has more than 250, then shuffles queries, base and learn.
    """
    ends = np.cumsum(counts)
    drawn = [np.empty(0, np.int64)]
    first = 0  # row at which the next photograph begins
    for end in ends:
        if sum(map(len, drawn)) >= queries_size:
            break
        rows = np.arange(first, end)
        drawn.append(random.choice(rows, QUERIES_A_PHOTOGRAPH, replace=False) if len(rows) > QUERIES_A_PHOTOGRAPH else rows)
        first = end
    full = np.flatnonzero(ends >= first + base_size)  # the base ends with a photograph too
    base_end = ends[full[0]] if len(full) else ends[-1]
    parts = (np.concatenate(drawn), np.arange(first, base_end), np.arange(base_end, ends[-1]))
    queries, base, learn = (random.permutation(rows) for rows in parts)
    return queries[:queries_size], base[:base_size], learn[:learn_size]


def _write(parts: tuple[np.ndarray, np.ndarray, np.ndarray], folder: Path, layout: Layout) -> None:
    """The three parts, given as rows of the extracted descriptors, and the ground truth."""
    descriptors = np.memmap(folder / "descriptors.u8", np.uint8, "r").reshape(-1, DIM)
    for file, rows in zip((layout.queries, layout.base, layout.learn), parts, strict=True):
        write_vecs(folder / file, _blocks(descriptors, rows, f"writing {file}"))
    base = VectorFile(folder / layout.base)
    ids = knn(VectorFile(folder / layout.queries), base, min(GROUND_TRUTH_K, len(base)), "ground truth")[1]
    (folder / layout.groundtruth).parent.mkdir(exist_ok=True)
    write_vecs(folder / layout.groundtruth, [ids])


def _blocks(descriptors: np.ndarray, rows: np.ndarray, description: str) -> Iterator[np.ndarray]:
    with progress(description, len(rows), "vectors") as advance:
        for start in range(0, len(rows), BLOCK):
            block = descriptors[rows[start : start + BLOCK]]
            yield block
            advance(len(block))
