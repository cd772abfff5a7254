"""Tables and figures from end to end, on a small dataset and networks that learn for seconds."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from catalyzer import InvalidInput
from catalyzer.commands.reproduce import laboratory
from catalyzer.reproduce import TARGETS, Lab, Outcome, code_sizes, distinct, jobs, make_target, tables
from catalyzer.reproduce.lab import dataset_digest, training_digest
from catalyzer.runs import checks
from catalyzer.runs.sweeps import validation_recall
from catalyzer.runs.targets import TARGET_NAMES
from tests.helpers import FAST, ROOT, Command, clustered, settings_of

SMALL = [*FAST, "dataset.train_size=2000"]


@pytest.fixture(scope="module")
def lab(own_files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab whose networks are small; the targets of this module share its runs."""
    folder = tmp_path_factory.mktemp("lab")
    return Lab(
        lambda overrides: settings_of(*overrides),
        ["scale=demo", *own_files, *SMALL, "bits=16", f"cache={folder / 'cache'}"],
        folder,
        2,
        [0.01, 0.1],
    )


def values(outcome: Outcome, table: int = 0) -> dict[str, list]:
    return {row.label: list(row.values) for row in outcome.tables[table].rows}


def test_help_lists_every_target_at_once(environment: dict[str, str]) -> None:
    assert tuple(TARGETS) == TARGET_NAMES
    script = str(ROOT / "src" / "reproduce.py")
    code = f"import runpy, sys; sys.argv = ['x', '--help']; runpy.run_path({script!r}, run_name='__main__')"
    check = f"import atexit, sys; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n{code}"
    process = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    assert f"Targets\n  {' '.join(TARGETS)}\n" in process.stdout
    assert process.stderr == "False"


@pytest.mark.parametrize("overrides", [["catalyzer=pca"], ["catalyzer=identity", "quantizer=opq"], ["lambda=0.1"]])
def test_the_commands_that_are_shown_run(lab: Lab, overrides: list[str], tmp_path: Path) -> None:
    typed = shlex.split(lab.command(overrides))[2:]
    checks.check(settings_of(*typed), tmp_path, typed=typed)


def test_table1(lab: Lab, tmp_path: Path) -> None:
    outcome, paths = make_target("table1", lab, tmp_path)
    rows = values(outcome)
    assert list(rows) == [
        "OPQ", "catalyzer + OPQ", "LSQ", "PCA + lattice", "catalyzer + lattice", "catalyzer + lattice (end-to-end)",
    ]  # fmt: skip
    for bits, at_1, at_10, at_100, encoding in rows.values():
        assert 14 <= bits <= 16  # the largest sphere that fits may take fewer
        assert 0 < at_1 <= at_10 <= at_100 <= 100
        assert encoding > 0
    assert rows["catalyzer + lattice"] != rows["catalyzer + lattice (end-to-end)"]
    assert all(row.paper is None for row in outcome.tables[0].rows)  # published for SIFT and Deep1B only
    assert [path.name for path in paths] == ["table1.md", "results.json"]
    assert "| catalyzer + lattice |" in paths[0].read_text()
    assert Outcome.load(tmp_path) == outcome


def test_two_stages(lab: Lab, tmp_path: Path) -> None:
    outcome, paths = make_target("two_stages", lab, tmp_path)
    rows = values(outcome)
    assert [path.stem for path in paths[::2]][:4] == [f"{cost}_recall{k}" for cost in ("encoding", "search") for k in (1, 10)]
    plain, trained = rows["catalyzer + lattice"], rows["catalyzer + lattice (rerank 0)"]
    assert plain[-1] is None
    assert trained[1:4] != plain[1:4]
    errors = {rows[f"catalyzer + lattice (rerank {n})"][-1] for n in (100, 500, 1000)} | {trained[-1]}
    assert len(errors) == 1  # the same codes, however they are searched
    tried = [rows[f"catalyzer + lattice (rerank 500, refine {n})"][-1] for n in (4, 16)]
    stepped = [rows[f"catalyzer + lattice (rerank 500, steps 2{more})"][-1] for more in ("", ", refine 4")]
    plain_error = errors.pop()
    assert tried[1] < tried[0] < plain_error
    assert stepped[1] < stepped[0] < plain_error
    assert rows["PQ"][-1] > rows["RQ"][-1] > 0
    assert all(row[-2] > 0 for row in rows.values())
    for row in outcome.tables[0].rows:
        assert row.command.startswith("python src/")
        assert "decoder=" not in row.command or "src/train.py" in row.command


def test_two_stages_has_the_decoder_of_the_user_or_of_the_recipe(lab: Lab) -> None:
    recipe = ["experiment=decoder", "trainer.check_val_every_n_epoch=1"]
    for given, expected in (([], "ResidualDecoder"), (recipe, "ResidualDecoder"), ([*recipe, "decoder=mlp"], "Decoder")):
        own = replace(lab, overrides=[*lab.overrides, *given])
        plain, decoding = (own.settings(overrides).decoder["_target_"] for overrides in jobs("two_stages", own))
        assert plain is None
        assert decoding == f"catalyzer.nn.{expected}"


def test_figures_3_and_7_and_large_scale_use_the_network_of_table_1(lab: Lab, tmp_path: Path) -> None:
    runs = len(list((lab.folder / "runs").iterdir()))
    for name in ("figure3", "figure7", "large_scale"):
        outcome, paths = make_target(name, lab, tmp_path / name)
        assert [path.name for path in paths[:2]] == [f"{name}.png", f"{name}.svg"]
        assert all(path.stat().st_size > 1000 for path in paths[:2])
        assert outcome.captions[name]
    assert len(list((lab.folder / "runs").iterdir())) == runs
    sizes = [row.values[0] for row in outcome.tables[0].rows if row.label == "OPQ"]
    assert sizes == [2000]  # the base is smaller than the smallest size


def test_a_run_first_tested_on_a_part_of_the_base_serves_all_of_it(lab: Lab) -> None:
    part = lab.trained(["quantizer=lattice", "dataset.base_size=500"])
    whole = lab.trained(["quantizer=lattice"])
    assert part.folder == whole.folder
    assert len(lab.latent(part)[0]) == 500
    assert len(lab.latent(whole)[0]) == 2000
    assert "base_size: null" in (whole.folder / "config.yaml").read_text()  # which evaluate.py reads


def test_large_scale_with_ground_truth_of_the_user(
    lab: Lab, own_files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "SIZES", [500, 10**9])
    path = tmp_path / "truth.npy"
    np.save(path, lab.benchmark(lab.common).test.ground_truth)
    given = Lab(lab.compose, [*lab.overrides, f"dataset.groundtruth={path}"], lab.folder, 1, lab.lambdas)
    outcome, _ = make_target("large_scale", given, tmp_path / "large_scale")
    assert [row.values[0] for row in outcome.tables[0].rows] == [500, 2000] * 2


def test_vectors_of_fewer_dimensions_than_the_lattice(lab: Lab, tmp_path: Path) -> None:
    wide = Lab(lab.compose, [*lab.overrides, "d_out=40"], lab.folder, 1, lab.lambdas)
    outcome, _ = make_target("table1", wide, tmp_path)
    assert values(outcome)["PCA + lattice"] == [None] * 5


def test_figure5_sweeps_the_radius_and_goes_on_with_products(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sizes, "LATTICE_BITS", (16, 48))
    few = {"LSQ": (2,), "RQ": (2,)}  # learning all sizes takes minutes
    for name, sizes in (("SIZES", (2, 16)), ("FEW", few), ("TRAINED_SIZES", (16,))):
        monkeypatch.setattr(code_sizes, name, sizes)
    outcome, _ = make_target("figure5", lab, tmp_path)
    table = outcome.tables[0]
    lines = {row.label: [r.values for r in table.rows if r.label == row.label] for row in table.rows}
    for d_out in (16, 24, 32, 40):
        rows = lines.pop(f"catalyzer + lattice ({d_out} dimensions)")
        bits = [row[2] for row in rows]
        assert bits == sorted(set(bits))
        assert bits[-1] > 46
        assert rows[-1][5] > rows[0][5]  # recall@10 of the largest code and of the smallest
    assert {label: [row[3] for row in rows] for label, rows in lines.items()} == {
        "catalyzer + lattice (product of spheres)": [16], "linear + lattice": [2, 16],
        "OPQ": [2, 16], "PQ": [2, 16], "LSQ": [2], "RQ": [2], "RaBitQ": [12],
    }  # fmt: skip
    for label in ("linear + lattice", "OPQ", "PQ"):
        assert lines[label][1][5] > lines[label][0][5]
    (command,) = {row.command for row in table.rows if row.label == "linear + lattice" and row.values[3] == 16}
    assert command.startswith("python src/train.py")
    assert "catalyzer=linear quantizer=lattice d_out=auto bits=128" in command
    assert lab.trained(jobs("figure5", lab)[-1]).codec.quantizer.blocks is not None  # more than one sphere

    figure = code_sizes.draw(table)
    figure.draw_without_rendering()
    axes, legend = figure.axes[0], figure.legends[0].get_window_extent()
    shown = [
        label.get_text()
        for label in axes.get_xticklabels()
        if axes.get_window_extent().fully_containsx(label.get_window_extent().x0)
    ]
    assert shown == ["2", "4", "8", "16"]
    assert not legend.overlaps(axes.get_window_extent())
    assert figure.bbox.containsx(legend.x1)


@pytest.mark.parametrize(
    ("dim", "trained", "linear", "divided"),  # bytes of each line
    [(6, [], [], [3]), (8, [16], [4, 8, 16], [4]), (40, [16], [4, 8, 16], [4, 8, 14])],
)
def test_figure5_leaves_out_sizes_that_the_vectors_have_no_dimensions_for(
    dim: int,
    trained: list[int],
    linear: list[int],
    divided: list[int],
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, sizes in (("SIZES", (4, 8, 16)), ("TRAINED_SIZES", (16,))):
        monkeypatch.setattr(code_sizes, name, sizes)
    given = [*lab.overrides, "dataset.validation_base_size=200", "dataset.validation_queries_size=20"]
    for seed, (part, n) in enumerate((("learn", 500), ("base", 300), ("queries", 20))):
        np.save(tmp_path / f"{part}.npy", clustered(n, dim, seed))
        given.append(f"dataset.{part}={tmp_path / part}.npy")
    small = Lab(lab.compose, given, tmp_path, 1, lab.lambdas)
    found: dict[str, list[int]] = {code_sizes.TRAINED_LABEL: [], code_sizes.LINEAR_LABEL: []}
    for label, overrides in code_sizes.methods(small):
        found.setdefault(label, []).append(small.settings(overrides).bits // 8)
    assert [found[code_sizes.TRAINED_LABEL], found[code_sizes.LINEAR_LABEL]] == [trained, linear]
    assert [found["OPQ"], found["PQ"], found["RQ"]] == [divided, divided, [4, 8, 16]]
    assert len(jobs("figure5", small)) == len(code_sizes.DIMENSIONS) + len(trained)


def test_figure4_compares_three_networks(lab: Lab, tmp_path: Path) -> None:
    outcome, _ = make_target("figure4", lab, tmp_path)
    assert list(values(outcome)) == ["λ = 0", "λ = 0.02", "λ = 1"]
    below_uniform = {label: cells[0] for label, cells in values(outcome).items()}
    assert below_uniform["λ = 1"] < below_uniform["λ = 0"]


def test_table3_chooses_on_the_validation_split(lab: Lab, tmp_path: Path) -> None:
    outcome, _ = make_target("table3", lab, tmp_path)
    for row in outcome.tables[0].rows:
        best, *found = row.values
        assert best == ("0.01", "0.1")[int(np.argmax(found))]
        assert f"lambda={best}" in row.command
    first = lab.trained(TARGETS["table3"].jobs(lab)[0])
    assert validation_recall(first.folder)[10] * 100 == pytest.approx(outcome.tables[0].rows[0].values[1])
    assert not (first.folder / "results.json").exists()  # nothing was measured on the test split


def test_what_was_made_is_not_made_again(lab: Lab, tmp_path: Path) -> None:
    outcome, paths = make_target("figure6", lab, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert make_target("figure6", lab, tmp_path) == (outcome, paths)
    assert before == {path: path.stat().st_mtime_ns for path in paths}
    paths[0].unlink()
    assert make_target("figure6", lab, tmp_path)[1] == paths
    assert paths[0].exists()
    (tmp_path / "results.json").write_text("{")
    assert make_target("figure6", lab, tmp_path)[0].tables == outcome.tables
    other = Lab(lab.compose, [*lab.overrides, "seed=1"], lab.folder, lab.seeds, lab.lambdas)
    assert make_target("figure6", other, tmp_path)[0].key != outcome.key


def test_a_measured_number_is_kept_and_a_damaged_one_made_again(lab: Lab) -> None:
    calls: list[int] = []

    def measure() -> list[int]:
        calls.append(0)
        return [1, 2]

    for _ in range(2):
        assert lab.measured("number", ("key",), measure) == [1, 2]
    assert len(calls) == 1
    (path,) = (lab.folder / "measured").glob("number-*.json")
    path.write_text("[1,")
    assert lab.measured("number", ("key",), measure) == [1, 2]
    assert len(calls) == 2


def test_a_run_is_named_by_what_decides_it(lab: Lab, own_files: list[str]) -> None:
    plain = lab.settings(["quantizer=lattice"])
    for same in (["logger=wandb"], ["cache=elsewhere"], ["dataset.base_size=100"]):
        assert training_digest(lab.settings(["quantizer=lattice", *same])) == training_digest(plain)
    for other in (["lambda=0.5"], ["seed=3"], ["trainer.max_epochs=3"], ["dataset.train_size=4000"]):
        assert training_digest(lab.settings(["quantizer=lattice", *other])) != training_digest(plain)
    assert dataset_digest(lab.settings(["dataset.base_size=100"])) != dataset_digest(plain)
    digest = training_digest(plain)
    learn = Path(own_files[3].removeprefix("dataset.learn="))
    before = learn.stat()
    try:
        learn.touch()
        assert training_digest(plain) != digest
    finally:
        os.utime(learn, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_all_needs_each_training_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sizes, "TRAINED_SIZES", (16,))  # counting the points of 32 bytes in 32 dimensions takes long
    trainings = jobs("all", lab)
    folders = [lab.run_folder(overrides) for overrides in trainings]
    assert len(folders) > len({*folders})  # targets share runs
    assert sorted(folders[number] for number in distinct(trainings, lab)) == sorted({*folders})
    assert {lab.run_folder(overrides) for overrides in jobs("table2", lab)} <= {*folders}
    with pytest.raises(InvalidInput, match="no target figure1; choose one of"):
        jobs("figure1", lab)


def test_the_trainings_side_by_side_then_the_table(reproduce: Command, own_files: list[str], tmp_path: Path) -> None:
    arguments = ["table2", *own_files, *SMALL, "seeds=2", "trainer.max_epochs=1"]
    process = reproduce("-m", *arguments, "hydra/launcher=joblib")
    assert len(list((tmp_path / "outputs/reproduce/runs").iterdir())) == 3 * 4 * 2 - 2 * 2  # no ITQ beyond 32 dimensions
    (folder,) = (tmp_path / "outputs/reproduce").glob("files-demo-*/table2")
    outcome = Outcome.load(folder)
    assert "batch_size=64" in outcome.scale
    assert shlex.split(outcome.command)[:3] == ["python", "src/reproduce.py", "table2"]
    assert "seeds=2" in outcome.command
    rows = values(outcome)
    assert rows["ITQ"][2:] == [None, None]
    assert outcome.tables[0].rows[2].spread is not None
    assert re.search(r"catalyzer \+ sign +\d+\.\d ± \d+\.\d", process.stdout)
    again = reproduce(*arguments)
    assert "training" not in again.stderr
    assert again.stdout == process.stdout[-len(again.stdout) :]
    report = reproduce("report")
    assert report.stdout == "outputs/reproduce/report.html\n"


@pytest.mark.parametrize(
    ("key", "override", "message"),
    [
        ("seeds", "seeds=0", "seeds=0: input should be greater than 0"),
        ("lambdas", "lambdas=[]", "lambdas=[]: list should have at least 1 item"),
        (None, "quantizer=pq", "quantizer=pq: each row of a table sets this itself"),
        (None, "experiment=paper", "give scale=paper"),
        (None, "trainer=gpu", "the trainer refuses its settings"),
    ],
)
def test_wrong_keys_get_one_sentence(key: str | None, override: str, message: str) -> None:
    own = {"target": "table1", "out": "outputs", "seeds": 5, "lambdas": [0.1], "job": None}
    own |= {} if key is None else {key: yaml.safe_load(override.split("=")[1])}
    with pytest.raises(InvalidInput) as caught:
        laboratory(own, [override], [])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "table2"], "expected one target, got table1 table2"),
        (["table1", "job=99"], "job=99: table1 has 2 trainings, numbered from 0"),
        (["table1", "experiment=search"], "experiment=search is a sweep of src/train.py"),
    ],
)
def test_a_mistake_leaves_nothing(arguments: list[str], message: str, reproduce: Command, tmp_path: Path) -> None:
    error = reproduce(*arguments, expect=2).stderr
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_hydra_itself_is_asked(reproduce: Command) -> None:
    assert "target: table1" in reproduce("table1", "--cfg", "job").stdout
    assert "figure6.png" in reproduce("figure6", "hydra.verbose=false").stdout


def test_tables_and_figures_go_to_wandb(reproduce: Command, tmp_path: Path) -> None:
    reproduce("figure6", "logger=wandb")
    (files,) = (tmp_path / "outputs/reproduce/demo-demo/figure6").glob("wandb/offline-run-*/files/media")
    (table,) = files.glob("table/figure6/*.json")
    assert json.loads(table.read_text())["columns"][0] == "method"
    assert list(files.glob("images/figure6/*.png"))
