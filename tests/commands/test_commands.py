"""The commands of the README, run as a user runs them: real processes, real training, real kills."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from catalyzer import TrainedRun, knn, open_vectors, recall_at
from tests.helpers import FAST, ROOT, Command, clustered, command, interrupted, only_run, refused, rows, wandb_records, write


def test_the_main_job_on_the_bundled_dataset(train: Command, tmp_path: Path) -> None:
    process = train("experiment=smoke", typed=True)
    assert "Warning" not in process.stderr
    run = only_run(tmp_path)
    assert {p.name for p in run.iterdir()} == {
        "catalyzer.json", "catalyzer.safetensors", "checkpoints", "config.yaml", "figures", "metric.json", "metrics.csv",
        "quantizer.json", "quantizer.safetensors", "results.json", "train.log",
    }  # fmt: skip
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "step-000000015.ckpt", "step-000000030.ckpt"}
    for figure in (run / "figures").iterdir():
        assert figure.read_bytes().startswith(b"\x89PNG")
    for text in ("method", "R@100", "training s", "catalyzer + lattice", "PQ", "OPQ"):
        assert text in process.stdout
    assert "epoch 2/2" in process.stderr
    assert "neighbours by faiss-cpu" in (run / "train.log").read_text()
    results = json.loads((run / "results.json").read_text())
    assert set(results) >= {"rows", "settings", "seed", "versions", "git_commit", "fingerprints", "started", "ended"}
    assert results["settings"] == yaml.safe_load((run / "config.yaml").read_text())
    assert results["settings"]["trainer"]["precision"] in ("bf16-mixed", "32-true")
    assert [row["bits"] for row in results["rows"]] == [64, 64, 64]


@pytest.fixture(scope="module")
def trained_once(own_files: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    command("train.py", environment, folder)(*own_files, *FAST, "baselines=[]")
    return only_run(folder)


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """The folder of a finished run, each test's own."""
    folder = tmp_path / "outputs" / trained_once.name
    shutil.copytree(trained_once, folder)
    return folder


def test_the_catalyzer_learns(train: Command, own_files: list[str], tmp_path: Path) -> None:
    train(*own_files, "catalyzer.hidden=128", "batch_size=64", "trainer.max_epochs=6", "baselines=[]", "d_out=20")
    with (only_run(tmp_path) / "metrics.csv").open() as file:
        recalls = [float(r["val/recall_at_10"]) for r in csv.DictReader(file) if r["val/recall_at_10"]]
    assert len(recalls) == 6
    assert max(recalls) > 0.6
    train(*own_files, "catalyzer=pca", "baselines=[]", "d_out=20", "hydra.run.dir=pca")
    pca = rows(tmp_path / "pca")["PCA + lattice"]
    assert pca["recall"]["10"] > 0.2
    assert pca["training"] > 0


def test_the_same_command_gives_the_same_numbers(train: Command, own_files: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        process = train(*own_files, *FAST, "baselines=[]", f"hydra.run.dir={name}")
        assert "Warning" not in process.stderr
    a, b = (load_file(tmp_path / name / "catalyzer.safetensors") for name in "ab")
    for tensor in a:
        np.testing.assert_array_equal(a[tensor], b[tensor])
    assert [r["recall"] for r in rows(tmp_path / "a").values()] == [r["recall"] for r in rows(tmp_path / "b").values()]


def test_a_run_folder_is_all_that_coding_and_searching_need(trained: Path) -> None:
    run = TrainedRun.load(trained)
    base, queries = clustered(2000, 32, 1), clustered(200, 32, 2)
    codes = run.encode(base)
    assert codes.shape == (2000, 8)
    ids = run.search(queries, codes, 100)[1]
    truth = knn(queries, base, 1)[1]
    for k in (1, 10, 100):
        assert recall_at(k, ids, truth) == pytest.approx(rows(trained)["catalyzer + lattice"]["recall"][str(k)])


@pytest.mark.parametrize("quantizer", ["lattice", "sign"])
def test_a_decoder_learns(train: Command, evaluate: Command, own_files: list[str], tmp_path: Path, quantizer: str) -> None:
    sizes = ["catalyzer.hidden=128", "decoder.hidden=128", "batch_size=64", "trainer.max_epochs=4"]
    process = train(*own_files, *sizes, "decoder=mlp", f"quantizer={quantizer}", "rerank=200", "baselines=[pq]")
    folder = only_run(tmp_path)
    with (folder / "metrics.csv").open() as file:
        epochs = [row for row in csv.DictReader(file) if row["val/squared_error"]]
    errors = [float(row["val/squared_error"]) for row in epochs]
    base, queries = clustered(2000, 32, 1), clustered(200, 32, 2)
    assert errors[-1] < errors[0]
    assert errors[-1] < 0.5 * base.astype(float).var(axis=0).sum()
    assert all(0 < float(row["val/latent_recall_at_10"]) <= 1 for row in epochs)
    assert process.stderr.count(" (before reranking R@1 ") == len(epochs)
    assert f"catalyzer + {quantizer} (rerank 200)" in process.stdout

    run, table = TrainedRun.load(folder), rows(folder)
    codes, truth = run.encode(base), knn(queries, base, 1)[1]
    decoded = run.decode(codes)
    assert ((decoded - base) ** 2).sum(axis=1).mean() == pytest.approx(table[f"catalyzer + {quantizer}"]["error"], rel=1e-3)
    for rerank, row in ((0, f"catalyzer + {quantizer}"), (None, f"catalyzer + {quantizer} (rerank 200)")):
        ids = run.search(queries, codes, 10, rerank)[1]
        assert recall_at(10, ids, truth) == pytest.approx(table[row]["recall"]["10"])
    assert table["PQ"]["error"] > 0

    refined = evaluate(
        f"run={folder}", f"quantizer={quantizer}", "refine=4", "rerank=0", expect=0 if quantizer == "lattice" else 2
    )
    if quantizer == "lattice":
        evaluate(f"run={folder}", "split=validation")
        validated = rows(folder / "evaluations" / "lattice-64bits-validation")["catalyzer + lattice (rerank 200)"]
        assert validated["recall"]["10"] == pytest.approx(max(float(row["val/recall_at_10"]) for row in epochs))
        assert "bits=32 is for another quantizer" in evaluate(f"run={folder}", "bits=32", expect=2).stderr
        evaluate(f"run={folder}", "steps=0", "rerank=0")
        plain = rows(folder / "evaluations" / "lattice-64bits-rerank0-steps0")["catalyzer + lattice"]
        assert table["catalyzer + lattice"]["error"] < plain["error"]
        results = rows(folder / "evaluations" / "lattice-64bits-rerank0-refine4")
        assert list(results) == ["catalyzer + lattice", "PQ"]
        assert results["catalyzer + lattice"]["error"] < table["catalyzer + lattice"]["error"]
    else:
        assert "use quantizer=lattice, or refine=1" in refined.stderr


def test_a_network_for_queries(
    train: Command, evaluate: Command, own_files: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = [*own_files, *FAST, "trainer.max_epochs=1", "query=mlp", "baselines=[]"]
    process = train(*arguments, "hydra.run.dir=whole")
    assert process.stderr.count("query epoch") == 2
    whole = rows(tmp_path / "whole")["catalyzer + lattice"]
    run, base, queries = TrainedRun.load(tmp_path / "whole"), clustered(2000, 32, 1), clustered(200, 32, 2)
    codes, truth = run.encode(base), knn(queries, base, 1)[1]
    assert recall_at(10, run.search(queries, codes, 10)[1], truth) == pytest.approx(whole["recall"]["10"])
    assert not np.array_equal(run.search(queries, codes, 10)[1], replace(run.codec, query=None).search(queries, codes, 10)[1])
    with (tmp_path / "whole" / "query" / "metrics.csv").open() as file:
        losses = [float(row["epoch/loss"]) for row in csv.DictReader(file) if row["epoch/loss"]]
    assert losses[1] < losses[0]

    evaluate("run=whole", "quantizer=lattice", typed=True)
    assert rows(tmp_path / "whole" / "evaluations" / "lattice-64bits")["catalyzer + lattice"]["recall"] == whole["recall"]
    evaluate("run=whole", "quantizer=pq")  # whose points the network does not know

    # In the middle of the second of the query network's epochs of 75 steps.
    interrupted([*arguments, "hydra.run.dir=killed"], environment, tmp_path, 110, signal.SIGKILL, "QueryTraining")
    train("resume=killed")
    assert rows(tmp_path / "killed")["catalyzer + lattice"]["recall"] == whole["recall"]
    weights = [load_file(tmp_path / name / "query.safetensors") for name in ("whole", "killed")]
    for name, weight in weights[0].items():
        np.testing.assert_array_equal(weight, weights[1][name])


@pytest.mark.parametrize("quantizer", ["pq", "sign", "lattice"])
def test_another_quantizer_without_training_again(evaluate: Command, trained: Path, tmp_path: Path, quantizer: str) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in trained.iterdir()}
    process = evaluate(
        f"run={trained.relative_to(tmp_path)}", f"quantizer={quantizer}", "bits=64" if quantizer != "lattice" else "bits=32"
    )
    label = "PQ" if quantizer == "pq" else quantizer
    assert f"catalyzer + {label}" in process.stdout
    (folder,) = (trained / "evaluations").iterdir()
    assert {p.name for p in folder.iterdir()} == {"results.json", "figures"}
    assert {p.name: p.stat().st_mtime_ns for p in trained.iterdir() if p.name != "evaluations"} == before


def test_a_folder_in_deep1bs_layout(train: Command, tmp_path: Path) -> None:
    (tmp_path / "deep1b").mkdir()
    for seed, (name, n) in enumerate((("learn", 3000), ("base", 1500), ("deep1B_queries", 100))):
        x = clustered(n, 96, seed).astype(np.float32) - 128
        write(tmp_path / "deep1b" / f"{name}.fvecs", x / np.linalg.norm(x, axis=1, keepdims=True))
    train("dataset=deep1b", f"dataset.root={tmp_path / 'deep1b'}", "dataset.base_size=1_000", *FAST, "bits=32")
    results = json.loads((only_run(tmp_path) / "results.json").read_text())
    assert results["title"] == "deep1b: 1,000 base vectors, 100 queries"
    assert [row["bits"] for row in results["rows"]] == [32, 32, 32]


def test_plain_baselines_through_the_same_door(
    train: Command, own_files: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """What a quantizer has learned is in the run's folder, which the other commands use as that of any run."""
    train(*own_files, "catalyzer=identity", "quantizer=opq", "hydra.run.dir=run")
    table = rows(tmp_path / "run")
    assert list(table) == ["OPQ", "PQ"]
    base, queries = (text.split("=")[1] for text in own_files[-2:])
    command("encode.py", environment, tmp_path)("run=run", f"input={base}", "output=codes", "shard_size=700", typed=True)
    command("search.py", environment, tmp_path)("codes=codes", f"queries={queries}", "k=10", "output=found", typed=True)
    found, truth = open_vectors(tmp_path / "found.ivecs")[:], knn(np.load(queries), np.load(base), 1)[1]
    assert recall_at(10, found, truth) == pytest.approx(table["OPQ"]["recall"]["10"])
    run = TrainedRun.load(tmp_path / "run")
    np.testing.assert_array_equal(run.search(np.load(queries), run.encode(np.load(base)), 10)[1], found)


def test_a_sweep_makes_one_folder_a_job(train: Command, own_files: list[str], tmp_path: Path) -> None:
    train("-m", *own_files, *FAST, "baselines=[]", "trainer.max_epochs=1", "lambda=0.005,0.02", "quantizer=lattice,pq")
    sweep = only_run(tmp_path)
    assert sweep.name.endswith("_sweep")
    found = set()
    for job in (p for p in sweep.iterdir() if p.is_dir()):
        config = yaml.safe_load((job / "config.yaml").read_text())
        found.add((config["lambda"], config["quantizer"]["_target_"].rpartition(".")[2]))
        assert (job / "results.json").exists()
    quantizers = ("LatticeQuantizer", "ProductQuantizer")
    assert found == {(lambda_, quantizer) for lambda_ in (0.005, 0.02) for quantizer in quantizers}


def test_the_triangle_loss_trains_another_network(train: Command, own_files: list[str], tmp_path: Path) -> None:
    weights = []
    for loss in ("triplet", "triangle"):
        train(*own_files, *FAST, "baselines=[]", f"loss={loss}", f"hydra.run.dir={loss}")
        weights.append(load_file(tmp_path / loss / "catalyzer.safetensors")["layers.6.weight"])
    assert not np.array_equal(*weights)


def test_a_dimension_that_suits_the_data(train: Command, evaluate: Command, own_files: list[str], tmp_path: Path) -> None:
    process = train(*own_files, *FAST, "baselines=[]", "bits=32", "d_out=auto", "hydra.run.dir=auto")
    chosen = re.search(r"d_out = (\d+), the smallest with 95% of the best share: of the 10 nearest, a linear", process.stderr)
    assert chosen
    assert json.loads((tmp_path / "auto" / "catalyzer.json").read_text())["arguments"]["d_out"] == int(chosen[1])
    assert "catalyzer + PQ" in evaluate("run=auto", "quantizer=pq").stdout


@pytest.mark.parametrize("quantizer", ["lattice", "sign"])
def test_end_to_end_training_differs_from_plain(quantizer: str, train: Command, own_files: list[str], tmp_path: Path) -> None:
    weights = []
    for end_to_end in ("true", "false"):
        arguments = [*own_files, *FAST, "baselines=[]", f"quantizer={quantizer}", f"end_to_end={end_to_end}"]
        train(*arguments, f"hydra.run.dir=end_to_end_{end_to_end}")
        weights.append(load_file(tmp_path / f"end_to_end_{end_to_end}" / "catalyzer.safetensors")["layers.6.weight"])
    assert not np.array_equal(*weights)


def test_wandb_offline_has_config_metrics_and_table(train: Command, own_files: list[str], tmp_path: Path) -> None:
    train(*own_files, *FAST, "logger=wandb", "baselines=[]", "trainer.log_every_n_steps=10")
    (file,) = only_run(tmp_path).glob("wandb/offline-run-*/*.wandb")
    config, history = {}, {}
    for record in wandb_records(file):
        for item in (*record.config.update, *record.run.config.update):
            config[item.key] = json.loads(item.value_json)
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            history[name] = json.loads(item.value_json)
    assert config["lambda"] == 0.02
    assert config["quantizer"]["_target_"] == "catalyzer.quantizers.LatticeQuantizer"
    for name in ("loss", "rank", "koleo", "violated"):
        assert f"epoch/{name}" in history
        assert f"train/{name}" in history
    for name in ("lr-SGD", "val/recall_at_1", "val/recall_at_10", "val/recall_at_100", "epoch/mining_seconds"):
        assert name in history
    assert history["results/nrows"] == 1
    (table,) = file.parent.glob("files/media/table/results_*.table.json")
    assert json.loads(table.read_text())["columns"][0] == "method"


def test_wandb_without_a_network_and_tensorboard(
    train: Command, own_files: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """A key, and a server that does not answer: the run is logged offline, under one id when it is resumed."""
    tensorboard = '+logger.tensorboard={_target_: pytorch_lightning.loggers.TensorBoardLogger, name: "", version: tensorboard}'
    with socket.socket() as silent:  # a port that is taken, and at which nobody listens
        silent.bind(("127.0.0.1", 0))
        server = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        online = command("train.py", environment | server, tmp_path)
        process = online(*own_files, *FAST, "logger=wandb", tensorboard, "baselines=[]", "hydra.run.dir=run")
    assert "W&B: the server cannot be reached" in process.stderr
    identity = (tmp_path / "run" / "wandb_id").read_text()
    assert [path.name.endswith(identity) for path in (tmp_path / "run" / "wandb").glob("offline-run-*")] == [True]
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.*"))


QUANTIZERS = "quantizer: eden, itq, lattice, lsh, lsq, opq, pq, rabitq, rq, sign, sq"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train.py", QUANTIZERS),
        ("evaluate.py", QUANTIZERS),
        ("prepare.py", "dataset=OPTION, one of: photosift, glosses, bigann, deep1b"),
        ("encode.py", "engine: local"),
        ("search.py", "format: vecs"),
    ],
)
def test_help_reads_well_and_comes_at_once(script: str, words: str, environment: dict[str, str]) -> None:
    code = f"import runpy, sys; sys.argv = ['x', '--help']; runpy.run_path({str(ROOT / 'src' / script)!r}, run_name='__main__')"
    check = f"import atexit, sys; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n{code}"
    process = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    assert "Examples" in process.stdout
    assert words in process.stdout
    assert process.stderr == "False"  # torch takes seconds to import, and help needs none of it


# Users' mistakes: one sentence, exit code 2, no traceback, nothing written.


MISTAKES = {
    "negative lambda": (["lambda=-1"], ["lambda=-1", "greater than or equal to 0"]),
    "radius without points": (["d_out=3", "quantizer.radius_sq=7"], ["3 dimensions", "r² = 7"]),
    "bits that do not fit": (["bits=32", "quantizer.radius_sq=79"], ["64 bits", "bits = 32"]),
    "missing dataset": (["dataset=bigann", "dataset.root=nowhere"], ["nowhere lacks", "bigann_learn.bvecs"]),
    "dataset to be made": (["dataset=photosift"], ["data/photosift lacks", "prepare.py dataset=photosift images=<folder"]),
    "missing key": (["dataset=files"], ["dataset.learn"]),
    "missing file": (
        ["dataset=files", "dataset.learn=a.npy", "dataset.base=b.npy", "dataset.queries=c.npy"],
        ["a.npy", "no such file"],
    ),
    "wrong run": (["resume=nowhere"], ["nowhere is not a run folder"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence(train: Command, tmp_path: Path, mistake: str) -> None:
    overrides, words = MISTAKES[mistake]
    refused(train(*overrides, expect=2), *words)
    assert not any((tmp_path / "outputs").glob("*"))
    assert {p.name for p in tmp_path.iterdir()} <= {"outputs"}


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "nan": lambda path: np.save(path, np.full((2000, 32), np.nan, np.float32)),
    "another dimension": lambda path: np.save(path, np.ones((2000, 31), np.float32)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_gets_one_sentence(train: Command, own_files: list[str], tmp_path: Path, kind: str) -> None:
    base = tmp_path / "base.npy"
    np.save(base, clustered(2000, 32, 1))
    BROKEN[kind](base)
    refused(train(*own_files, f"dataset.base={base}", expect=2), "31" if kind == "another dimension" else "base.npy")
    assert not any((tmp_path / "outputs").glob("*"))


def test_resume_takes_no_other_settings(train: Command, trained: Path) -> None:
    refused(train(f"resume={trained}", "lambda=0.5", expect=2), "leave out lambda=0.5")
    assert (trained / "results.json").exists()


def test_a_folder_of_another_run_is_left_alone(train: Command, own_files: list[str], trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    command = [*own_files, *FAST, "baselines=[]", f"hydra.run.dir={trained}"]
    refused(train(*command, "lambda=0.5", expect=2), "holds a run with other settings", "resume=")
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert "has already finished" in train(*command).stderr


def test_a_gpu_where_there_is_none(train: Command, own_files: list[str], tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refused(train(*own_files, "trainer=gpu", expect=2), "the trainer refuses its settings", "gpu")
    assert not any((tmp_path / "outputs").glob("*"))


def test_evaluating_what_is_no_finished_run(evaluate: Command, trained: Path, tmp_path: Path) -> None:
    refused(evaluate("run=nowhere", expect=2), "nowhere is not a run folder")
    refused(evaluate(expect=2), "run is missing; give it on the command line: run=...")
    refused(evaluate(f"run={trained}", "quantizer=pq", "bits=12", expect=2), "multiple of 8, got 12")
    (trained / "catalyzer.json").unlink()
    refused(
        evaluate(f"run={trained}", "quantizer=pq", expect=2),
        "catalyzer.json",
        "no such file",
        "expected the folder of a finished run",
    )
    assert not (trained / "evaluations").exists()


def test_a_folder_that_cannot_be_written(train: Command, own_files: list[str], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = "/proc/outputs"  # root may write anywhere but here
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        target = str(tmp_path / "closed" / "outputs")
    process = train(*own_files, "catalyzer=pca", f"hydra.run.dir={target}", expect=2)
    assert target in process.stderr
