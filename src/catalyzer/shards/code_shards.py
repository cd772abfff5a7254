"""A folder of codes: shards, which are npy files with the same number of rows, and a manifest that records their origin.

Each shard is written atomically, and then its checksum goes into the manifest. So a shard that the manifest names is complete,
and one that it does not name is encoded again.
"""

import hashlib
import io
import logging
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalyzer.errors import DamagedFile, InvalidInput
from catalyzer.files.atomic import write_atomically
from catalyzer.metric import L2, Metric
from catalyzer.progress import progress

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MANIFEST_LOCK = f"{MANIFEST}.lock"
MANIFEST_FORMAT = 1
ENCODE_AGAIN = "repeat the src/encode.py command to encode the missing shards"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Input(_Part):
    """The encoded file: its path, its size in bytes, and its modification time, in nanoseconds since 1970."""

    path: str
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Self:
        status = path.stat()
        return cls(path=str(path.resolve()), size=status.st_size, modified=status.st_mtime_ns)

    def __str__(self) -> str:
        changed = datetime.fromtimestamp(self.modified / 1e9).isoformat(" ", "seconds")
        return f"{self.path} of {self.size:,} bytes, changed {changed}"


class Shard(_Part):
    """A file of codes: its name in the folder, the number of codes, and the BLAKE2b-256 of the file."""

    file: str = Field(pattern=r"^\d{6,}\.npy$")
    rows: int = Field(ge=1)
    blake2b: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(_Part):
    """The origin and the files of the codes in a folder.

    Attributes:
        format: version of this file, 1.
        run: folder of the run whose catalyzer mapped the vectors.
        parts: BLAKE2b-256 of its transform, quantizer, decoder and query network; see `catalyzer.nn.digest`.
        steps: number of gradient steps; see `Codec`.
        refine: number of lattice points that were tried for each vector.
        metric: metric of the run, which transforms the vectors.
        input: the file of vectors.
        rows: number of vectors in the file.
        code_size: bytes of a code.
        shard_size: number of rows of each shard except the last.
        shards: finished shards, by number.
    """

    format: Literal[1]
    run: str
    parts: str
    steps: int = 0
    refine: int
    metric: Metric = L2
    input: Input
    rows: int = Field(ge=1)
    code_size: int = Field(ge=1)
    shard_size: int = Field(ge=1)
    shards: dict[int, Shard]


class CodeShards:
    """A folder of codes of the rows of one file; shard i begins with row `i * shard_size`.

    Args:
        folder: folder with the shards and the manifest.
        manifest: origin and files of the codes.

    >>> import tempfile
    >>> manifest = Manifest(
    ...     format=1, run="outputs/RUN", parts="", refine=1, input=Input(path="x.npy", size=0, modified=0),
    ...     rows=5, code_size=2, shard_size=4, shards={},
    ... )
    >>> shards = CodeShards.create(Path(tempfile.mkdtemp()), manifest)
    >>> for number in shards.unfinished():
    ...     shards.record(number, shards.write(number, np.full((len(shards.rows(number)), 2), number, np.uint8)))
    >>> CodeShards.open(shards.folder).read(1).tolist()
    [[1, 1]]
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder.resolve(), manifest  # absolute, since workers may start elsewhere

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> Self:
        """Make the folder, or resume one with the same codes; to be called by one process at a time.

        Raises:
            InvalidInput: the folder holds codes of another run, quantizer or input, shards of another size, or something else.
        """
        if (folder / MANIFEST).exists():
            shards = cls.open(folder)
            shards._check_same(manifest)
            shards.remove_leftovers()
            return shards
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name != MANIFEST_LOCK)
        if others:
            raise InvalidInput(
                f"{folder} holds {others[0]}, which src/encode.py did not make; choose another folder with output=DIR"
            )
        shards = cls(folder, manifest)
        shards._save()
        return shards

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the manifest; codes are read and checked on request.

        Raises:
            InvalidInput: a missing manifest, or one of a newer format.
            DamagedFile: the manifest is not valid.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise InvalidInput(f"{folder} has no {MANIFEST}; expected a folder that src/encode.py made")
        try:
            shards = cls(folder, Manifest.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            version = first["input"]
            if first["loc"] == ("format",) and isinstance(version, int) and version > MANIFEST_FORMAT:
                raise InvalidInput(
                    f"{path} has format {version:,}, but this version of catalyzer reads up to {MANIFEST_FORMAT}; "
                    "install a newer version"
                ) from None
            raise _damaged(path, f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}") from None
        for number, shard in shards.manifest.shards.items():
            if shard.file != f"{number:06d}.npy" or shard.rows != len(shards.rows(number)):
                raise _damaged(path, f"shard {number} contradicts the rest")
        return shards

    @property
    def count(self) -> int:
        """The number of shards of all rows."""
        return -(-self.manifest.rows // self.manifest.shard_size)

    def rows(self, number: int) -> range:
        """The rows of the input whose codes a shard has."""
        first = number * self.manifest.shard_size
        return range(first, min(first + self.manifest.shard_size, self.manifest.rows))

    def unfinished(self) -> list[int]:
        """The numbers of the shards that are not encoded yet, missing or damaged.

        Reads all shards that the manifest names, and logs which of them are missing or damaged.
        """
        complete = set()
        with progress("checking shards", len(self.manifest.shards), "shards") as advance:
            for number in self.manifest.shards:
                try:
                    self.read(number)
                    complete.add(number)
                except DamagedFile as error:
                    log.warning("%s", error)
                advance(1)
        return [number for number in range(self.count) if number not in complete]

    def write(self, number: int, codes: np.ndarray) -> Shard:
        """Write the codes, `(rows, code_size)` uint8, of a shard; any process may do this, also repeatedly."""
        assert codes.shape == (len(self.rows(number)), self.manifest.code_size)
        assert codes.dtype == np.uint8
        buffer = io.BytesIO()
        np.save(buffer, codes, allow_pickle=False)
        name = f"{number:06d}.npy"
        write_atomically(self.folder / name, lambda file: file.write(buffer.getbuffer()))
        return Shard(file=name, rows=len(codes), blake2b=_blake2b(buffer.getbuffer()))

    def record(self, number: int, shard: Shard) -> None:
        """Add a shard that `write` wrote to the manifest; one process does this for all."""
        made = {**self.manifest.shards, number: shard}
        self.manifest = self.manifest.model_copy(update={"shards": dict(sorted(made.items()))})
        self._save()

    def read(self, number: int) -> np.ndarray:
        """The codes of a shard, `(rows, code_size)` uint8, compared with their checksum.

        Raises:
            DamagedFile: the shard is missing, or differs from its checksum.
        """
        shard = self.manifest.shards[number]
        path = self.folder / shard.file
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise DamagedFile(f"{path} is missing; {ENCODE_AGAIN}") from None
        if _blake2b(content) != shard.blake2b:
            raise DamagedFile(f"{path} does not match its checksum; {ENCODE_AGAIN}")
        codes: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        return codes

    def check_complete(self) -> None:
        """Raise `InvalidInput` unless the manifest names all shards."""
        missing = self.count - len(self.manifest.shards)
        if missing:
            raise InvalidInput(
                f"{self.folder} is incomplete: {missing:,} of its {self.count:,} shards are missing; {ENCODE_AGAIN}"
            )

    def remove_leftovers(self) -> None:
        """Remove the temporary files of writers that were killed."""
        for path in self.folder.glob(".*.npy.*"):
            path.unlink(missing_ok=True)
        for path in self.folder.glob(f".{MANIFEST}.*"):
            path.unlink(missing_ok=True)

    def _check_same(self, wanted: Manifest) -> None:
        there = self.manifest
        decide = {"parts", "steps", "refine", "metric"}
        if there.model_dump(include=decide) != wanted.model_dump(include=decide):
            reason = f"holds codes of another run, {there.run}"
        elif there.input != wanted.input:
            reason = f"holds codes of another input, {there.input}"
        elif there.shard_size != wanted.shard_size:
            reason = f"holds shards of another size, shard_size={there.shard_size}"
        else:
            return
        raise InvalidInput(f"{self.folder} {reason}; choose another folder with output=DIR, or remove it")

    def _save(self) -> None:
        text = self.manifest.model_dump_json(indent=1)
        write_atomically(self.folder / MANIFEST, lambda file: file.write(text.encode()))


def _blake2b(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def _damaged(path: Path, reason: str) -> DamagedFile:
    return DamagedFile(f"{path} is damaged ({reason}); remove {path.parent} and encode again")
