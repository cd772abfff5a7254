"""Several processes and runs that are stopped: real processes, real signals, and the same end as without them."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.helpers import FAST, ROOT, Command, command, interrupted, only_run, prepared, rows

TWO = ["trainer=ddp", "trainer.accelerator=cpu"]
FORKED = [*TWO, "trainer.strategy=ddp_fork"]
"""The same without the seconds in which each of two processes imports, where the start is not what is tested."""

EXACT = ["trainer.precision=32-true", "miner=exact", "trainer.log_every_n_steps=1", "baselines=[]"]


def metrics(folder: Path, column: str) -> np.ndarray:
    with (folder / "metrics.csv").open() as file:
        return np.array([float(row[column]) for row in csv.DictReader(file) if row.get(column)])


def same_end(one: Path, other: Path) -> None:
    """Same weights to the bit, same results, same metrics but for the times."""
    weights = [load_file(folder / "catalyzer.safetensors") for folder in (one, other)]
    for name in weights[0]:
        np.testing.assert_array_equal(weights[0][name], weights[1][name])
    recalls = [[row["recall"] for row in rows(folder).values()] for folder in (one, other)]
    assert recalls[0] == recalls[1]
    logged = []
    for folder in (one, other):
        with (folder / "metrics.csv").open() as file:
            # By step: in which row of it a value stands depends on where the run was stopped.
            values = ((row["step"], key, value) for row in csv.DictReader(file) for key, value in row.items() if value)
            logged.append({v for v in values if v[1].startswith(("train/", "val/", "epoch/")) and "second" not in v[1]})
    assert logged[0] == logged[1]


PROBE = """
import atexit, os, torch
from pytorch_lightning.callbacks import Callback
class Probe(Callback): pass
def write():
    open(f'left{os.getpid()}.txt', 'w').write(str(torch.distributed.is_initialized()))
atexit.register(write)
"""


def test_two_processes_train_as_one_with_the_joined_batch(
    environment: dict[str, str], own_files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    train = command("train.py", environment | {"PYTHONPATH": str(tmp_path)}, tmp_path)
    shared = [*own_files, *EXACT, "catalyzer.hidden=64", "trainer.max_epochs=1", "optimizer=adamw", "learning_rate=0.001"]
    shared += ["decoder=mlp", "decoder.hidden=64"]
    train(*shared, "batch_size=128", "hydra.run.dir=one")
    joined = ["loss.terms.koleo.scope=global", "trainer.sync_batchnorm=true"]
    train(*shared, *TWO, *joined, "batch_size=64", "hydra.run.dir=two", "+callbacks.probe._target_=probe.Probe")
    # Threads of a group that is left abort their process now and then, while the interpreter ends.
    assert {path.read_text() for path in tmp_path.glob("left*.txt")} == {"False"}
    for column in ("train/loss", "train/koleo", "train/rank", "train/reconstruction"):
        one, two = (metrics(tmp_path / name, column) for name in ("one", "two"))
        assert len(one) == len(two) == 4800 // 128
        np.testing.assert_allclose(two[:15], one[:15], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(two, one, rtol=1e-2, atol=1e-3)  # Adam enlarges what sums in another order have rounded
    separate = ["loss.terms.koleo.scope=local", "trainer.sync_batchnorm=false", "query=mlp", "query.max_epochs=1"]
    train(*shared, *FORKED, *separate, "batch_size=64", "hydra.run.dir=separate")
    koleo, other = (metrics(tmp_path / name, "train/koleo")[0] for name in ("one", "separate"))
    assert abs(koleo - other) > 1e-2  # the nearest of half as many points is farther away
    assert (tmp_path / "separate" / "query.safetensors").exists()


def test_a_sweep_of_two_jobs_of_two_processes_each(train: Command, own_files: list[str], tmp_path: Path) -> None:
    """The first fails, in both of its processes, and the second has its folder and its end."""
    arguments = [*own_files, *FAST, *FORKED, "baselines=[]", "trainer.max_epochs=1", "hydra.sweep.dir=sweep"]
    process = train("-m", *arguments, "learning_rate=1e20,0.1", expect=1)
    assert "no longer a finite number" in (tmp_path / "sweep" / "0" / "error.txt").read_text()
    assert rows(tmp_path / "sweep" / "1")["catalyzer + lattice"]["recall"]["100"] > 0.2
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"0", "1", "multirun.yaml", "swept.yaml", "sweep.csv"}
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}
    assert "Traceback" not in process.stderr


def test_a_run_interrupted_again_and_again_comes_to_the_same_end(
    train: Command, own_files: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    recipe = ["decoder=mlp", "decoder.hidden=64", "query=mlp"]
    arguments = [*own_files, *recipe, "catalyzer.hidden=64", "batch_size=32", "trainer.max_epochs=3", "baselines=[]"]
    train(*arguments, "hydra.run.dir=whole")

    arguments.append("hydra.run.dir=stopped")  # 150 steps an epoch
    for training, step, number in (
        ("CatalyzerTraining", 0, signal.SIGKILL),
        ("CatalyzerTraining", 140, signal.SIGTERM),
        ("CatalyzerTraining", 149, signal.SIGTERM),  # the last of its epoch
        ("CatalyzerTraining", 320, signal.SIGKILL),
        ("CatalyzerTraining", 430, signal.SIGTERM),
        ("QueryTraining", 100, signal.SIGTERM),
        ("QueryTraining", 250, signal.SIGKILL),
    ):
        interrupted(arguments, environment, tmp_path, step, number, training)
        arguments = ["resume=stopped"]
    train("resume=stopped")
    same_end(tmp_path / "whole", tmp_path / "stopped")

    again = train("resume=stopped")
    assert "has already finished" in again.stderr
    assert "catalyzer + lattice" in again.stdout


def test_sigterm_saves_in_the_middle_of_an_epoch(own_files: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    error = interrupted([*own_files, *FAST, "baselines=[]", "hydra.run.dir=run"], environment, tmp_path, 100)
    assert "told to stop: saved after step 101 of epoch 2" in error
    assert (tmp_path / "run" / "checkpoints" / "step-000000101.ckpt").exists()
    assert "Traceback" not in error


def test_two_processes_stop_together(own_files: list[str], environment: dict[str, str], train: Command, tmp_path: Path) -> None:
    arguments = [*own_files, *FAST, *FORKED, "baselines=[]", "trainer.log_every_n_steps=5", "hydra.run.dir=run"]
    error = interrupted(arguments, environment, tmp_path, 50)  # of 37 an epoch
    assert "told to stop: saved after step 55 of epoch 2" in error
    assert "Traceback" not in error
    again = train("resume=run")
    assert "resuming from step-000000055" in again.stderr
    assert rows(tmp_path / "run")["catalyzer + lattice"]["recall"]["100"] > 0.3


def test_a_damaged_checkpoint_is_passed_over(train: Command, own_files: list[str], tmp_path: Path) -> None:
    train(*own_files, *FAST, "baselines=[]", "hydra.run.dir=run")
    older, newer = sorted((tmp_path / "run" / "checkpoints").glob("step-*.ckpt"))
    newer.write_bytes(newer.read_bytes()[:1000])
    (tmp_path / "run" / "results.json").unlink()
    before = load_file(tmp_path / "run" / "catalyzer.safetensors")
    process = train("resume=run")
    assert f"{newer.name}: not a checkpoint that can be loaded" in process.stderr
    assert f"resuming from {older.name}" in process.stderr
    after = load_file(tmp_path / "run" / "catalyzer.safetensors")
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_a_full_disk_leaves_the_checkpoint_before(own_files: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    """By a limit on the size of files, which checkpoints with AdamW's state are the first to meet."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    arguments = [*own_files, "catalyzer.hidden=128", "trainer.max_epochs=1", "baselines=[]", "hydra.run.dir=run"]
    process = prepared(limit, "train.py", arguments, environment, tmp_path)
    refused_last = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 2, process.stderr
    assert re.search(r"error: .*\.ckpt cannot be written \(File too large\)", refused_last)
    assert "Traceback" not in process.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_a_loss_that_is_no_number_stops_the_run(train: Command, own_files: list[str], tmp_path: Path) -> None:
    for processes in ([], FORKED):
        folder = f"nan{len(processes)}"
        process = train(
            *own_files, *FAST, *processes, "baselines=[]", "learning_rate=1e20", f"hydra.run.dir={folder}", expect=2
        )
        assert re.search(
            r"the loss is no longer a finite number from step \d+ on \(epoch 1, batch \d+ of (75|37), whose first anchors are "
            r"training vectors \d+(, \d+)*\); the last good checkpoint is not there yet; lower learning_rate",
            process.stderr,
        )
        assert "Traceback" not in process.stderr
        assert not (tmp_path / folder / "catalyzer.json").exists()


def test_torchrun(environment: dict[str, str], own_files: list[str], tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    arguments = [
        str(ROOT / "src" / "train.py"),
        *own_files,
        *FAST,
        "trainer=cluster",
        "trainer.accelerator=cpu",
        "baselines=[]",
    ]

    def launch(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*launcher, *arguments, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    assert "add hydra.run.dir=" in launch().stderr
    process = launch("hydra.run.dir=run")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("catalyzer + lattice") == 1
    assert len(metrics(tmp_path / "run", "epoch/loss")) == 2
    assert rows(tmp_path / "run")["catalyzer + lattice"]["recall"]["100"] > 0.3


def test_a_job_of_slurm_is_queued_again(environment: dict[str, str], own_files: list[str], tmp_path: Path) -> None:
    """SLURM's part is played by its variables and a `scontrol` that writes down what it is asked for."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked"}\n')
    scontrol.chmod(0o755)
    variables = {"JOB_ID": "77", "STEP_ID": "0", "JOB_NAME": "catalyzer", "NTASKS": "1", "NNODES": "1", "PROCID": "0"}
    variables |= {"LOCALID": "0", "NODEID": "0", "NODELIST": "localhost", "NTASKS_PER_NODE": "1"}
    job = environment | {f"SLURM_{key}": value for key, value in variables.items()}
    job["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    arguments = [*own_files, *FAST, "trainer=cluster", "trainer.accelerator=cpu", "baselines=[]"]
    error = interrupted(arguments, job, tmp_path, 100, signal.SIGUSR1)
    assert "SLURM has queued job 77 again" in error
    assert (tmp_path / "asked").read_text() == "requeue 77\n"

    again = command("train.py", job, tmp_path)(*arguments)
    assert "resuming from step-000000101" in again.stderr
    assert only_run(tmp_path).name == "slurm-77.0"
