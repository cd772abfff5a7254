"""Ctrl-C: real processes; all have ended, with exit code 130 and a line that says how to resume, and a second start resumes."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from tests.helpers import DIM, FAST, ROOT, Forking, clustered, make_run, python

LONG = [*FAST, "trainer.max_epochs=1000", "baselines=[]"]
"""A training that does not end before it is interrupted."""


def alive(session: int) -> list[str]:
    """The processes of a session that have not ended."""
    listed = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines()[1:] if line.split()[0] == str(session) and line.split()[1][0] != "Z"]


@contextlib.contextmanager
def started(
    arguments: list[str], environment: dict[str, str], folder: Path, typed: bool
) -> Iterator[tuple[int, IO[str], Callable[[], int]]]:
    """`python ARGUMENTS`, in a process that has imported already, or if `typed` as a user starts it: id, output, exit code."""
    if typed:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored by jobs in the background
        )  # fmt: skip
        assert process.stdout is not None
        yield process.pid, process.stdout, process.wait
        return
    with tempfile.TemporaryDirectory() as pipes:
        pipe = Path(pipes, "printed")
        os.mkfifo(pipe)
        forking = Forking.started()
        session = forking.start(arguments, folder, environment, pipe, pipe)
        with pipe.open() as output:
            yield session, output, forking.wait


def interrupted(
    script: str,
    arguments: list[str],
    environment: dict[str, str],
    folder: Path,
    at: str,
    group: bool = True,
    typed: bool = False,
) -> list[str]:
    """What `python src/SCRIPT ARGUMENTS` prints, interrupted when a line has the text `at`.

    Args:
        script: in src/.
        arguments: of it.
        environment: of it.
        folder: where it runs.
        at: in a line of its output.
        group: whether all its processes get the signal, as from a terminal, or it alone.
        typed: see `started`.
    """
    printed = list[str]()
    with started([str(ROOT / "src" / script), *arguments], environment, folder, typed) as (session, output, wait):
        try:
            for line in output:
                printed.append(line)
                if at in line:
                    break
            (os.killpg if group else os.kill)(session, signal.SIGINT)
            printed += output.read().splitlines(keepends=True)
            assert wait() == 130, "".join(printed)
            ended = time.monotonic()
            while alive(session) and time.monotonic() < ended + 10:  # what has been killed takes a moment to go
                time.sleep(0.05)
            assert not alive(session)
        finally:
            with contextlib.suppress(ProcessLookupError):  # what hangs is not to outlive the test
                os.killpg(session, signal.SIGKILL)
    assert "Traceback" not in "".join(printed)
    return printed


def command_of(line: str) -> list[str]:
    """The arguments of the command that a line ends with."""
    assert line.startswith("interrupted; resume")
    python, _, *arguments = shlex.split(line.partition(": ")[2])
    assert python == "python"
    return arguments


@pytest.mark.parametrize("group", [True, False])
def test_a_training(own_files: list[str], environment: dict[str, str], tmp_path: Path, group: bool) -> None:
    arguments = [*own_files, *LONG, "hydra.run.dir=a run"]
    *printed, last = interrupted("train.py", arguments, environment, tmp_path, "epoch 1/1000", group, typed=True)
    assert last == f"interrupted; resume with: python {ROOT}/src/train.py 'resume=a run'\n"
    saved = re.search(r"told to stop: saved after step (\d+) of epoch", "".join(printed))
    assert saved
    again = interrupted("train.py", command_of(last), environment, tmp_path, "epoch ", group)
    assert f"resuming from step-{int(saved[1]):09d}.ckpt" in "".join(again)


def test_before_anything_is_kept(own_files: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    arguments = [*own_files, *LONG, "hydra.run.dir=run"]
    *_, last = interrupted("train.py", arguments, environment, tmp_path, "fewer than the settings'")
    assert last.startswith("interrupted; ")


@pytest.mark.parametrize(("launcher", "group"), [([], True), (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], False)])
def test_a_sweep(own_files: list[str], environment: dict[str, str], tmp_path: Path, launcher: list[str], group: bool) -> None:
    arguments = ["-m", *own_files, *LONG, "lambda=0.01,0.02,0.1", *launcher]
    *printed, last = interrupted("train.py", arguments, environment, tmp_path, "epoch 2/1000", group)
    (folder,) = (tmp_path / "outputs").glob("*_sweep")
    assert command_of(last) == [*arguments, f"hydra.sweep.dir=outputs/{folder.name}"]
    assert "jobs failed" not in "".join(printed)
    again = interrupted("train.py", command_of(last), environment, tmp_path, "epoch ", group)
    assert "resuming from step-" in "".join(again)


@pytest.mark.parametrize(
    ("at", "group", "start"), [("epoch 1/1000", False, "spawn"), ("epoch 1/1000", True, "fork"), ("training on", True, "spawn")]
)
def test_two_processes(
    own_files: list[str], environment: dict[str, str], tmp_path: Path, at: str, group: bool, start: str
) -> None:
    two = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.strategy=ddp_{start}"]
    arguments = [*own_files, *LONG, *two, "hydra.run.dir=run"]
    *printed, last = interrupted("train.py", arguments, environment, tmp_path, at, group)
    assert command_of(last) == ["resume=run"]
    assert ("told to stop: saved" in "".join(printed)) or not at.startswith("epoch")


COUNTED = """
import multiprocessing, os, signal, time
from catalyzer.training.fit import _told_on

context = multiprocessing.get_context("fork")
ready, counted = context.Event(), context.SimpleQueue()

def training() -> None:
    signals = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    ready.set()
    while not signals:
        time.sleep(0.1)
    time.sleep(1)
    counted.put(len(signals))

with _told_on([]):
    process = context.Process(target=training)
    process.start()
    ready.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    print(counted.get())
"""


def test_a_forked_process_is_told_once(environment: dict[str, str], tmp_path: Path) -> None:
    finished = python("-c", COUNTED, environment=environment, folder=tmp_path)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "1\n", "")


def test_encoding(environment: dict[str, str], tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    np.save(tmp_path / "x.npy", clustered(20_000, DIM, 1))
    arguments = ["run=run", "input=x.npy", "output=codes", "shard_size=10"]
    *_, last = interrupted("encode.py", arguments, environment, tmp_path, "2,000 of 2,000 shards to encode")
    assert command_of(last) == arguments


def test_a_table_of_the_paper(own_files: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    long = [text for text in LONG if not text.startswith("baselines")]
    arguments = ["table3", *own_files, *long, "out=o", "lambdas=[0.01]"]
    *_, last = interrupted("reproduce.py", arguments, environment, tmp_path, "epoch 1/1000")
    assert command_of(last) == ["target=table3", *arguments[1:]]
    again = interrupted("reproduce.py", command_of(last), environment, tmp_path, "epoch ")
    assert "resuming from step-" in "".join(again)
