"""What a user types: paths as a shell hands them over, and one sentence with the nearest key for what is mistyped."""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

import catalyzer
from catalyzer import InvalidInput
from catalyzer.index.recipe import make_settings
from catalyzer.runs.compose import compose_config
from catalyzer.runs.overrides import PATHS, spelled
from tests.helpers import DIM, Command, clustered, command, make_run, refused

ODD = "a=b (1), [x]{y} #&'é新"
"""A name with all that means something to Hydra."""


def meant(text: str) -> object:
    """What Hydra reads in an override."""
    return OverridesParser.create().parse_override(text).value()


@given(
    st.sampled_from(sorted(PATHS)), st.text(st.characters(exclude_characters="~$\\'\"", exclude_categories=["Cs"]), min_size=1)
)
def test_any_path_arrives_as_it_was_typed(key: str, path: str) -> None:
    (text,) = spelled([f"{key}={path}"])
    assert meant(text) == (None if path.strip().lower() == "null" else path)
    assert spelled([text]) == [text]


@pytest.mark.parametrize("name", [ODD, 'it\'s "so"', "1e3", "[x]", "choice(a,b)", "C:\\data\\l.npy", "a\\'b=c", " x "])
def test_names_that_hydra_takes_for_something_else(name: str) -> None:
    config = compose_config("train", ["dataset=files", f"dataset.learn={name}", f"++dataset.path={ODD}/l.npy"])
    assert config.dataset.learn == name
    assert config.dataset.path == f"{ODD}/l.npy"


@pytest.mark.parametrize(
    ("quoted", "value"),
    [
        ("'a,b'", "a,b"),
        ('"a=b"', "a=b"),
        (r"a\=b", "a=b"),
        ("null", None),
        ("${oc.env:HOME}/a=b", "HOME/a=b"),
        ("x: y", "x: y"),
    ],
)
def test_what_is_quoted_for_hydra_keeps_its_meaning(quoted: str, value: str | None) -> None:
    expected = value and value.replace("HOME", os.environ["HOME"])
    assert compose_config("train", ["dataset=files", f"dataset.groundtruth={quoted}"]).dataset.groundtruth == expected


def test_home_and_variables_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ä b")
    monkeypatch.setenv("DATA", "/d=1")
    typed = ["out=~/x", "run=$DATA/x", "input=${DATA}", "cache=$NOT_SET/x", "resume='~/y'"]
    expected = ["/home/ä b/x", "/d=1/x", "/d=1", "$NOT_SET/x", "/home/ä b/y"]
    assert [meant(text) for text in spelled(typed)] == expected


def test_other_keys_and_other_types_are_hydras() -> None:
    kept = [
        "lambda=0.1,0.2",
        "+dataset.sizes=[1,2]",
        "dataset.base_size=1_000",
        "dataset=files",
        "~dataset.root",
        "trust=[a,b]",
    ]
    assert spelled(kept) == kept


def test_paths_of_settings_in_python() -> None:
    settings = make_settings(False, False, ["dataset.learn=x", f"cache={ODD}"], [f"dataset.groundtruth={ODD}"])
    assert (settings.cache, settings.dataset["groundtruth"]) == (ODD, ODD)


def test_in_a_sweep_a_comma_separates(train: Command, tmp_path: Path) -> None:
    def swept(text: str) -> list[object]:
        (one,) = spelled([text], lambda: True)
        return list(OverridesParser.create().parse_override(one).sweep_string_iterator())  # type: ignore[arg-type]

    assert swept("dataset.root=/a=b,~x,c") == ["'/a=b'", "'~x'", "c"]
    assert swept("dataset.learn='a,b',c") == ["'a,b'", "c"]
    assert meant(spelled(["hydra.sweep.dir=a,b"], lambda: True)[0]) == "a,b"  # which Hydra sweeps never

    (tmp_path / "a,b").mkdir()
    typed = "dataset.learn=a,b/l.npy"
    process = train("-m", "dataset=files", typed, expect=2)
    refused(process, "a comma separates the values of a sweep", "quote it: 'dataset.learn=\"a,b/l.npy\"'")
    (quoted,) = shlex.split(process.stderr.rpartition(": ")[2])
    assert meant(spelled([quoted], lambda: True)[0]) == "a,b/l.npy"
    refused(train("experiment=crossvalidate", "dataset=files", typed, expect=2), "separates the values")  # a sweep without -m


def test_commands_take_paths_as_they_are(
    train: Command, evaluate: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    for seed, (name, n) in enumerate((("learn", 2000), ("base", 500), ("queries", 50))):
        np.save(folder / f"{name}.npy", clustered(n, DIM, seed))
    files = [f"dataset.{name}={ODD}/{name}.npy" for name in ("learn", "base", "queries")]
    sizes = ["dataset=files", "dataset.validation_base_size=500", "dataset.validation_queries_size=50"]
    train(*sizes, *files, "catalyzer=pca", "baselines=[]", f"hydra.run.dir={ODD}/run", f"cache={ODD}/cache")
    assert (folder / "run" / "results.json").exists()
    assert (folder / "cache").exists()
    assert "has already finished" in train(f"resume={ODD}/run").stderr
    evaluate(f"run={ODD}/run", "quantizer=pq")
    command("encode.py", environment, tmp_path)(f"run={ODD}/run", f"input={ODD}/base.npy", f"output={ODD}/codes")
    search = command("search.py", environment | {"HERE": ODD}, tmp_path)
    search("codes=$HERE/codes", f"queries={ODD}/queries.npy", f"output={ODD}/found", "k=5")
    assert (folder / "found.ivecs").exists()


def test_a_sweep_in_an_odd_folder(train: Command, own_files: list[str], tmp_path: Path) -> None:
    train("-m", *own_files, "catalyzer=pca", "baselines=[]", "bits=32,64", f"hydra.sweep.dir={ODD}")
    assert {path.parent.name for path in (tmp_path / ODD).glob("*/results.json")} == {"0", "1"}


SENTENCES = {
    "lamda=1": "there is no key lamda; did you mean lambda?",
    "dataset.rooot=x": "there is no key dataset.rooot; did you mean dataset.root?",
    "max_epochs=3": "there is no key max_epochs; did you mean trainer.max_epochs?",
    "quantiser=pq": "there is no key quantiser; did you mean quantizer?",
    "hydra.run.dri=x": "there is no key hydra.run.dri; did you mean hydra.run.dir?",
    "xyzzy=1": "there is no key xyzzy; --help shows all keys",
    "~xyzzy": "there is no key xyzzy; --help shows all keys",
    "dataset.learn=x": "dataset.learn is a key of dataset=files, which is not selected; add it",
    "quantizer=latice": "quantizer=latice: expected one of eden, itq, lattice, lsh",
    "hydra/launcher=jobli": "expected one of basic, joblib",
    "trainer.gradient_clip_val=1": "add it with a +: +trainer.gradient_clip_val=1",
    "callbacks.mine={_target_: a.B}": "add it with a +: '+callbacks.mine={_target_: a.B}'",
    "+bits=3": "+bits=3: this key already exists; leave out the +",
    "+quantizer=pq": "+quantizer=pq: this key already exists; leave out the +",
    "lambda=0.1,0.2": "several values need a sweep, src/train.py -m; for a list use brackets: lambda=[0.1,0.2]",
    "lambda=a b=c": "to give a string, quote it: 'lambda=\"a b=c\"'",
    "bits=[1": "bits=[1: not in Hydra's grammar",
    "foo": "foo: not in Hydra's grammar; expected KEY=VALUE",
    "catalyzer=64": "catalyzer=64: Config group override must be a string",
}


@pytest.mark.parametrize("override", SENTENCES)
def test_what_is_mistyped_gets_one_sentence(override: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        compose_config("train", [override])
    assert SENTENCES[override] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_advice_is_not_refused() -> None:
    assert compose_config("train", ["+trainer.gradient_clip_val=1"]).trainer.gradient_clip_val == 1
    assert compose_config("train", ["lambda=[0.1,0.2]"])["lambda"] == [0.1, 0.2]


def test_commands_say_so_too(train: Command, environment: dict[str, str], tmp_path: Path) -> None:
    refused(train("lamda=1", expect=2), "did you mean lambda?")
    refused(train("+lamda=1", expect=2), "there is no key lamda; did you mean lambda?")
    refused(train("quantizer=latice", expect=2), "did you mean lattice?")
    refused(train("-m", "quantizer=lattice,latice", "hydra.sweep.dir=s", expect=2), "did you mean lattice?")
    refused(train("lambda=a b=c", expect=2), "quote it")
    refused(command("encode.py", environment, tmp_path)("imput=x", expect=2), "did you mean input?")
    for script in ("train.py", "encode.py", "reproduce.py", "sweep_table.py"):
        assert command(script, environment, tmp_path)("--version").stdout == f"{catalyzer.__version__}\n"


def test_numbers_of_a_search(environment: dict[str, str], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clustered(100, DIM, 1))
    run = make_run(tmp_path / "run")
    command("encode.py", environment, tmp_path)(f"run={run}", "input=x.npy", "output=codes")
    search = command("search.py", environment, tmp_path)
    for k, words in (("10000000000", "the number of codes; got"), ("10.0", "whole number"), ("true", "a number")):
        refused(search("codes=codes", "queries=x.npy", "output=found", f"k={k}", expect=2), words)
    assert not list(tmp_path.glob("found*"))
