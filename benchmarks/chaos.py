"""Processes and threads that change one index at once and are killed at random, against a model in NumPy.

    python benchmarks/chaos.py --seconds 600 --seed 0
    python benchmarks/chaos.py --operations 200 --seed 0      # the same operations each time

In each round a few processes load the index of one file, add, update, remove, merge, search and save, as a seed says. Some are
killed, at a line of the code that the seed chooses or at any moment, some are told to stop (SIGINT, SIGTERM) or held
(SIGSTOP), and some find the disk full. A process computes for itself what must come of each change, by the codec and NumPy
alone, and compares the index with it; what it searches, with a search in all codes in one batch. The program then looks at the
file: it must be what all saves that were reported make of each other, one after the other, and of a save that was killed all or
nothing; it must pass its checksums, and be free to be written. Every tenth round runs the command `catalyzer` in the same
way, and every fortieth a `catalyzer fit` that is killed and resumed until it has the same bits as an uninterrupted one.

It prints each difference with the operations of its round, and exits with 1 if there is one. POSIX only.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np

import catalyzer.files.atomic
from catalyzer import CatalyzerIndex, Codec, LatticeQuantizer
from catalyzer.errors import CatalyzerError, Conflict, InvalidInput, Unavailable
from catalyzer.files.atomic import locked
from catalyzer.index import file as index_file
from catalyzer.index.contents import Contents
from catalyzer.index.lists import InvertedLists
from catalyzer.nn import PCA, Identity, embed

DIM, D_OUT, IVF = 20, 12, 8
MOST = 3_000  # vectors; beyond, more are removed than added
LINES, LINES_OF_SAVE = 600, 190  # of the watched code that an operation, and a save, run through, roughly
DISK = 24 << 20  # bytes of the file system that is filled, where one can be mounted
WATCHED = {*map(str, Path(index_file.__file__).parent.glob("*.py")), catalyzer.files.atomic.__file__}
REASONS = ("No space left on device", "File too large", "is being written by another process")  # that are none of damage
Operation = dict[str, Any]


class Difference(Exception):
    """What must never be."""


@dataclass(frozen=True)
class Model:
    """What an index must hold: code and list of each id, sorted by id, and the largest id that there has been."""

    ids: np.ndarray
    codes: np.ndarray
    lists: np.ndarray
    last_id: int

    @classmethod
    def of(cls, contents: Contents) -> Self:
        order = np.argsort(contents.ids)
        none = contents.lists is None
        lists = np.zeros(len(order), int) if none else np.repeat(np.arange(len(contents.lists)), contents.lists.sizes)
        return cls(np.array(contents.ids)[order], np.array(contents.codes)[order], lists[order], contents.last_id)

    def without(self, ids: np.ndarray) -> Self:
        kept = ~np.isin(self.ids, ids)
        return replace(self, ids=self.ids[kept], codes=self.codes[kept], lists=self.lists[kept])

    def plus(self, ids: np.ndarray, x: np.ndarray, contents: Contents) -> Self:
        """With vectors, in one batch."""
        codes = contents.codec.encode(x)
        lists = np.zeros(len(x), int)
        if contents.lists is not None:
            lists = contents.lists.nearest(embed(contents.codec.transform, x))
        all_ids = np.concatenate([self.ids, ids])
        order = np.argsort(all_ids)
        codes, lists = np.concatenate([self.codes, codes])[order], np.concatenate([self.lists, lists])[order]
        return replace(self, ids=all_ids[order], codes=codes, lists=lists, last_id=max(self.last_id, *ids.tolist()))

    @property
    def name(self) -> str:
        """Of the state; no two changes lead to the same."""
        digest = hashlib.blake2b(str(self.last_id).encode(), digest_size=8)
        for array in (self.ids, self.codes, self.lists.astype(np.int64)):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def vectors(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def change(index: CatalyzerIndex, kind: str, seed: int, empty: Path) -> None:
    """Change an index at random, and compare it with the model; on SIGINT it may also be as before."""
    random = np.random.default_rng(seed)
    contents = index._trained()
    before = Model.of(contents)
    n = int(random.integers(1, 200))
    some = random.permutation(before.ids)[: int(random.integers(1, 100))]
    x = vectors(seed, n)
    act: Callable[[], Any]
    if kind in ("remove", "update") and not len(some):
        kind = "add"
    if kind == "add":
        act, after = lambda: index.add(x), before.plus(before.last_id + 1 + np.arange(n), x, contents)
    elif kind == "add ids":
        ids = before.last_id + 1 + random.permutation(3 * n)[:n]
        act, after = lambda: index.add(x, ids), before.plus(ids, x, contents)
    elif kind == "remove":
        act, after = lambda: index.remove(some), before.without(some)
    elif kind == "update":
        x = vectors(seed, len(some))
        act, after = lambda: index.update(some, x), before.without(some).plus(some, x, contents)
    elif kind == "merge":
        ids = before.last_id + 1 + random.permutation(3 * n)[:n]
        other = CatalyzerIndex.load(empty)
        other.add(x, ids)
        act, after = lambda: index.merge(other), before.plus(ids, x, contents)
    else:  # what is refused changes nothing
        x[-1, 0] = np.nan
        ids = np.resize(before.ids if len(before.ids) else np.zeros(1, int), n)
        refused = [lambda: index.add(x), lambda: index.add(x[:-1], ids[:-1]), lambda: index.remove([before.last_id + 1])]
        refused += [lambda: index.add(x[:, 1:]), lambda: index.search(x)]
        act, after = functools.partial(must_refuse, refused[seed % len(refused)]), before
    try:
        act()
        allowed = [after]
    except KeyboardInterrupt:
        allowed = [before, after]
    if Model.of(index._trained()).name not in {model.name for model in allowed}:
        raise Difference(f"{kind} with seed {seed} does not give what the model does")


def must_refuse(act: Callable[[], Any]) -> None:
    try:
        act()
    except InvalidInput:
        return
    raise Difference("invalid input was taken")


def search(index: CatalyzerIndex, seed: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    k, nprobe = int(random.integers(1, 20)), int(random.integers(1, IVF + 1)) if index.ivf else None
    return index.search(vectors(seed, 5), k, nprobe=nprobe)


def expected(contents: Contents, seed: int) -> tuple[np.ndarray, ...]:
    """The same by a search in all codes, for each query in those of its lists."""
    random = np.random.default_rng(seed)
    k, nprobe = int(random.integers(1, 20)), int(random.integers(1, IVF + 1))
    queries = vectors(seed, 5)
    distances, ids = np.full((5, k), np.inf, np.float32), np.full((5, k), -1)
    for row in range(len(queries)):
        searched = np.arange(len(contents.ids))
        if contents.lists is not None:
            probed = contents.lists.probe(contents.codec.for_search.map_queries(queries), nprobe)[row]
            searched = np.flatnonzero(np.isin(np.repeat(np.arange(IVF), contents.lists.sizes), probed))
        if found := min(k, len(searched)):
            codes = np.ascontiguousarray(contents.codes[searched])
            near = contents.codec.for_search.search(queries[row : row + 1], codes, found)
            distances[row, :found], ids[row, :found] = near[0][0], contents.ids[searched[near[1][0]]]
    return distances, ids


def check_search(index: CatalyzerIndex, seed: int, states: list[Contents]) -> None:
    """Search, and compare with what one of the states must give."""
    got = search(index, seed)
    if not any(alike(got, expected(contents, seed)) for contents in states):
        found = [array.tolist() for array in (*got, *expected(states[0], seed))]
        raise Difference(f"the search with seed {seed} finds something else than a search in all codes: {found}")


def alike(got: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...]) -> bool:
    """Whether two searches find the same; of distances that only rounding tells apart, in any order."""
    distances, ids = wanted
    ties = np.isclose(distances[:, 1:], distances[:, :-1], rtol=1e-6)
    tied = np.pad(ties, ((0, 0), (1, 0))) | np.pad(ties, ((0, 0), (0, 1)), constant_values=True)  # the last, with what follows
    return np.allclose(got[0], distances, rtol=1e-5, atol=1e-6) and bool(((got[1] == ids) | tied).all())


def searching_threads(index: CatalyzerIndex, kinds: list[str], seed: int, empty: Path) -> None:
    """Change the index while threads search it; each must find what was in it at one moment."""
    results: list[tuple[int, tuple[np.ndarray, ...]]] = []
    end = threading.Event()

    def searcher(number: int) -> None:
        for count in range(1000):
            results.append((each := seed + 1000 * number + count, search(index, each)))
            if end.is_set():
                return

    threads = [threading.Thread(target=searcher, args=(number,)) for number in range(3)]
    states = [index._trained()]
    for thread in threads:
        thread.start()
    try:
        for count, kind in enumerate(kinds):
            change(index, kind, seed + count, empty)
            states.append(index._trained())
    finally:
        end.set()
        for thread in threads:
            thread.join()
    for each, got in results[:: max(1, len(results) // 20)]:
        if not any(alike(got, expected(contents, each)) for contents in states):
            raise Difference(f"the search with seed {each} of a thread finds what was in the index at no moment")


@contextlib.contextmanager
def signalled_at(line: int | None, number: int) -> Iterator[None]:
    """Send this process a signal before it runs the line of the watched code with this number, if it comes to that."""
    count = 0

    def each(_: Any, event: str, *__: Any) -> Any:
        nonlocal count
        count += event == "line"
        if event == "line" and count == line:
            os.kill(os.getpid(), number)
        return each

    if line is None:
        yield
        return
    sys.settrace(lambda frame, *_: each if frame.f_code.co_filename in WATCHED else None)
    try:
        yield
    finally:
        sys.settrace(None)


@contextlib.contextmanager
def full_disk(folder: Path, room: int | None, mounted: bool) -> Iterator[None]:
    """Leave room for so many bytes more: for all on a file system of our own, else in the files of this process."""
    if room is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    balloon = folder / "balloon"
    if mounted:
        with contextlib.suppress(OSError), balloon.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize - room))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        balloon.unlink(missing_ok=True)


def work(operations: list[Operation], path: Path, empty: Path, mounted: bool, told: Connection) -> None:
    """What a process of a round does; it tells what it does, so that it is known when it is killed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for operation in operations:
        try:
            told.send(("begun", operation))
            with signalled_at(operation["line"], operation["signal"]):
                perform(operation, path, empty, mounted, told)
            told.send(("survived", None))
        except KeyboardInterrupt:
            told.send(("survived", "interrupted"))
        except CatalyzerError as error:
            fine = isinstance(error, Conflict) or any(reason in str(error) for reason in REASONS)
            told.send(("survived", str(error)) if fine else ("difference", repr(error)))
        except BaseException as error:
            told.send(("difference", repr(error)))


def perform(operation: Operation, path: Path, empty: Path, mounted: bool, told: Connection) -> None:
    seed, kinds = operation["seed"], operation["kinds"]
    with waited_for(path) if operation["locked"] else contextlib.nullcontext():
        index = CatalyzerIndex.load(path, mmap=operation["mmap"])
        before = Model.of(index._trained()).name
        told.send(("loaded", before))
        if operation["pickled"]:
            index = pickle.loads(pickle.dumps(index))  # noqa: S301 (of this process)
        check_search(index, seed, [index._trained()])
        if operation["threads"]:
            searching_threads(index, kinds, seed, empty)
        else:
            for count, kind in enumerate(kinds):
                change(index, kind, seed + count, empty)
        check_search(index, seed + 1, [index._trained()])
        after = Model.of(index._trained()).name
        if after != before:
            with full_disk(path.parent, operation["room"], mounted):
                told.send(("saving", (before, after)))
                with signalled_at(operation["line in save"], operation["signal"]):
                    index.save(path)
            told.send(("saved", None))


@contextlib.contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """`locked`, with some patience."""
    with contextlib.ExitStack() as stack:
        for attempt in range(100):
            try:
                stack.enter_context(locked(path))
                break
            except Unavailable:
                if attempt == 99:
                    raise
                time.sleep(0.03)
        yield


def draw(random: np.random.Generator, size: int) -> Operation:
    """An operation, as JSON has it."""
    changes = ["add", "add ids", "merge", "refused", "remove", "update"]
    weights = np.array([1.0, 1, 1, 0.3, 2 + 6 * (size > MOST), 1])
    writes = random.random() < 0.7
    kinds = random.choice(changes, int(random.integers(1, 4)), p=weights / weights.sum()).tolist() if writes else []
    where = random.random()  # it is killed, if it is
    return {
        "kinds": kinds,
        "seed": int(random.integers(1 << 40)),
        "locked": writes and random.random() < 0.7,
        "mmap": random.random() < 0.5,
        "pickled": random.random() < 0.2,
        "threads": writes and random.random() < 0.2,
        "room": int(random.integers(100_000)) if random.random() < 0.15 else None,
        "line": int(random.integers(1, LINES)) if where < 0.04 else None,
        "line in save": int(random.integers(1, LINES_OF_SAVE)) if where > 0.93 else None,
        "signal": int(random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])),
    }


class Chaos:
    """The rounds, what has survived, and what differed."""

    def __init__(self, folder: Path, seed: int, processes: int, mounted: bool) -> None:
        self.folder, self.seed, self.processes, self.mounted = folder, seed, processes, mounted
        self.context = multiprocessing.get_context("forkserver")  # whose processes have imported, and not computed yet
        self.context.set_forkserver_preload(["catalyzer.index.catalyzer_index", "catalyzer.commands.console"])
        self.path, self.empty = folder / "shared.catalyzer", folder / "empty.catalyzer"
        self.operations = self.killed = self.refused = self.saved = self.halted = self.differences = 0

    def start(self, number: int) -> None:
        """Begin with another codec, and an index of nothing."""
        identity, lists = number % 2 == 0, number % 4 < 2
        transform = Identity(DIM) if identity else PCA(DIM, D_OUT).adapt(vectors(1, 500))
        codec = Codec(transform, LatticeQuantizer(DIM if identity else D_OUT, bits=48))
        empty = CatalyzerIndex.from_codec(codec)._trained()
        if lists:
            empty = replace(empty, lists=InvertedLists.fit(codec, vectors(2, 64 * IVF), IVF))
        for path in (self.path, self.empty):
            index_file.write(path, empty)
        self.state = Model.of(empty).name

    def round(self, number: int) -> None:
        """Some processes at once."""
        random = np.random.default_rng((self.seed, number))
        size = len(index_file.read(self.path, mmap=False).ids)
        workers = []
        for _ in range(self.processes):
            told, tells = self.context.Pipe(duplex=False)
            operations = [draw(random, size) for _ in range(int(random.integers(1, 80)))]
            process = self.context.Process(target=work, args=(operations, self.path, self.empty, self.mounted, tells))
            process.start()
            tells.close()
            workers.append((process, told))
        events: list[list[tuple[str, Any]]] = [[] for _ in workers]
        readers = [
            threading.Thread(target=listen, args=(told, heard)) for (_, told), heard in zip(workers, events, strict=True)
        ]
        for reader in readers:
            reader.start()
        if random.random() < 0.5:  # at any moment, also in what is no Python
            victim = workers[int(random.integers(len(workers)))][0]
            time.sleep(random.exponential(1))
            with contextlib.suppress(ProcessLookupError):
                if held := random.random() < 0.3:
                    os.kill(victim.pid, signal.SIGSTOP)
                    time.sleep(random.exponential(0.5))
                os.kill(victim.pid, signal.SIGCONT if held else signal.SIGKILL)
        for process, _ in workers:
            process.join(120)
            if process.is_alive():
                process.kill()
                self.differ(f"a process hangs in round {number}", events)
            self.killed += process.exitcode != 0
        for reader in readers:
            reader.join()
        (self.folder / "balloon").unlink(missing_ok=True)
        self.check(number, events)

    def check(self, number: int, events: list[list[tuple[str, Any]]]) -> None:
        """Whether the file is what the saves make of each other."""
        saves: list[tuple[str, str, bool]] = []
        seen: list[list[str]] = []
        for heard in events:
            seen.append([what for event, what in heard if event == "loaded"])
            for (event, what), (following, _) in itertools.pairwise([*heard, ("killed", None)]):
                if event == "saving":
                    saves.append((*what, following == "saved"))
                elif event == "difference":
                    self.differ(f"round {number}: {what}", events)
            self.halted += sum(event == "saving" for event, _ in heard) - sum(event == "saved" for event, _ in heard)
            self.operations += sum(event == "survived" for event, _ in heard)
            self.refused += sum(event == "survived" and what is not None for event, what in heard)
        try:
            now = Model.of(index_file.verify(self.path)).name
            with locked(self.path):
                pass
        except CatalyzerError as error:
            self.differ(f"round {number}: {error}", events)
            return
        sure, known = {after for *_, after, saved in saves if saved}, {now, *(each for names in seen for each in names)}
        chain = [self.state]
        while following := {after for before, after, _ in saves if before == chain[-1] and after in sure | known}:
            if len(following) > 1:
                self.differ(f"round {number}: two saves follow {chain[-1]}, so one is lost", events)
                break
            chain.append(following.pop())
        self.saved += len(chain) - 1
        if chain[-1] != now:
            self.differ(f"round {number}: the file is {now}, and the saves lead to {' -> '.join(chain)}", events)
        elif lost := sure - {*chain}:
            self.differ(f"round {number}: saves are lost: {lost}", events)
        for names in seen:
            places = [chain.index(each) if each in chain else -1 for each in names]
            if -1 in places or places != sorted(places):
                self.differ(f"round {number}: a process has read {names}, of {' -> '.join(chain)}", events)
        self.state = now

    def commands(self, number: int) -> None:
        """The command `catalyzer`, killed and interrupted."""
        random = np.random.default_rng((self.seed, number))
        base, ids = self.folder / "base.npy", self.folder / "ids.npy"
        for line in (None, int(random.integers(1, LINES)), int(random.integers(1, LINES))):
            before = index_file.read(self.path, mmap=False)
            model, x = Model.of(before), vectors(int(random.integers(1 << 40)), int(random.integers(1, 500)))
            new = model.last_id + 1 + random.permutation(2 * len(x))[: len(x)]
            np.save(base, x)
            np.save(ids, new)
            number_of_signal = int(random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            arguments = ["add", str(self.path), str(base), "--ids", str(ids)]
            process = self.context.Process(
                target=run_command, args=(arguments, line, number_of_signal, self.folder / "printed")
            )
            process.start()
            process.join(120)
            operation = [[("command", [*arguments, line, number_of_signal])]]
            code, now = process.exitcode, Model.of(index_file.verify(self.path)).name
            after = model.plus(new, x, before).name
            if now not in ((after,) if code == 0 else (model.name, after)) or (code == 0 and line is None and now != after):
                self.differ(f"round {number}: the command ended with {code}, and the file is {now}", operation)
            if b"Traceback" in (self.folder / "printed").read_bytes() and code not in (130, -signal.SIGINT):
                self.differ(f"round {number}: the command printed {(self.folder / 'printed').read_text()}", operation)
            with locked(self.path):
                self.state = now
            self.operations += code == 0
            self.killed += code != 0

    def fit(self, number: int) -> None:
        """A training that is killed a few times, and one that is not."""
        random = np.random.default_rng((self.seed, number))
        learn = self.folder / "learn.npy"
        np.save(learn, vectors(3, 1200) @ np.random.default_rng(4).normal(size=(DIM, DIM)).astype(np.float32))
        options = [str(learn), "--bits", "32", "--d-out", "8", "--hidden", "32", "--epochs", "6"]

        def command(name: str) -> list[str]:
            run = str(self.folder / f"{name}-run")
            code = "import sys; from catalyzer.commands.cli import main; main(sys.argv[1:])"
            return [sys.executable, "-c", code, "fit", str(self.folder / f"{name}.catalyzer"), *options, "--folder", run]

        began = time.perf_counter()
        subprocess.run(command("alone"), check=True, capture_output=True)
        whole = time.perf_counter() - began
        ends: list[Any] = []
        for number_of_signal in random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], 3).tolist():
            process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(float(random.uniform(0.3, 1)) * whole)
            process.send_signal(number_of_signal)
            ends.append((number_of_signal, process.wait(120)))
            self.killed += process.returncode != 0
        if not (self.folder / "killed.catalyzer").exists():
            last = subprocess.run(command("killed"), check=False, capture_output=True, text=True)
            ends.append(last.stderr)
        made = [self.folder / f"{name}.catalyzer" for name in ("alone", "killed")]
        if not made[1].exists() or made[0].read_bytes() != made[1].read_bytes():
            self.differ(f"round {number}: a training that was killed has other bits", [[("fit", ends)]])
        self.operations += 1
        for path in made:
            path.unlink(missing_ok=True)
        for name in ("alone", "killed"):
            shutil.rmtree(self.folder / f"{name}-run")

    def end(self) -> None:
        """What the killed have left goes with the next save."""
        with locked(self.path):
            CatalyzerIndex.load(self.path).save(self.path)
        left = sorted(path.name for path in self.folder.iterdir() if path.name.startswith((".shared", "shared.catalyzer.")))
        if left:
            self.differ(f"the killed have left {', '.join(left)}", [])

    def figures(self) -> str:
        return (
            f"seed {self.seed}: {self.operations:,} operations survived, {self.refused:,} of them refused or interrupted; "
            f"{self.saved:,} saves, {self.halted:,} halted, {self.killed:,} processes killed, disk "
            f"{'filled' if self.mounted else 'limited'}; differences: {self.differences}"
        )

    def differ(self, text: str, events: list[list[tuple[str, Any]]]) -> None:
        self.differences += 1
        print(f"DIFFERENCE (seed {self.seed}) {text}")
        for heard in events:
            print(*(json.dumps(event, default=str) for event in heard), sep="\n    ")
            print()


def listen(told: Connection, heard: list[tuple[str, Any]]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            heard.append(told.recv())


def run_command(arguments: list[str], line: int | None, number: int, printed: Path) -> None:
    from catalyzer.commands.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor in (1, 2):
        os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    with signalled_at(line, number):
        main(arguments)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of our own on the folder, where that may be made, so that it can be filled."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and not subprocess.run(mount, check=False, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=float, help="how long")
    length.add_argument("--operations", type=int, help="how many, at least")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    parser.add_argument("--processes", type=int, default=3, help="at once (default: 3)")
    options = parser.parse_args()
    began, number = time.perf_counter(), 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, small_disk(Path(name)) as mounted:
        chaos = Chaos(Path(name), options.seed, options.processes, mounted)
        while (
            time.perf_counter() - began < options.seconds
            if options.operations is None
            else chaos.operations < options.operations
        ):
            if number % 20 == 0:
                chaos.start(number // 20)
            kind = chaos.fit if number % 40 == 39 else chaos.commands if number % 10 == 9 else chaos.round
            kind(number)
            number += 1
            print(f"round {number}: {chaos.figures()}", file=sys.stderr)
        chaos.end()
    print(chaos.figures())
    sys.exit(chaos.differences > 0)


if __name__ == "__main__":
    main()
