"""Encode a file of vectors of any size into code shards."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catalyzer.errors import InvalidInput
from catalyzer.files.atomic import locked
from catalyzer.files.paths import expanded
from catalyzer.files.vectors import BLOCK, open_vectors
from catalyzer.nn import digest
from catalyzer.parts import Trust
from catalyzer.progress import progress
from catalyzer.runs.trained_run import TrainedRun
from catalyzer.shards.code_shards import MANIFEST, CodeShards, Input, Manifest, Shard
from catalyzer.shards.engines import Engine, local

log = logging.getLogger(__name__)

SHARD_SIZE = 1 << 18  # vectors


def encode(
    run: str | Path,
    source: str | Path,
    folder: str | Path,
    shard_size: int = SHARD_SIZE,
    engine: Engine = local,
    trust: Trust = (),
) -> CodeShards:
    """Encode all vectors of a file with a finished run, shard by shard; resume an interrupted call.

    Memory is that of the vectors of one shard. An interruption loses the shards that are being encoded.

    Args:
        run: folder of the run.
        source: file of `(n, d)` vectors in any format of `catalyzer.files.vectors`.
        folder: folder of the shards; made if it is missing.
        shard_size: number of vectors in a shard.
        engine: engine that runs the tasks.
        trust: modules whose classes the run may name; see `TrainedRun.load`.

    Returns:
        All shards.

    Raises:
        InvalidInput: an invalid run, file or vector, or a folder with other content.
        DamagedFile: the manifest in `folder` is not valid.
        Unavailable: another process encodes into `folder`, or the disk is full.
    """
    run, source, folder = Path(run).resolve(), expanded(source).resolve(), Path(folder)
    trained, vectors = TrainedRun.load(run, trust), open_vectors(source)
    codec = trained.codec
    if vectors.shape[1] != trained.d:
        raise InvalidInput(f"{source}: expected vectors of dimension {trained.d}, as in {run}; got {vectors.shape[1]}")
    wanted = Manifest(
        format=1,
        run=str(run),
        parts=digest(codec.parts),
        steps=codec.steps,
        refine=codec.refine,
        metric=trained.metric,
        input=Input.of(source),
        rows=len(vectors),
        code_size=codec.quantizer.code_size,
        shard_size=shard_size,
        shards={},
    )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / MANIFEST):
        shards = CodeShards.create(folder, wanted)
        todo = shards.unfinished()
        log.info("%s: %s of %s shards to encode", folder, f"{len(todo):,}", f"{shards.count:,}")
        with progress("encoding", sum(len(shards.rows(number)) for number in todo), "vectors") as advance:
            for number, shard in engine(_Encode(trained, source, shards), todo):
                shards.record(number, shard)
                advance(shard.rows)
        shards.remove_leftovers()
    return shards


@dataclass(frozen=True)
class _Encode:
    """A task: encode and write one shard."""

    run: TrainedRun
    source: Path
    shards: CodeShards

    def __call__(self, number: int) -> Shard:
        # Opened for each shard: pages of a mapped file count as memory of the process until it is closed.
        vectors, rows = self.run.stored(open_vectors(self.source)), self.shards.rows(number)
        blocks = [
            self.run.codec.encode(vectors[first : min(first + BLOCK, rows.stop)], None)
            for first in range(rows.start, rows.stop, BLOCK)
        ]
        return self.shards.write(number, np.concatenate(blocks))
