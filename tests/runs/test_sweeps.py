"""Sweeps as a user makes them, by each launcher: each job has its folder, one that fails stops no other, the best is first."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from catalyzer.commands.console import errors_kept_in
from catalyzer.runs.sweeps import Job, Sweep, validation_recall
from tests.helpers import FAST, ROOT, Command, command, only_run, refused, signal_at, wandb_records

TINY = [*FAST, "trainer.max_epochs=1", "baselines=[]"]
WRONG = "lambda=-1: input should be greater than or equal to 0; change it on the command line"


@pytest.fixture
def sweep_table(environment: dict[str, str], tmp_path: Path) -> Command:
    """`python src/sweep_table.py FOLDER`."""
    return command("sweep_table.py", environment, tmp_path)


def relative(own_files: list[str], folder: Path) -> list[str]:
    """The dataset by paths that are right in `folder` only."""
    (folder / "data").symlink_to(Path(own_files[-1].split("=")[1]).parent)
    return [re.sub("=/.*/", "=data/", text) for text in own_files]


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def wandb_place(folder: Path) -> tuple[str, str]:
    """Group and name of the run of W&B in a folder."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    (run,) = (record.run for record in wandb_records(file) if record.HasField("run"))
    return run.run_group, run.display_name


def recall_at_10(job: Path) -> float:
    return 100 * json.loads((job / "results.json").read_text())["rows"][0]["recall"]["10"]


def check_sweep_with_one_failure(process: subprocess.CompletedProcess[str], folder: Path, *values: str) -> None:
    """Of the jobs lambda=VALUE that with -1 fails; the others are in the table, the best first, and logged as usual."""
    jobs = {str(number): value for number, value in enumerate(values)}
    failed = next(job for job, value in jobs.items() if value == "-1")
    others = sorted(jobs.keys() - {failed}, key=lambda job: -recall_at_10(folder / job))
    for job in others:
        assert "epoch 1/1" in (folder / job / "train.log").read_text()
    assert (folder / failed / "error.txt").read_text() == f"{WRONG}\n"
    assert not (folder / failed / "results.json").exists()
    rows = csv_rows(folder)
    assert [(row["job"], row["lambda"]) for row in rows] == [(job, jobs[job]) for job in (*others, failed)]
    assert [float(row["test R@10"]) for row in rows[:-1]] == pytest.approx([recall_at_10(folder / job) for job in others])
    assert all(float(row["training s"]) > 0 and float(row["validation R@10"]) > 0 for row in rows[:-1])
    assert rows[-1]["error"] == WRONG
    assert "recall on the test split" in process.stdout
    assert f"job {failed} (lambda=-1): {WRONG}" in process.stdout
    told = process.stderr.splitlines()
    assert f"error: 1 of {len(jobs)} jobs failed: {failed} (lambda=-1)" in told  # Ray prints a worker's lines late
    assert "Traceback" not in process.stdout + process.stderr


def test_a_failing_job_stops_no_other(
    train: Command, sweep_table: Command, own_files: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    process = train("-m", *own_files, *TINY, "lambda=0.01,-1,0.1", "logger=wandb", expect=1)
    (folder,) = (tmp_path / "outputs").glob("*_sweep")
    check_sweep_with_one_failure(process, folder, "0.01", "-1", "0.1")
    (logged,) = folder.glob("wandb/offline-run-*/files/media/table/sweep_*.table.json")
    assert json.loads(logged.read_text())["columns"][:2] == ["job", "lambda"]
    assert [row[:2] for row in json.loads(logged.read_text())["data"]] == [
        [row["job"], row["lambda"]] for row in csv_rows(folder)
    ]
    assert [wandb_place(folder / job) for job in ("0", "2")] == [(folder.name, "lambda=0.01"), (folder.name, "lambda=0.1")]
    assert wandb_place(folder) == (folder.name, folder.name)
    for job in ("0", "2"):
        (logged,) = (folder / job).glob("wandb/offline-run-*/files/media/table/results_*.table.json")
        assert json.loads(logged.read_text())["columns"][0] == "method"
        assert list((folder / job).glob("wandb/offline-run-*/files/media/images/figures/*.png"))

    shown = sweep_table(str(folder.relative_to(tmp_path)), typed=True)
    assert shown.stdout == process.stdout[process.stdout.index(folder.name) :]
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["job", "lambda", "R@1", "R@10", "R@100", "training", "s"] in lines

    # What was killed is said to be unfinished, and a job that failed for another reason than its settings can be made up for.
    for name in ("results.json", "catalyzer.json"):
        (folder / "2" / name).unlink()
    shown = sweep_table(str(folder))
    assert f"job 2 (lambda=0.1): has not ended; python src/train.py resume={folder}/2 resumes it" in shown.stdout
    assert [row["job"] for row in csv_rows(folder)] == ["0", "1", "2"]
    train(f"resume={folder}/2")
    sweep_table(str(folder))
    assert {row["job"] for row in csv_rows(folder) if not row["error"]} == {"0", "2"}


def test_an_agent_of_wandb_runs_the_example_of_its_sweeps(
    own_files: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "docs" / "wandb-sweep.yaml").read_text())
    one = {key: {"value": values.get("values", [values.get("min", 1)])[-1]} for key, values in sweep["parameters"].items()}
    given = create_sweep_command_args({"args": one})["args_no_hyphens"]
    words = [word for word in create_sweep_command(sweep["command"]) if word != "${env}"]
    assert words[:2] == ["python", "${program}"]
    arguments = [each for word in words[2:] for each in (given if word == "${args_no_hyphens}" else [word])]
    assert "d_out=40" in arguments
    agent = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep001", "WANDB_RUN_ID": "run00001", "WANDB_PROJECT": "mine"}
    train = command(Path(sweep["program"]).name, environment | agent, tmp_path)
    train(*arguments, *own_files, "catalyzer.hidden=64", "batch_size=64")
    run = only_run(tmp_path)
    assert (run / "wandb_id").read_text() == "run00001"
    (file,) = run.glob("wandb/offline-run-*-run00001/run-run00001.wandb")
    logged = {item.key or "/".join(item.nested_key) for record in wandb_records(file) for item in record.history.item}
    assert sweep["metric"]["name"] in logged


LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failing_job_stops_no_other_elsewhere(
    launcher: str, own_files: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    train = command("train.py", {**environment, "RAY_USAGE_STATS_ENABLED": "0"}, tmp_path)
    process = train("-m", *relative(own_files, tmp_path), *TINY, "lambda=-1,0.1", *LAUNCHERS[launcher], expect=1)
    (folder,) = (tmp_path / "outputs").iterdir()
    check_sweep_with_one_failure(process, folder, "-1", "0.1")


@pytest.fixture
def slurm(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a user of SLURM, whose programs run all on this machine and keep what they got in `record`."""
    (tmp_path / "record").mkdir()
    path = f"{ROOT / 'tests' / 'slurm'}{os.pathsep}{environment['PATH']}"
    return {**environment, "PATH": path, "SLURM_RECORD": str(tmp_path / "record")}


def test_slurm_gets_an_array_of_jobs(own_files: list[str], slurm: dict[str, str], tmp_path: Path) -> None:
    train, record = command("train.py", slurm, tmp_path), tmp_path / "record"
    resources = ["hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1", "hydra.launcher.timeout_min=600"]
    arguments = [*relative(own_files, tmp_path), *TINY, "lambda=-1,0.1", "hydra/launcher=submitit_slurm", *resources]
    process = train("-m", *arguments, expect=1)
    (folder,) = (tmp_path / "outputs").iterdir()
    check_sweep_with_one_failure(process, folder, "-1", "0.1")

    script = (record / "batch.sh").read_text()
    for line in (
        "array=0-1%2",
        "partition=gpu",
        "gpus-per-node=1",
        "time=600",
        "job-name=train",
        "nodes=1",
        "ntasks-per-node=1",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert f"#SBATCH --output={folder}/.submitit/%A_%a/%A_%a_0_log.out\n" in script
    assert f"{sys.executable} -u -m submitit.core._submit {folder}/.submitit/%j" in script
    assert {path.read_text() for path in record.glob("*.state")} == {"COMPLETED\n"}


def test_a_job_that_slurm_preempts_goes_on_where_it_was(own_files: list[str], slurm: dict[str, str], tmp_path: Path) -> None:
    arguments = [*own_files, *FAST, "baselines=[]", "hydra.sweep.dir=s", "lambda=0.01,0.1", "hydra/launcher=submitit_slurm"]
    preempted = slurm | signal_at(100, signal.SIGUSR2, tmp_path)
    command("train.py", preempted, tmp_path)("-m", *arguments)
    assert (tmp_path / "CatalyzerTraining-100.sent").exists()
    logs = [(tmp_path / "s" / job / "train.log").read_text() for job in "01"]
    assert sum("resuming from step-000000075.ckpt" in log for log in logs) == 1
    assert {row["job"] for row in csv_rows(tmp_path / "s") if row["test R@10"]} == {"0", "1"}


def test_optuna_searches_by_validation_recall(train: Command, own_files: list[str], tmp_path: Path) -> None:
    arguments = ["hydra.sweeper.n_trials=2", "d_out=20,24", "hydra.sweep.dir=search"]
    process = train("experiment=search", *own_files, *TINY, *arguments)
    jobs = [tmp_path / "search" / name for name in "01"]
    for job in jobs:
        config = yaml.safe_load((job / "config.yaml").read_text())
        assert 0.002 <= config["lambda"] <= 0.2
        assert config["d_out"] in (20, 24)
        assert 0.02 <= config["learning_rate"] <= 0.5
    found = yaml.safe_load((tmp_path / "search" / "optimization_results.yaml").read_text())
    recalls = [validation_recall(job)[10] for job in jobs]
    assert found["best_value"] == max(recalls)
    best = jobs[recalls.index(max(recalls))]
    assert [job for job in jobs if (job / "results.json").exists()] == [best]
    assert f"the best, job {best.name} (lambda=" in process.stdout


def test_a_search_of_nothing_but_failures_ends_in_a_sentence(train: Command, own_files: list[str], tmp_path: Path) -> None:
    process = train("experiment=search", *own_files, "batch_size=1", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=x", expect=1)
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: 2 of 2 jobs failed: 0 (")


def test_crossvalidation_measures_the_best_on_the_test_split_and_no_other(
    train: Command, sweep_table: Command, own_files: list[str], tmp_path: Path
) -> None:
    grid = ["lambda=0.01,0.1", "d_out=20,24", "hydra.sweep.dir=cv"]
    process = train("experiment=crossvalidate", *own_files, *TINY, *grid)
    folder = tmp_path / "cv"
    recalls = {job: validation_recall(folder / job)[10] for job in "0123"}
    rows = csv_rows(folder)
    assert [float(row["validation R@10"]) for row in rows] == pytest.approx(
        sorted((100 * r for r in recalls.values()), reverse=True)
    )
    best = rows[0]["job"]
    assert [row["job"] for row in rows if row["test R@10"]] == [best]
    assert [job for job in recalls if (folder / job / "results.json").exists()] == [best]
    for job in set(recalls) - {best}:
        assert "searching" not in (folder / job / "train.log").read_text()

    lines = [line.split() for line in process.stdout.splitlines()]
    assert ["lambda", "d_out", "=", "20", "d_out", "=", "24"] in lines
    for value, jobs in (("0.01", "01"), ("0.1", "23")):
        assert [value, *(f"{100 * recalls[job]:.1f}" for job in jobs)] in lines
    assert f"the best, job {best} (lambda={rows[0]['lambda']} d_out={rows[0]['d_out']}), on the test split" in process.stdout
    assert sweep_table("cv").stdout == process.stdout

    # A run that was compared on the validation split stays one when it is resumed.
    loser = next(job for job in recalls if job != best)
    train(f"resume=cv/{loser}")
    assert not (folder / loser / "results.json").exists()

    # What has been compared on one split is compared on the other, when that is asked for.
    process = train("experiment=crossvalidate", *own_files, *TINY, *grid, "split=test")
    assert "cv: recall on the test split" in process.stdout
    assert all(row["test R@10"] for row in csv_rows(folder))


def test_what_varies_is_a_column_and_numbers_are_in_order(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        (tmp_path / str(number)).mkdir()
        given = ["bits=64", f"seed={number}", "baselines=[pq]", *(["+extra=1"] if number else [])]
        (tmp_path / str(number) / "overrides.yaml").write_text(yaml.safe_dump(given))
    sweep = Sweep.load(tmp_path)
    assert sweep.keys == ["seed", "extra"]
    assert [sweep.name(job) for job in sweep.failed] == ["0 (seed=0)", "2 (seed=2 extra=1)", "10 (seed=10 extra=1)"]
    sweep.print()  # also where there is nothing in it yet


def test_of_equal_recalls_at_10_the_best_recall_at_1_is_first(tmp_path: Path) -> None:
    recalls = [{1: 0.4, 10: 0.9}, {1: 0.5, 10: 0.9}, {1: 0.6, 10: 0.8}]
    jobs = [Job(tmp_path / str(i), {}, "test", {"validation": {}, "test": each}, 1.0, "") for i, each in enumerate(recalls)]
    assert [job.folder.name for job in Sweep(tmp_path, jobs).ended] == ["1", "0", "2"]


def test_the_same_folder_again_has_the_results_of_now(
    train: Command, sweep_table: Command, own_files: list[str], tmp_path: Path
) -> None:
    """Other settings are refused, other jobs leave the table, and a sweep that Hydra refuses changes nothing."""
    sweep = ["-m", *own_files, "catalyzer=pca", "baselines=[]", "hydra.sweep.dir=s"]
    train(*sweep, "bits=32,64")
    before = sweep_table("s").stdout
    refused(train(*sweep, "bits=32,64", "quantizer=latice", expect=2), "did you mean lattice?")
    assert sweep_table("s").stdout == before

    process = train(*sweep, "bits=32,64", "seed=1", expect=1)
    assert [(row["job"], row["test R@10"]) for row in csv_rows(tmp_path / "s")] == [("0", ""), ("1", "")]
    assert all("holds a run with other settings" in row["error"] for row in csv_rows(tmp_path / "s"))
    assert "error: 2 of 2 jobs failed: 0 (bits=32), 1 (bits=64)" in process.stderr
    assert not sweep_table("s").stdout.count(
        "s: recall on the test split\n\n  job   bits   R@1   R@10   R@100   training s\n   0"
    )

    train(*sweep, "bits=32")
    assert [row["job"] for row in csv_rows(tmp_path / "s")] == ["0"]
    assert sweep_table("s").stdout.count("job 1") == 0
    train(*sweep, "bits=32,64")
    assert sweep_table("s").stdout == before


def test_what_is_trained_in_some_jobs_is_no_mistake_in_the_others(train: Command, own_files: list[str], tmp_path: Path) -> None:
    given = [*own_files, "baselines=[]", "trainer.max_epochs=1"]
    idle = "is not trained, which leaves trainer.max_epochs=1 without effect"
    process = train("-m", *given, "catalyzer=pca,linear", "d_out=20", "hydra.sweep.dir=s")
    assert process.stderr.count(f"PCA {idle}\n") == process.stderr.count(f"Linear {idle}\n") == 1
    assert all(row["test R@10"] for row in csv_rows(tmp_path / "s"))
    refused(train(*given, "catalyzer=linear", expect=2), f"Linear {idle}; leave that out")


def test_what_an_attempt_was_killed_in_is_not_its_result(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    folder.mkdir()
    with contextlib.suppress(KeyboardInterrupt), errors_kept_in(folder):
        (folder / "overrides.yaml").write_text("[seed=1]")
        (folder / "results.json").write_text("of an earlier attempt")
        raise KeyboardInterrupt
    (job,) = Sweep.load(tmp_path).failed
    assert job.error == f"has not ended; python src/train.py resume={folder} resumes it"


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_what_is_no_sweep_gets_one_sentence(sweep_table: Command, folder: str) -> None:
    process = sweep_table(folder, expect=2)
    assert process.stderr == f"error: {folder} is not the folder of a sweep: no folder in it has overrides.yaml\n"


def test_resume_is_for_one_run(train: Command) -> None:
    process = train("-m", "resume=a,b", expect=1)
    assert "resume continues one run, but -m starts new ones; leave out -m" in process.stdout
