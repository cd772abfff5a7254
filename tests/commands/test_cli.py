"""The command `catalyzer`, as a user runs it: real processes where processes matter, and bad days."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import catalyzer.__main__
from catalyzer import CatalyzerIndex, open_vectors
from catalyzer.commands.cli import _parser, main
from catalyzer.commands.console import one_sentence_errors
from catalyzer.errors import InvalidInput
from catalyzer.files.vectors import write_vecs
from catalyzer.index import catalyzer_index
from tests.helpers import ROOT, Finished, clustered, new_python, python

BASE, QUERIES = clustered(300, 32, 1), clustered(20, 32, 2)
Run = Callable[..., str]


@pytest.fixture
def folder(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user is: vector files, and a fitted index without vectors."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(fitted, "a.catalyzer")
    for name, vectors in (("learn", clustered(600, 32, 0)), ("base", BASE), ("queries", QUERIES)):
        write_vecs(Path(f"{name}.fvecs"), [vectors])
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`catalyzer LINE` in `folder`, in this process: what it prints, or the sentence where `expect` is 2."""

    def call(line: str, expect: int = 0) -> str:
        try:
            main(line.split())
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        captured = capsys.readouterr()
        assert code == expect, captured
        return captured.out if code == 0 else captured.err

    return call


def code_of(line: str, before: str = "") -> str:
    """Python that does `before` and then `catalyzer LINE`."""
    return f"{before}\nfrom catalyzer.commands.cli import main; main({line.split()!r})"


def process(line: str, folder: Path, before: str = "") -> Finished:
    """`catalyzer LINE` in a process of its own, which does `before` first."""
    return python("-c", code_of(line, before), environment={**os.environ}, folder=folder)


def typed(line: str, folder: Path, before: str = "") -> Finished:
    """The same in a process that has imported nothing, and that prints into pipes."""
    return new_python("-c", code_of(line, before), environment={**os.environ}, folder=folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_from_files_to_neighbours(folder: Path) -> None:
    (folder / "a.catalyzer").unlink()
    fit = typed("fit b.catalyzer learn.fvecs --bits 32 --d-out 12 --hidden 32 --epochs 2 --metric cosine", folder)
    assert fit.returncode == 0, fit.stderr
    assert "epoch 2/2" in fit.stderr
    assert "Warning" not in fit.stderr
    assert fit.stdout == "b.catalyzer is trained; add vectors with: catalyzer add b.catalyzer BASE\n"
    assert typed("add b.catalyzer base.fvecs", folder).stdout == "added 300 vectors; b.catalyzer holds 300\n"
    search = typed("search b.catalyzer queries.fvecs -k 3", folder)
    assert len(search.stdout.splitlines()) == 1 + 20 * 3
    assert search.stdout.split()[:4] == ["query", "rank", "id", "similarity"]
    assert {path.name for path in folder.iterdir()} == {"b.catalyzer", "learn.fvecs", "base.fvecs", "queries.fvecs"}


def test_search_as_table_json_and_files(run: Run, folder: Path) -> None:
    run("add a.catalyzer base.fvecs")
    distances, ids = CatalyzerIndex.load("a.catalyzer").search(QUERIES, 5)
    table = [line.split() for line in run("search a.catalyzer queries.fvecs -k 5").splitlines()[1:]]
    assert [int(row[2]) for row in table] == ids.ravel().tolist()
    lines = [json.loads(line) for line in run("search a.catalyzer queries.fvecs -k 5 --json").splitlines()]
    assert [line["ids"] for line in lines] == ids.tolist()
    np.testing.assert_allclose([line["distances"] for line in lines], distances, rtol=1e-6)
    assert run("search a.catalyzer queries.fvecs -k 5 --output found") == "wrote found.ivecs and found.fvecs, 20 rows of 5\n"
    np.testing.assert_array_equal(open_vectors("found.ivecs")[:], ids)
    np.testing.assert_array_equal(open_vectors("found.fvecs")[:], distances)
    sphere = CatalyzerIndex.load("a.catalyzer").search(QUERIES, 5, rerank=0)[1]
    lines = [json.loads(line) for line in run("search a.catalyzer queries.fvecs -k 5 --rerank 0 --json").splitlines()]
    assert [line["ids"] for line in lines] == sphere.tolist()


def test_info_and_verify(run: Run) -> None:
    run("add a.catalyzer base.fvecs")
    assert " quantizer  LatticeQuantizer(dim=24, bits=64, radius_sq=79)\n" in run("info a.catalyzer")
    facts = json.loads(run("info a.catalyzer --json"))
    assert facts == {
        "file": "a.catalyzer", "size": Path("a.catalyzer").stat().st_size, "vectors": 300, "dimension": 32, "metric": "l2",
        "bits": 64, "code_size": 8, "transform": "Catalyzer(d_in=32, d_out=24, hidden=64)",
        "quantizer": "LatticeQuantizer(dim=24, bits=64, radius_sq=79)", "decoder": "Decoder(d_in=24, d_out=32, hidden=64)",
        "query": "Catalyzer(d_in=32, d_out=24, hidden=64)", "lists": 0, "origin": None, "validation": None,
    }  # fmt: skip
    assert run("verify a.catalyzer") == "a.catalyzer is intact: 300 vectors\n"
    content = bytearray(Path("a.catalyzer").read_bytes())
    content[-1] ^= 1
    Path("a.catalyzer").write_bytes(content)
    run("info a.catalyzer")
    for line in ("verify a.catalyzer", "add a.catalyzer base.fvecs"):
        assert "vectors 0 to 299 do not match their checksum" in run(line, expect=2)
    assert Path("a.catalyzer").read_bytes() == content


def test_lists(run: Run) -> None:
    run("fit b.catalyzer learn.fvecs --hidden 32 --d-out 24 --epochs 1 --ivf 12")
    info = run("info b.catalyzer")
    assert "lists  12\n" in info
    assert re.search(r"validation  R@1 \d+\.\d%, R@10 \d+\.\d% \(24 queries, 96 vectors, \d+ reranked\)\n", info)
    assert run("add b.catalyzer base.fvecs").endswith("holds 300\n")
    assert run("add b.catalyzer queries.fvecs").endswith("holds 320\n")
    index = CatalyzerIndex.load("b.catalyzer")
    assert sorted(index.ids.tolist()) == list(range(320))
    for options, kept in (("--nprobe 2 --rerank 20", (20, 2)), ("--nprobe 12", (None, 12)), ("", (None, None))):
        lines = [
            json.loads(line)["ids"] for line in run(f"search b.catalyzer queries.fvecs -k 3 --json {options}").splitlines()
        ]
        assert lines == index.search(QUERIES, 3, *kept)[1].tolist()
    index.remove(np.arange(100))
    index.save("b.catalyzer")
    assert run("verify b.catalyzer") == "b.catalyzer is intact: 220 vectors\n"
    facts = json.loads(run("info b.catalyzer --json"))
    assert (facts["vectors"], facts["lists"]) == (220, 12)
    assert 220 / 12 < facts["longest"] <= 220
    assert "longest" in run("info b.catalyzer")
    for line, sentence in (
        (
            "search b.catalyzer queries.fvecs --nprobe 13",
            "between 1 and 12, the number of lists; got 13",
        ),
        (
            "search a.catalyzer queries.fvecs --nprobe 3",
            "nprobe = 3 is for an index with inverted lists, but this one has none",
        ),
        ("fit c.catalyzer learn.fvecs --ivf 76", "ivf = 76 lists need at least 608 vectors to learn from, 8 per list; got 600"),
        ("fit c.catalyzer learn.fvecs --ivf -1", "ivf must be an integer of at least 0; got -1"),
    ):
        assert sentence in run(line, expect=2)


def test_ids_and_k_beyond_what_there_is(run: Run) -> None:
    np.save("ids.npy", np.arange(300) + 2**40)
    write_vecs(Path("ids.ivecs"), [np.arange(300)[:, None]])
    write_vecs(Path("few.fvecs"), [BASE[:2]])
    run("add a.catalyzer base.fvecs --ids ids.npy")
    assert "above 2,147,483,647" in run("search a.catalyzer queries.fvecs --output found", expect=2)
    run("add a.catalyzer base.fvecs --ids ids.ivecs")
    for line, sentence in (
        ("add a.catalyzer base.fvecs --ids ids.ivecs", "300 of the ids are in the index already, the first of them 0"),
        ("add a.catalyzer few.fvecs --ids ids.npy", "expected an id for each of 2 vectors, got 300"),
        ("add a.catalyzer few.fvecs --ids few.fvecs", r"ids must be int64 of shape (n,)"),
        ("add a.catalyzer few.fvecs --ids missing.npy", "missing.npy: no such file"),
    ):
        assert sentence in run(line, expect=2)
    lines = run("search a.catalyzer few.fvecs -k 1000 --json").splitlines()
    assert [len(json.loads(line)["ids"]) for line in lines] == [600, 600]
    shutil.copy("a.catalyzer", "full.catalyzer")
    assert "k must be an integer of at least 1; got 0" in run("search a.catalyzer few.fvecs -k 0", expect=2)


def test_padding_in_files(run: Run) -> None:
    write_vecs(Path("few.fvecs"), [BASE[:2]])
    run("add a.catalyzer few.fvecs")
    run("search a.catalyzer queries.fvecs -k 4 --output found")
    assert (open_vectors("found.ivecs")[:][:, 2:] == -1).all()
    assert len(run("search a.catalyzer queries.fvecs -k 4").splitlines()) == 1 + 20 * 2


def test_invalid_rows(run: Run, folder: Path) -> None:
    x = BASE.astype(np.float32)
    x[7, 3], x[9] = np.nan, np.inf
    write_vecs(Path("nan.fvecs"), [x])
    np.save("ids.npy", np.arange(300))
    run("add a.catalyzer base.fvecs")
    before = files(folder)
    for line, way in (
        ("add a", "; or leave them out with skip_invalid=True, or --skip-invalid"),
        ("fit b", "; or leave them out with skip_invalid=True, or --skip-invalid"),
        ("search a", ""),
        ("update a", ""),
    ):
        said = run(f"{line}.catalyzer nan.fvecs{' --ids ids.npy' * line.startswith('update')}", expect=2)
        assert said == f"error: nan.fvecs: row 7 contains NaN or infinity; remove such rows{way}\n"
    assert files(folder) == before
    assert run("add a.catalyzer nan.fvecs --skip-invalid").splitlines() == [
        "left out 2 invalid rows: 7, 9", "added 298 vectors; a.catalyzer holds 598",
    ]  # fmt: skip


def test_what_is_no_id_and_no_index(run: Run, folder: Path) -> None:
    run("add a.catalyzer base.fvecs")
    pa.parquet.write_table(pa.table({"text": ["a"], "name": ["b"]}), "texts.parquet")
    before = files(folder)
    for line, sentence in (
        ("remove a.catalyzer abc12", "expected ids, which are whole numbers, or one file of ids; got abc12"),
        ("remove a.catalyzer 99999999999999999999", "got 99999999999999999999, beyond 64 bits"),
        ("add a.catalyzer base.fvecs --ids texts.parquet:text", "column 'text' holds string; expected numbers or lists"),
        ("add a.catalyzer texts.parquet", "texts.parquet: there are no columns of numbers in this file"),
        ("info .", ".: not a file; expected an index"),
    ):
        assert sentence in run(line, expect=2)
    index = CatalyzerIndex.load("a.catalyzer")
    with pytest.raises(InvalidInput, match=r"base.fvecs exists and is not an index; choose another name, or"):
        index.save("base.fvecs")
    assert files(folder) == before
    index.save("base.fvecs", overwrite=True)
    with pytest.raises(InvalidInput, match=r"got shape \(2,\) of bool"):
        index.reconstruct(np.array([True, False]))
    for name in (None, "a\0b"):
        with pytest.raises(InvalidInput, match="expected a path, got"):
            CatalyzerIndex.load(name)  # type: ignore[arg-type]


def test_ctrl_c_while_the_command_is_imported(folder: Path) -> None:
    early = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "catalyzer.commands.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by jobs in the background
from catalyzer.__main__ import main
main()"""
    finished = new_python("-c", early, environment={**os.environ}, folder=folder)
    assert (finished.returncode, finished.stdout, finished.stderr) == (-signal.SIGINT, "", "")


def test_too_little_memory_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), one_sentence_errors():
        np.empty(2**60, np.uint8)
    assert capsys.readouterr().err.startswith("error: not enough memory (Unable to allocate 1.00 EiB")


def test_nothing_to_add_and_an_id_given_twice(run: Run, folder: Path) -> None:
    np.save("none.npy", BASE[:0])
    np.array([0, 32], np.uint32).tofile("none.fbin")
    np.save("twice.npy", np.r_[:299, 7])
    before = files(folder)
    for line, sentence in (
        (
            "add a.catalyzer none.npy",
            "none.npy: expected an array of shape (rows, dimension), at least one of each; got (0, 32)",
        ),
        ("add a.catalyzer none.fbin", "none.fbin: the header says 0 rows of dimension 32; expected at least one of each"),
        ("add a.catalyzer base.fvecs --ids twice.npy", "row 299 repeats the id 7 of an earlier row; ids must be distinct"),
        ("search a.catalyzer none.npy", "at least one of each; got (0, 32)"),
    ):
        assert run(line, expect=2).endswith(f"{sentence}\n")
    assert files(folder) == before
    assert run("search a.catalyzer queries.fvecs -k 3").count("\n") == 1  # in an index without vectors, nothing is found


def test_a_million_queries_at_once(run: Run) -> None:
    write_vecs(Path("few.fvecs"), [BASE[:40]])
    np.save("many.npy", np.resize(QUERIES, (1_000_000, 32)))
    run("add a.catalyzer few.fvecs")
    line = "search a.catalyzer many.npy -k 1 --rerank 0 --output found"
    assert run(line) == "wrote found.ivecs and found.fvecs, 1,000,000 rows of 1\n"
    ids = open_vectors("found.ivecs")[:].reshape(-1, len(QUERIES))
    assert (ids == CatalyzerIndex.load("a.catalyzer").search(QUERIES, 1, 0)[1][:, 0]).all()


def test_vectors_that_are_removed_while_they_are_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    check = catalyzer_index.ids_for

    def remove(*arguments: Any) -> np.ndarray:
        Path("base.fvecs").unlink()
        return check(*arguments)

    monkeypatch.setattr(catalyzer_index, "ids_for", remove)
    assert run("add a.catalyzer base.fvecs") == "added 300 vectors; a.catalyzer holds 300\n"
    assert "base.fvecs: no such file" in run("add a.catalyzer base.fvecs", expect=2)
    assert run("verify a.catalyzer") == "a.catalyzer is intact: 300 vectors\n"


def test_wrong_files_change_nothing(run: Run, folder: Path) -> None:
    write_vecs(Path("narrow.fvecs"), [BASE[:, :16]])
    row = np.int32(32).tobytes() + np.zeros(32, np.float32).tobytes()
    Path("mixed.fvecs").write_bytes(row + np.int32(31).tobytes() + row[4:])
    Path("cut.fvecs").write_bytes(row[:-1])
    Path("empty.fvecs").write_bytes(b"")
    Path("note.txt").write_text("hello")
    Path("folder.fvecs").mkdir()
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    for line, sentence in (
        ("add a.catalyzer narrow.fvecs", "narrow.fvecs: expected vectors of dimension 32, like the training vectors, got 16"),
        ("search a.catalyzer narrow.fvecs", "expected vectors of dimension 32"),
        ("add a.catalyzer mixed.fvecs", "mixed.fvecs: row 1 has dimension 31, the first row has 32"),
        ("add a.catalyzer cut.fvecs", "not a whole number of rows"),
        ("add a.catalyzer empty.fvecs", "the file is empty (0 bytes)"),
        ("add a.catalyzer missing.fvecs", "missing.fvecs: no such file"),
        ("add a.catalyzer folder.fvecs", "folder.fvecs has none"),
        ("add a.catalyzer note.txt", "expected a file ending in"),
        ("add missing.catalyzer base.fvecs", "missing.catalyzer: no such file; expected an index"),
        ("add nowhere/a.catalyzer base.fvecs", "nowhere/a.catalyzer cannot be written: there is no folder"),
        ("add . base.fvecs", ".: not a file; expected an index"),
        ("add base.fvecs base.fvecs", "base.fvecs is not an index"),
        ("search note.txt queries.fvecs", "note.txt is not an index"),
        ("info .", ".: not a file"),
        ("verify missing.catalyzer", "missing.catalyzer: no such file"),
        ("fit a.catalyzer learn.fvecs", "a.catalyzer already exists; remove it, or choose another name"),
        ("fit b.catalyzer queries.fvecs", "the learn set has 20 vectors; at least 500 are needed"),
        ("fit b.catalyzer learn.fvecs --budget soon", "expected a duration such as 90s"),
        ("fit b.catalyzer learn.fvecs --bits 999", "bits"),
        ("fit b.catalyzer learn.fvecs --bits 0", "bits must be an integer of at least 1; got 0"),
        ("fit b.catalyzer learn.fvecs quantizer=nonsense", "nonsense"),
        ("fit b.catalyzer learn.fvecs nonsense", "nonsense"),
        ("fit b.catalyzer learn.fvecs --bits 32 nonsense", "unrecognized arguments: nonsense"),
        ("fit b.catalyzer learn.fvecs --ivf 8 quantizer=opq", "ProductQuantizer has no method search_lists"),
        ("info a.catalyzer x=1", "unrecognized arguments: x=1; catalyzer info --help shows"),
        ("fit b.catalyzer learn.fvecs --epochs 3 --budget 1h", "not allowed with argument"),
        ("search a.catalyzer queries.fvecs -k ten", "-k: expected a whole number, got 'ten'; catalyzer search --help"),
        (
            "evaluate a.catalyzer --queries queries.fvecs --base base.fvecs --recall most",
            "--recall: expected a number, got 'most'",
        ),
        ("fit b.catalyzer learn.fvecs --d-out few", "--d-out: expected a whole number or auto, got 'few'"),
        ("fit b.catalyzer learn.fvecs --method linear --hidden 512", "hidden = 512 is the width of networks"),
        ("fit b.catalyzer learn.fvecs --epochs 2 trainer.max_epochs=3", "give epochs=3 to fit, or --epochs 3"),
        (
            "fit b.catalyzer learn.fvecs bits=32",
            "bits=32 cannot be an override of an index; give CatalyzerIndex(bits=32), or --bits 32",
        ),
        ("fit b.catalyzer learn.fvecs d_out=16 --bits 32", "or --d-out 16"),
        ("search a.catalyzer queries.fvecs -k 3 --output none/found", "there is no folder none; create it first"),
    ):
        error = run(line, expect=2)
        assert sentence in error
        assert error.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in error
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == before


def test_a_full_disk(folder: Path) -> None:
    before = files(folder)
    size = (folder / "a.catalyzer").stat().st_size
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))"
    for line, sentence in (
        ("add a.catalyzer base.fvecs", "error: a.catalyzer cannot be written (File too large); what was there is unchanged\n"),
        ("fit b.catalyzer learn.fvecs --hidden 64 --d-out 24", "cannot be written (File too large)"),
    ):
        outcome = process(line, folder, full)
        assert outcome.returncode == 2, outcome.stderr
        assert sentence in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert files(folder) == before


def test_a_disk_too_full_for_what_was_found(folder: Path, run: Run) -> None:
    run("add a.catalyzer base.fvecs")
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))"
    search = typed("search a.catalyzer queries.fvecs --output found", folder, full)
    assert search.returncode == 2
    assert search.stderr.endswith("error: found.ivecs cannot be written (File too large); what was there is unchanged\n")
    lock = typed("add a.catalyzer base.fvecs", folder, full)  # which has no room for its name in the lock either
    assert lock.returncode == 2
    assert lock.stderr.endswith("error: a.catalyzer cannot be written (File too large); what was there is unchanged\n")
    assert {*files(folder)} == {"a.catalyzer", "learn.fvecs", "base.fvecs", "queries.fvecs"}


def test_an_index_removed_underneath(folder: Path) -> None:
    reader = "import os, catalyzer.index.file as f\nold = f.read_with_digest\n"
    gone = reader + "def read(path, *options):\n c = old(path, *options); os.unlink(path); return c\nf.read_with_digest = read"
    assert process("add a.catalyzer base.fvecs", folder).returncode == 0
    search = process("search a.catalyzer queries.fvecs -k 2", folder, gone)
    assert len(search.stdout.splitlines()) == 41, search.stderr
    assert not (folder / "a.catalyzer").exists()
    again = process("search a.catalyzer queries.fvecs", folder)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error: a.catalyzer: no such file")


MY_PARTS = """
import numpy as np
from catalyzer.quantizers import Quantizer

class Rounding(Quantizer):
    def __init__(self, dim, bits=64):
        self.dim, self.bits = dim, 8 * dim
    def encode(self, x):
        return (127.5 * (x + 1)).round().astype(np.uint8)
    def decode(self, codes):
        return codes.astype(np.float32) / 127.5 - 1
"""


def test_parts_of_the_users_own(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cli_parts.py").write_text(MY_PARTS)
    monkeypatch.syspath_prepend(folder)
    held = CatalyzerIndex.load("a.catalyzer")._trained()
    from cli_parts import Rounding  # type: ignore[import-not-found]

    CatalyzerIndex.from_codec(replace(held.codec, quantizer=Rounding(24))).save("b.catalyzer")
    assert run("add b.catalyzer base.fvecs --trust cli_parts") == "added 300 vectors; b.catalyzer holds 300\n"
    assert "Rounding(dim=24, bits=192)" in run("info b.catalyzer --trust other --trust cli_parts")
    assert len(run("search b.catalyzer queries.fvecs -k 2 --trust cli_parts").splitlines()) == 41
    assert run("verify b.catalyzer --trust cli_parts") == "b.catalyzer is intact: 300 vectors\n"
    before = files(folder)
    for line in ("add b.catalyzer base.fvecs", "search b.catalyzer queries.fvecs", "info b.catalyzer", "verify b.catalyzer"):
        assert "cli_parts.Rounding is not a class of catalyzer, and loading it would run the code of its module" in run(
            line, expect=2
        )
    assert files(folder) == before


def test_settings_of_the_training_as_arguments(run: Run) -> None:
    run("fit b.catalyzer learn.fvecs --hidden 32 --d-out 24 --epochs 1 --no-decoder quantizer=opq")
    run("fit c.catalyzer learn.fvecs quantizer=opq --hidden 32 --d-out 24 --epochs 1 --no-decoder catalyzer.hidden=16")
    run("add b.catalyzer base.fvecs")
    assert "ProductQuantizer(dim=24, bits=64, rotate=True)" in run("info b.catalyzer")
    assert "Catalyzer(d_in=32, d_out=24, hidden=16)" in run("info c.catalyzer")


def test_two_writers_and_a_kill(folder: Path, run: Run) -> None:
    # The first holds the index while it reads vectors that it never gets.
    slow = "import time, catalyzer.index.catalyzer_index as m\n"
    slow += "def wait(*_): print('adding', flush=True); time.sleep(60)\nm.open_source = wait"
    first = subprocess.Popen(
        [sys.executable, "-c", code_of("add a.catalyzer base.fvecs", slow)], cwd=folder, stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    first.stdout.readline()
    before = (folder / "a.catalyzer").read_bytes()
    second = process("add a.catalyzer base.fvecs", folder)
    assert second.returncode == 2
    assert "a.catalyzer is being written by another process; wait" in second.stderr
    assert "vectors  0" in run("info a.catalyzer")  # who only reads need not wait
    first.kill()
    first.wait()
    assert (folder / "a.catalyzer").read_bytes() == before
    run("add a.catalyzer base.fvecs")
    assert not (folder / "a.catalyzer.lock").exists()


def test_an_interrupted_fit_resumes(folder: Path) -> None:
    line = "fit b.catalyzer learn.fvecs --hidden 64 --d-out 24 --epochs 40"
    kept = folder / "b.catalyzer.training"
    first = subprocess.Popen([sys.executable, "-m", "catalyzer", *line.split()], cwd=folder, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and not list((kept / "checkpoints").glob("step-*")):
        time.sleep(0.01)
    first.terminate()
    assert "the training is kept in b.catalyzer.training; the same command resumes it" in first.communicate()[1]
    assert first.returncode == 143
    assert not (folder / "b.catalyzer").exists()
    # The disk refuses the last write of all.
    refusing = "import os, catalyzer.index.catalyzer_index as m\nfit = m.CatalyzerIndex.fit\n"
    refusing += "def fitted(*a, **b): fit(*a, **b); os.makedirs('b.catalyzer/x')\nm.CatalyzerIndex.fit = fitted"
    second = process(line, folder, refusing)
    assert second.returncode == 2, second.stderr
    assert "resuming from step-" in second.stderr
    assert "error: b.catalyzer cannot be written" in second.stderr
    assert "the training is kept in b.catalyzer.training; the same command resumes it" in second.stderr
    shutil.rmtree(folder / "b.catalyzer")
    others = process(line.replace("64", "96"), folder)
    assert "b.catalyzer.training holds a training that differs in catalyzer.hidden, decoder.hidden; repeat" in others.stderr
    assert "the same command resumes it" not in others.stderr
    third = process(line, folder)
    assert third.returncode == 0, third.stderr
    assert "resuming from step-" in third.stderr
    assert (folder / "b.catalyzer").exists()
    assert not kept.exists()


def test_updating_removing_and_merging(run: Run) -> None:
    run("add a.catalyzer base.fvecs")
    shutil.copy("a.catalyzer", "b.catalyzer")
    np.save("ids.npy", np.arange(20))
    new = CatalyzerIndex.load("a.catalyzer")
    new.add(QUERIES)
    assert run("update a.catalyzer queries.fvecs --ids ids.npy") == "updated 20 vectors; a.catalyzer holds 300\n"
    index = CatalyzerIndex.load("a.catalyzer")
    np.testing.assert_array_equal(index.codes[:20], new.codes[300:])
    assert run("remove a.catalyzer 0 2 2") == "removed 2 vectors; a.catalyzer holds 298\n"
    np.save("ids.npy", np.arange(100, 300))
    assert run("remove a.catalyzer ids.npy") == "removed 200 vectors; a.catalyzer holds 98\n"
    before = files(Path())
    for line, sentence in (
        ("remove a.catalyzer 0", "1 of the ids are not in the index, the first of them 0"),
        ("remove a.catalyzer 3 five", "expected ids, which are whole numbers, or one file of ids; got 3 five"),
        ("remove a.catalyzer no.npy", "no.npy: no such file"),
        ("update a.catalyzer queries.fvecs --ids ids.npy", "expected an id for each of 20 vectors, got 200"),
        ("merge a.catalyzer b.catalyzer", "98 of the ids are in the index already"),
        ("merge a.catalyzer learn.fvecs", "learn.fvecs is not an index"),
    ):
        assert sentence in run(line, expect=2), line
    assert files(Path()) == before
    np.save("ids.npy", np.setdiff1d(index.ids, [0, 2, *range(100, 300)]))
    run("remove b.catalyzer ids.npy")
    assert run("merge a.catalyzer b.catalyzer") == "added 202 vectors; a.catalyzer holds 300\n"
    assert run("verify a.catalyzer") == "a.catalyzer is intact: 300 vectors\n"


def test_help_comes_at_once_with_examples(run: Run) -> None:
    assert "catalyzer search photos.catalyzer queries.fvecs -k 10" in run("--help")
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    code += "from catalyzer.commands.cli import main; main(['--help'])"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr.split()
    assert not {"torch", "numpy", "hydra"} & {*modules}


def test_help_lists_every_command_in_a_group_and_the_examples_of_each_are_valid(run: Run) -> None:
    listed = re.findall(r"^  ([a-z]+) +\w", run("--help").partition("options:")[0], re.MULTILINE)
    assert listed == ["fit", "pretrained", "add", "update", "remove", "merge", "search", "evaluate", "info", "verify", "export"]
    for name in listed:
        page = run(f"{name} --help")
        assert "INDEX" in page
        examples = [shlex.split(line, comments=True) for line in page.partition("\nexamples:\n")[2].splitlines()]
        assert examples
        for program, *arguments in examples:
            assert (program, arguments[0]) == ("catalyzer", name)
            given, others = _parser().parse_known_args(arguments)
            assert given.index.suffix == ".catalyzer" or name == "export"
            assert all("=" in text for text in others)


def test_what_is_missing_is_named(run: Run) -> None:
    sentence = "error: the following arguments are required: INDEX, LEARN; catalyzer fit --help shows what can be given\n"
    assert run("fit", expect=2) == sentence


@pytest.mark.parametrize(
    ("line", "follow"),
    [
        ("catalyzer ver", {"verify"}),
        ("catalyzer fit a.catalyzer learn.fvecs --metric ", {"l2", "cosine", "ip"}),
        ("catalyzer info a.catalyzer --j", {"--json"}),
    ],
)
def test_a_shell_completes_the_command(line: str, follow: set[str], tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}  # as argcomplete's shell code
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    command = [sys.executable, "-m", "catalyzer"]
    process = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert {*answer.read_text().split()} == follow


def test_who_has_read_enough_may_close_the_pipe(folder: Path, run: Run) -> None:
    run("add a.catalyzer base.fvecs")
    write_vecs(Path("many.fvecs"), [np.resize(BASE, (20_000, 32))])
    code = code_of("search a.catalyzer many.fvecs --rerank 0")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_the_installed_command_is_this_one() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"catalyzer": f"{catalyzer.__main__.main.__module__}:main"}


def test_output_never_replaces_what_is_read(run: Run) -> None:
    run("add a.catalyzer base.fvecs")
    before = Path("queries.fvecs").read_bytes()
    assert "would replace queries.fvecs, an input of this command" in run(
        "search a.catalyzer queries.fvecs --output queries", expect=2
    )
    assert Path("queries.fvecs").read_bytes() == before
    index = CatalyzerIndex.load("a.catalyzer")
    index.remove(index.ids)
    index.add(BASE[:2], ids=np.array([-(2**63), 5]))
    index.save("b.catalyzer")
    assert "above 2,147,483,647" in run("search b.catalyzer queries.fvecs -k 2 --output found", expect=2)


def test_a_folder_of_the_users_is_not_that_of_a_training(run: Run) -> None:
    mine = Path("n.catalyzer.training/mine.txt")
    mine.parent.mkdir()
    mine.write_text("precious")
    for learn in ("missing.fvecs", "learn.fvecs"):
        line = f"fit n.catalyzer {learn} --hidden 16 --d-out 24 --epochs 1"
        assert "n.catalyzer.training is needed for the training but contains other files" in run(line, expect=2)
    assert mine.read_text() == "precious"


INTERRUPTED_SAVE = """
import os, signal
import catalyzer.index.file as file
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
write = file.write
def interrupted(*args):
    digest = {}
    os.kill(os.getpid(), signal.SIGINT)
    return digest
file.write = interrupted
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals and folders as POSIX has them")
def test_ctrl_c_after_the_save_says_that_it_has_been_written(run: Run, tmp_path: Path) -> None:
    for written, said in ((True, "a.catalyzer has already been written"), (False, "a.catalyzer is unchanged; run")):
        before = INTERRUPTED_SAVE.format("write(*args)" if written else "''")
        done = process("add a.catalyzer base.fvecs", tmp_path, before)
        assert done.returncode == 130, done.stderr
        assert said in done.stderr
    assert "300 vectors" in run("verify a.catalyzer")


def test_searching_some_ids(run: Run) -> None:
    run("add a.catalyzer base.fvecs")
    np.save("allowed.npy", np.arange(0, 300, 7))
    np.save("not.npy", np.arange(0, 150))
    run("search a.catalyzer queries.fvecs --ids allowed.npy --exclude not.npy --threads 1 -k 3 --output found")
    ids = open_vectors("found.ivecs")[:]
    assert (ids % 7 == 0).all()
    assert ids.min() >= 150
    assert "allowed.txt: expected a file ending in" in run("search a.catalyzer queries.fvecs --ids allowed.txt", expect=2)
