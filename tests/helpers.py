"""What several test files use: made vectors, brute force, small trainings and runs, commands in processes, a file server."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:  # torch and Lightning take seconds to import, and most test files need neither
    from catalyzer import Catalyzer
    from catalyzer.runs.settings import Settings
    from catalyzer.training import TripletData

ROOT = Path(__file__).parent.parent

Finished = subprocess.CompletedProcess[str]
Command = Callable[..., Finished]

DIM = 32
"""Dimension of the vectors of `own_files`, of the fitted index and of `make_run`."""

FAST = ["catalyzer.hidden=64", "trainer.max_epochs=2", "batch_size=64"]
"""Overrides that make a training on `own_files` a matter of seconds."""


def clustered(n: int, dim: int, seed: int) -> np.ndarray:
    """Vectors that have neighbours: points around a few hundred centres that all seeds share; uint8."""
    centres = np.random.default_rng(99).normal(128, 40, (300, dim))
    random = np.random.default_rng(seed)
    return (centres[random.integers(300, size=n)] + random.normal(0, 15, (n, dim))).clip(0, 255).astype(np.uint8)


def u8bin(x: np.ndarray) -> bytes:
    """The content of a .u8bin file; of a .fbin file when x is float32."""
    return np.array(x.shape, "<i4").tobytes() + x.tobytes()


def bvecs(x: np.ndarray) -> bytes:
    """The content of a .bvecs file."""
    return b"".join(np.int32(x.shape[1]).tobytes() + row.tobytes() for row in x)


DTYPES = {
    ".fvecs": np.float32, ".bvecs": np.uint8, ".ivecs": np.int32, ".fbin": np.float32, ".u8bin": np.uint8, ".i8bin": np.int8,
    ".hbin": np.float16, ".f16bin": np.float16, ".ibin": np.int32, ".npy": np.float32,
}  # fmt: skip
DTYPES |= {f"{extension}.gz": dtype for extension, dtype in DTYPES.items()}
DTYPES |= dict.fromkeys((".npz", ".hdf5", ".h5", ".safetensors", ".parquet", ".arrow", ".feather"), np.float32)


def write(path: Path, x: np.ndarray) -> Path:
    """Write x in the format, and as the type, that the extension names: .fvecs and .ivecs by faiss."""
    # Imported here, since faiss reads OMP_NUM_THREADS when it is loaded, and conftest.py sets it.
    import gzip

    import h5py
    import pyarrow
    from faiss.contrib import vecs_io
    from pyarrow import feather, parquet
    from safetensors.numpy import save_file

    extension = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if extension != ".npy":  # which holds any type
        x = np.ascontiguousarray(x, DTYPES[extension])
    if path.suffix == ".gz":
        plain = write(path.with_suffix(""), x)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    elif path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".npz":
        np.savez(path, x=x)
    elif path.suffix in (".hdf5", ".h5"):
        with h5py.File(path, "w") as file:
            file["x"] = x
    elif path.suffix == ".safetensors":
        save_file({"x": x}, path)
    elif path.suffix in (".parquet", ".arrow", ".feather"):
        table = pyarrow.table({"x": pyarrow.FixedSizeListArray.from_arrays(x.ravel(), x.shape[1])})
        if path.suffix == ".parquet":
            parquet.write_table(table, path, row_group_size=16)
        elif path.suffix == ".feather":
            feather.write_feather(table, path, chunksize=16)
        else:
            with pyarrow.ipc.new_file(path, table.schema) as out:
                out.write_table(table, max_chunksize=16)
    elif path.suffix == ".fvecs":
        vecs_io.fvecs_write(str(path), x)
    elif path.suffix == ".ivecs":
        vecs_io.ivecs_write(str(path), x)
    else:
        path.write_bytes(u8bin(x) if path.suffix.endswith("bin") else bvecs(x))
    return path


def brute_force(queries: np.ndarray, base: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest neighbours, as `catalyzer.knn` has them, in double precision."""
    difference = queries[:, None].astype(np.float64) - base[None].astype(np.float64)
    distances = (difference**2).sum(-1)
    ids = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, ids, 1), ids


def all_points(dim: int, radius_sq: int) -> np.ndarray:
    """All integer points of the sphere, `(num_points, dim)`, by enumeration."""
    most = int(radius_sq**0.5)
    grid = np.array(list(itertools.product(range(-most, most + 1), repeat=dim)))
    return grid[(grid**2).sum(1) == radius_sq]


def blocks(page: str) -> list[tuple[str, str]]:
    """Language, empty where none is given, and content of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


TRAIN_SIZE = 400
"""Training vectors of `triplet_data`."""


def options(tmp_path: Path) -> dict[str, Any]:
    """Arguments of `TripletData` and `QueryData`, with a cache in `tmp_path`."""
    from catalyzer.datasets import Split
    from catalyzer.files.array_cache import ArrayCache
    from catalyzer.training import Miner

    cache = ArrayCache(tmp_path)
    split = Split(clustered(100, 16, 1), clustered(10, 16, 2), cache=cache)
    sizes = {"batch_size": 32, "k_pos": 5, "k_neg": 20}
    miner = Miner("exact", "exact")
    return {"train": clustered(TRAIN_SIZE, 16, 0), "validation": split, "miner": miner, "seed": 0, "cache": cache, **sizes}


def triplet_data(tmp_path: Path, **changes: Any) -> "TripletData":
    from catalyzer.training import TripletData

    return TripletData(**options(tmp_path) | changes)


def network() -> "Catalyzer":
    """From the 16 dimensions of `triplet_data` to 8."""
    import torch

    from catalyzer import Catalyzer

    torch.manual_seed(0)
    return Catalyzer(16, 8, hidden=32).adapt(clustered(TRAIN_SIZE, 16, 0))


def settings_of(*overrides: str) -> "Settings":
    """The settings of `train.py OVERRIDES`."""
    from catalyzer.commands.train import composed_settings
    from catalyzer.runs.compose import compose_config, resolved

    values = resolved(compose_config("train", [*overrides]))
    del values["resume"], values["trust"]
    return composed_settings(values, overrides)


def make_run(folder: Path, *overrides: str, seed: int = 0) -> Path:
    """The folder of a run on `clustered` vectors, as `train.py OVERRIDES` would leave it but for the training."""
    import torch

    from catalyzer.nn import save_part
    from catalyzer.runs.build import build_codec

    settings = settings_of("catalyzer.hidden=64", *overrides)
    settings.save(folder / "config.yaml")
    torch.manual_seed(seed)
    codec, x = build_codec(settings, DIM, int(settings.d_out)), clustered(1000, DIM, 0)
    for name, network in (("catalyzer", codec.transform), ("decoder", codec.decoder)):
        if network is not None:
            save_part(network.adapt(x), folder, name, 0.0)
    codec.fit(x)
    save_part(codec.quantizer, folder, "quantizer", 0.0)
    return folder


def only_run(folder: Path) -> Path:
    """The one run folder in `outputs`."""
    (run,) = (folder / "outputs").iterdir()
    return run


def rows(run: Path) -> dict[str, dict]:
    """The results of a run by method."""
    return {row["method"]: row for row in json.loads((run / "results.json").read_text())["rows"]}


def wandb_records(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format (32 KiB blocks of checksum, length, type, data) after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, records, parts = path.read_bytes(), 7, [], []
    while at + 7 <= len(content):
        if (1 << 15) - at % (1 << 15) < 7:  # no header fits in the rest of the block
            at += (1 << 15) - at % (1 << 15)
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            records.append(wandb_internal_pb2.Record.FromString(b"".join(parts)))
            parts = []
    return records


def refused(process: Finished, *words: str) -> None:
    """Assert that a command has printed one sentence, with these words, and nothing else."""
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("error: ")
    for word in words:
        assert word in process.stderr
    assert process.stdout == ""


def command(script: str, environment: dict[str, str], folder: Path) -> Command:
    """`python src/SCRIPT OVERRIDES` in `folder`, in a process that has imported already; if `typed`, as a user starts it."""

    def run(*overrides: str, expect: int = 0, typed: bool = False) -> Finished:
        arguments = [str(ROOT / "src" / script), *overrides]
        process = (new_python if typed else python)(*arguments, environment=environment, folder=folder)
        assert process.returncode == expect, process.stdout + process.stderr
        return process

    return run


class Forking:
    """The process of tests/forking.py, which forks others, one at a time."""

    latest: ClassVar["Forking | None"] = None

    def __init__(self) -> None:
        self.child: int | None = None
        command = [sys.executable, str(ROOT / "tests" / "forking.py")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)

    @classmethod
    def started(cls) -> "Forking":
        """The one of this session, which ends with it."""
        if cls.latest is None:
            cls.latest = Forking()
        return cls.latest

    def start(self, arguments: Sequence[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> int:
        """Start `python ARGUMENTS`; returns its process id, which is that of its session too."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self.child is not None:  # of a test that has failed
            self.wait()
        asked = {"argv": arguments, "cwd": str(folder), "env": environment, "out": str(out), "err": str(err)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        self.child = int(self.process.stdout.readline())
        return self.child

    def wait(self) -> int:
        """Wait until the process that was started ends; returns its exit code."""
        assert self.process.stdout is not None
        code, self.child = int(self.process.stdout.readline()), None
        return code

    def run(self, arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> Finished:
        with tempfile.TemporaryDirectory() as printed:
            out, err = Path(printed, "out"), Path(printed, "err")
            process = self.start(arguments, folder, environment, out, err)
            try:
                code = self.wait()
            except BaseException:  # the time limit of a test, for one: what hangs is not to outlive it
                os.killpg(process, signal.SIGKILL)
                raise
            return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def python(*arguments: str, environment: dict[str, str], folder: Path) -> Finished:
    """`python ARGUMENTS` in `folder`, for a script or for -c and code; on Linux in a process that has imported already."""
    if sys.platform != "linux":  # where a fork may not use all that its parent has loaded, or there is none
        return new_python(*arguments, environment=environment, folder=folder)
    return Forking.started().run(arguments, folder, environment)


def new_python(*arguments: str, environment: dict[str, str], folder: Path) -> Finished:
    """The same in a process that has imported nothing, as a user starts it."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def prepared(lines: str, script: str, arguments: list[str], environment: dict[str, str], folder: Path) -> Finished:
    """`python src/SCRIPT ARGUMENTS` in a process that runs some lines of Python first."""
    path = str(ROOT / "src" / script)
    lines += f"\nimport runpy, sys\nsys.argv[0] = {path!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    return python("-c", lines, *arguments, environment=environment, folder=folder)


def signal_at(step: int, number: signal.Signals, folder: Path, training: str = "CatalyzerTraining") -> dict[str, str]:
    """Variables for the environment of a run that is to get a signal before an exact step of its training, once.

    Afterwards the file `TRAINING-STEP.sent` is in `folder`.
    """
    path = os.pathsep.join(filter(None, [str(ROOT / "tests" / "plugin"), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "SIGNAL_AT": f"{training} {step} {number:d} {folder / f'{training}-{step}.sent'}"}


def interrupted(
    arguments: list[str],
    environment: dict[str, str],
    folder: Path,
    step: int,
    number: signal.Signals = signal.SIGTERM,
    training: str = "CatalyzerTraining",
) -> str:
    """`python src/train.py ARGUMENTS`, interrupted before a step of its training; what it printed on standard error."""
    environment = environment | signal_at(step, number, folder, training)
    process = python(str(ROOT / "src" / "train.py"), *arguments, environment=environment, folder=folder)
    expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 128 + signal.SIGINT}.get(number, 128 + signal.SIGTERM)
    assert process.returncode == expected, process.stderr
    return process.stderr


class Server(ThreadingHTTPServer):
    """Serves what is in `files`, as badly as the other attributes say, and keeps what was asked and how much was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: int | None = None  # bytes of each answer
        self.ranges = True
        self.size_off_by = 0
        self.wait = 0.0  # seconds before each 4 KiB
        self.answers: list[int] = []  # codes instead of files, one for each request
        self.asked: list[tuple[str, str]] = []
        self.sent = 0
        self.changes_to: dict[str, bytes] = {}  # contents that files have once their size has been asked for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"] or "bytes=0-"
        name = self.path.removeprefix("/data/")
        if self.command == "GET":
            server.asked.append((name, wanted))
        code = server.answers.pop(0) if server.answers else 200 if name in server.files else 404
        if code != 200:
            self.send_error(code)
            return
        content = server.files[name]
        if self.command == "HEAD" and name in server.changes_to:
            server.files[name] = server.changes_to.pop(name)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()  # type: ignore[union-attr]
        total = len(content) + server.size_off_by
        if server.ranges and self.headers["Range"]:
            body = content[int(first) : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{total}")
        else:
            body = content
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) if server.ranges and self.headers["Range"] else total))
        self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        body = b"" if self.command == "HEAD" else body[: server.cut_after]
        try:
            for start in range(0, len(body), 4096):
                time.sleep(server.wait)
                self.wfile.write(body[start : start + 4096])
                server.sent += len(body[start : start + 4096])
        except OSError:  # who asked has seen enough
            pass

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
