"""Every format: read lazily, the same rows from each; every kind of damage refused by a sentence that names the file."""

import gzip
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file as save_safetensors
from safetensors.torch import save_file as save_torch

from catalyzer import CatalyzerIndex, Codec, InvalidInput
from catalyzer.errors import Unavailable
from catalyzer.files.formats import EXTENSIONS, files_of, open_rows
from catalyzer.files.vectors import VectorFile
from catalyzer.index.ids import as_ids
from catalyzer.nn import Identity
from catalyzer.quantizers import LatticeQuantizer
from tests.helpers import DTYPES, write


@pytest.mark.parametrize("name", [f"x{extension}" for extension in EXTENSIONS])
def test_every_format_makes_the_same_index(tmp_path: Path, name: str) -> None:
    """Whole numbers below 128, which all types hold: the index file is the same byte for byte."""
    x = np.random.default_rng(0).integers(0, 128, (300, 24))
    codec = Codec(Identity(d_in=24), LatticeQuantizer(dim=24))
    plain, other = CatalyzerIndex.from_codec(codec), CatalyzerIndex.from_codec(codec)
    plain.add(x)
    other.add(write(tmp_path / name, x))
    plain.save(tmp_path / "plain.catalyzer")
    other.save(tmp_path / "other.catalyzer")
    assert (tmp_path / "plain.catalyzer").read_bytes() == (tmp_path / "other.catalyzer").read_bytes()


@given(n=st.integers(1, 60), dim=st.integers(1, 9), data=st.data())
def test_slices_in_any_order_are_those_of_the_array(
    tmp_path_factory: pytest.TempPathFactory, n: int, dim: int, data: st.DataObject
) -> None:
    extension = data.draw(st.sampled_from(EXTENSIONS))
    x = np.random.default_rng(n * dim).integers(0, 100, (n, dim)).astype(DTYPES[extension])
    file = VectorFile(write(tmp_path_factory.mktemp("v") / f"x{extension}", x))
    assert file.shape == x.shape
    for start, stop in data.draw(st.lists(st.tuples(st.integers(0, n + 3), st.integers(0, n + 3)), min_size=1, max_size=5)):
        block = file[start:stop]
        assert block.dtype == DTYPES[extension]
        assert block.flags.c_contiguous
        np.testing.assert_array_equal(block, x[start:stop])


@pytest.mark.parametrize("extension", [".npy", ".fvecs", ".parquet", ".bvecs.gz"])
def test_a_folder_is_its_parts_in_natural_order(tmp_path: Path, extension: str) -> None:
    x = np.arange(120).reshape(40, 3)
    (tmp_path / "parts").mkdir()
    bounds = [0, 7, 8, 20, 23, 24, 25, 26, 30, 31, 38, 40]
    for number, (first, last) in enumerate(pairwise(bounds)):
        write(tmp_path / "parts" / f"part-{number}{extension}", x[first:last])
    (tmp_path / "parts" / "_SUCCESS").touch()
    file = VectorFile(tmp_path / "parts")
    assert len(files_of(tmp_path / "parts")) == 11
    for start, stop in ((0, 40), (5, 9), (38, 40), (0, 1), (22, 31)):
        np.testing.assert_array_equal(file[start:stop], x[start:stop])


def test_hundreds_of_parts_need_no_file_each(tmp_path: Path) -> None:
    for number in range(300):
        np.save(tmp_path / f"{number}.npy", np.full((2, 4), number, np.float32))
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "from catalyzer import open_vectors\n"
        f"print(open_vectors({str(tmp_path)!r})[:].sum())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) == 8 * sum(range(300))


def test_one_array_of_several_is_named(tmp_path: Path) -> None:
    x, ids = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([7, 5, 3, 1])
    others = {"texts": np.array(["a", None], object), "columns": np.asfortranarray(x), "scalar": np.float32(1)}
    np.savez(tmp_path / "x.npz", vectors=x, other=x + 1, ids=ids, **others)
    np.savez_compressed(tmp_path / "packed.npz", vectors=x, other=x + 1, ids=ids)
    save_safetensors({"vectors": x, "other": x + 1, "ids": ids}, tmp_path / "x.safetensors")
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["deep/vectors"], file["other"], file["ids"] = x, x + 1, ids
    table = pa.table({"vectors": pa.FixedSizeListArray.from_arrays(x.ravel(), 3), "other": list(x + 1), "ids": ids})
    pa.parquet.write_table(table, tmp_path / "x.parquet")
    pa.feather.write_feather(table, tmp_path / "x.feather")
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=3)
    for name in ("x.npz", "packed.npz", "x.safetensors", "x.hdf5", "x.parquet", "x.feather", "x.arrow"):
        inner = "deep/vectors" if name == "x.hdf5" else "vectors"
        np.testing.assert_array_equal(VectorFile(tmp_path / f"{name}:{inner}")[1:], x[1:])
        np.testing.assert_array_equal(open_rows(tmp_path / f"{name}:ids").read(0, 4), ids)
        with pytest.raises(InvalidInput, match=r"name one of its .* after a colon"):
            VectorFile(tmp_path / name)
        with pytest.raises(InvalidInput, match=r"there is no 'vector'; did you mean .*vectors?"):
            VectorFile(tmp_path / f"{name}:vector")
        with pytest.raises(InvalidInput, match="expected an array of shape"):
            VectorFile(tmp_path / f"{name}:ids")
        index = CatalyzerIndex.from_codec(Codec(Identity(d_in=3), LatticeQuantizer(dim=3, radius_sq=14, bits=8)))
        index.add(f"{tmp_path / name}:{inner}", ids=f"{tmp_path / name}:ids")
        assert index.ids.tolist() == ids.tolist()


def test_types_that_numpy_does_not_know(tmp_path: Path) -> None:
    x = torch.tensor([[1.5, -2.0], [0.25, 3.0]], dtype=torch.bfloat16)
    save_torch({"x": x}, tmp_path / "x.safetensors")
    file = VectorFile(tmp_path / "x.safetensors")
    assert file.dtype == np.float32
    np.testing.assert_array_equal(file[:], x.float().numpy())


def test_headers_of_two_int64(tmp_path: Path) -> None:
    x = np.arange(10, dtype=np.float16).reshape(5, 2)
    (tmp_path / "x.hbin").write_bytes(np.array([5, 2], "<u8").tobytes() + x.tobytes())
    np.testing.assert_array_equal(VectorFile(tmp_path / "x.hbin")[:], x)


def test_a_file_whose_name_has_a_colon(tmp_path: Path) -> None:
    np.save(tmp_path / "odd:name.npy", np.eye(2))
    assert VectorFile(tmp_path / "odd:name.npy").shape == (2, 2)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damage_is_a_sentence(tmp_path: Path, extension: str, damage: str) -> None:
    x = np.random.default_rng(0).integers(0, 100, (400, 6))
    path = write(tmp_path / f"x{extension}", x)
    whole = path.read_bytes()
    bad = {"truncated": whole[: len(whole) * 2 // 3], "garbage": b"\xff" * len(whole), "empty": b""}[damage]
    path.write_bytes(bad)
    with pytest.raises(InvalidInput) as caught:
        _ = VectorFile(path)[:]
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("extension", EXTENSIONS)
@settings(derandomize=True)  # what libraries make of damaged files is not to be found out by chance
@given(data=st.data())
def test_any_flipped_bytes_end_in_numbers_or_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, extension: str, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("v") / f"x{extension}", np.random.default_rng(0).integers(0, 100, (20, 6)))
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with suppress(InvalidInput):
        _ = VectorFile(path)[:]


def test_rows_that_do_not_agree(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"x": [[1.0, 2.0], [3.0], [4.0, 5.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(InvalidInput, match=r"ragged.parquet: row 1 has dimension 1, the first row has 2"):
        _ = VectorFile(tmp_path / "ragged.parquet")[:]
    for name, rows in (("null", [[1.0, 2.0], None]), ("inner", [[1.0, 2.0], [3.0, None]]), ("first", [None, [1.0, 2.0]])):
        pa.parquet.write_table(pa.table({"x": rows}), tmp_path / f"{name}.parquet")
        with pytest.raises(InvalidInput, match=rf"{name}.parquet: .*(row {int(name != 'first')} has no value|got \(2, 0\))"):
            _ = VectorFile(tmp_path / f"{name}.parquet")[:]
    (tmp_path / "mixed").mkdir()
    np.save(tmp_path / "mixed" / "a.npy", np.ones((2, 3)))
    np.save(tmp_path / "mixed" / "b.npy", np.ones((2, 4)))
    with pytest.raises(
        InvalidInput, match=r"b.npy: expected rows like those of the files before it, .*; got float64 of shape \(4,\)"
    ):
        VectorFile(tmp_path / "mixed")
    write(tmp_path / "mixed" / "b.fvecs", np.ones((2, 3)))
    with pytest.raises(InvalidInput, match=r"of one format; got .fvecs, .npy"):
        VectorFile(tmp_path / "mixed")
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidInput, match=r"none has none"):
        VectorFile(tmp_path / "none")


def test_no_objects_are_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidInput, match=r"x.npz"):
        VectorFile(tmp_path / "x.npz")


def test_gzip_of_several_members(tmp_path: Path) -> None:
    """As `cat a.gz b.gz` and parallel compressors write it."""
    x = np.arange(12).reshape(4, 3)
    plain = write(tmp_path / "x.fvecs", x).read_bytes()
    (tmp_path / "y.fvecs.gz").write_bytes(gzip.compress(plain[:20]) + gzip.compress(plain[20:]))
    np.testing.assert_array_equal(VectorFile(tmp_path / "y.fvecs.gz")[:], x)


@pytest.mark.parametrize(("module", "name", "extra"), [("h5py", "x.hdf5", "hdf5"), ("pyarrow", "x.parquet", "parquet")])
def test_a_library_that_is_missing_is_named(tmp_path: Path, module: str, name: str, extra: str) -> None:
    path = write(tmp_path / name, np.ones((3, 2)))
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from catalyzer import open_vectors, errors\n"
        f"try: open_vectors({str(path)!r})\n"
        "except errors.MissingPackage as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f'{name} needs {module}, which is not installed: pip install "catalyzer[{extra}]"' in ran.stdout


def test_memory_is_that_of_a_block(tmp_path: Path) -> None:
    """200 MB in each of three formats."""
    code = (
        "import resource, sys, numpy as np\n"
        "from catalyzer import open_vectors\n"
        "file = open_vectors(sys.argv[1]); n = len(file)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "total = sum(float(file[i : i + 8192].sum()) for i in range(0, n, 8192))\n"
        "print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    x = np.ones((400_000, 128), np.float32)
    paths = [tmp_path / "x.hdf5", tmp_path / "x.npz", tmp_path / "x.parquet"]
    with h5py.File(paths[0], "w") as file:
        file["x"] = x
    np.savez(paths[1], x=x)
    column = pa.FixedSizeListArray.from_arrays(x.ravel(), 128)
    pa.parquet.write_table(pa.table({"x": column}), paths[2], row_group_size=50_000)
    for path in paths:
        ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        total, grown = ran.stdout.split()
        assert float(total) == x.size
        assert int(grown) < 120_000, path  # KiB


def table(path: Path, columns: dict[str, pa.Array]) -> Path:
    """Of Arrow columns, as Parquet, or as an Arrow file or stream."""
    made = pa.table(columns)
    if path.suffix == ".parquet":
        pa.parquet.write_table(made, path)
    else:
        with (pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream)(path, made.schema) as out:
            out.write_table(made)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather"])
def test_columns_of_other_kinds(tmp_path: Path, name: str) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    lists = pa.FixedSizeListArray.from_arrays(x.ravel(), 3)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(x)
    words = pa.array([5, 6]).dictionary_encode()
    path = table(
        tmp_path / name, {"v": lists, "word": words, "text": pa.array(["a", "b"]), "struct": pa.array([{"v": 1}, {"v": 2}])}
    )
    np.testing.assert_array_equal(VectorFile(path)[:], x)
    np.testing.assert_array_equal(VectorFile(table(tmp_path / f"1{name}", {"v": tensors}))[:], x)
    np.testing.assert_array_equal(
        VectorFile(table(tmp_path / f"2{name}", {"v": lists.cast(pa.large_list(pa.float32()))}))[:], x
    )
    with pytest.raises(InvalidInput, match="column 'text' holds string; expected numbers"):
        VectorFile(f"{path}:text")
    nested = table(tmp_path / f"3{name}", {"a": pa.array([{"b": 1.5}, {"b": 2.5}]), "a.b": lists, "c:d": lists})
    np.testing.assert_array_equal(VectorFile(f"{nested}:a.b")[:], x)
    np.testing.assert_array_equal(VectorFile(f"{nested}:c:d")[:], x)
    with pytest.raises(InvalidInput, match="row 0 has no value"):
        VectorFile(table(tmp_path / f"4{name}", {"v": pa.array([None, [1.0, 2.0]])}))
    twice = pa.table([lists, lists], names=["v", "v"])
    pa.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InvalidInput, match="there is no 'v'"):
        VectorFile(tmp_path / "twice.parquet:v")


@pytest.mark.parametrize("name", ["t.arrow", "t.feather"])
def test_offsets_behind_the_values(tmp_path: Path, name: str) -> None:
    """Arrow itself would end the process."""
    path = table(tmp_path / name, {"v": pa.array([[0.0, 1, 2], [3.0, 4, 5]], pa.list_(pa.float32()))})
    content = path.read_bytes()
    at = content.index(np.array([0, 3, 6], "<i4").tobytes())
    path.write_bytes(content[:at] + np.array([1000, 1003, 1006], "<i4").tobytes() + content[at + 12 :])
    code = f"""
from catalyzer import open_vectors, InvalidInput
try: open_vectors({str(path)!r})[:]
except InvalidInput as error: print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "it is damaged" in ran.stdout


def test_names_in_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["deep/x"], file["a:b"] = np.eye(3), np.ones((2, 3))
        file["soft"], file["hard"], file["far"] = h5py.SoftLink("/deep/x"), file["deep/x"], h5py.ExternalLink("y.h5", "/x")
    for name in ("deep/x", "/deep/x", "soft", "hard"):
        np.testing.assert_array_equal(VectorFile(f"{tmp_path}/x.h5:{name}")[:], np.eye(3))
    assert VectorFile(f"{tmp_path}/x.h5:a:b").shape == (2, 3)
    with pytest.raises(InvalidInput, match="there is no 'far'"):
        VectorFile(f"{tmp_path}/x.h5:far")


@pytest.mark.parametrize("extension", [".npy.gz", ".npz", ".parquet", ".arrow", ".hdf5", ".safetensors", ".fvecs"])
def test_reading_imports_nothing(tmp_path: Path, extension: str) -> None:
    """A fork while another thread imports a module leaves a lock in the child that nobody opens."""
    write(tmp_path / f"x{extension}", np.arange(60).reshape(20, 3))
    code = f"import sys; from catalyzer import open_vectors; file = open_vectors('x{extension}'); before = set(sys.modules)\n"
    code += "file[5:]; file[:3]; print(set(sys.modules) - before)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


@pytest.mark.parametrize("extension", [".npy.gz", ".npz", ".parquet", ".arrow", ".hdf5", ".fvecs"])
def test_children_of_a_fork_read_what_they_ask_for(tmp_path: Path, extension: str) -> None:
    """They share the parent's place in the file, and a lock that one of its threads may hold."""
    write(tmp_path / f"x{extension}", np.arange(60_000).reshape(20_000, 3) % 1000)
    code = f"""
import os, threading, numpy as np
from catalyzer import open_vectors
file, x = open_vectors("x{extension}"), np.arange(60_000).reshape(20_000, 3) % 1000
stop = threading.Event()
def read():
    while not stop.is_set():
        file[15_000:15_100]
thread = threading.Thread(target=read)
thread.start()
children = []
for seed in range(4):
    child = os.fork()
    if not child:
        random = np.random.default_rng(seed)
        starts = random.integers(0, 19_000, 15)
        os._exit(0 if all(np.array_equal(file[a : a + 500], x[a : a + 500]) for a in starts) else 1)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
stop.set()
thread.join()
print(codes, np.array_equal(file[:], x))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout == "[0, 0, 0, 0] True\n", ran.stderr


@pytest.mark.parametrize("extension", [".parquet", ".arrow", ".hdf5", ".safetensors", ".npy.gz", ".npz"])
def test_a_file_that_is_shortened_while_it_is_read(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"x{extension}", np.random.default_rng(0).integers(0, 100, (20_000, 6)))
    code = f"""
import os
from catalyzer import open_vectors, InvalidInput
file = open_vectors({str(path)!r})
os.truncate({str(path)!r}, {path.stat().st_size // 3})
try: file[19_000:19_010]
except InvalidInput as error: print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, (ran.returncode, ran.stderr)
    assert "while it was read" in ran.stdout


@pytest.mark.parametrize("extension", [".npy.gz", ".npz", ".parquet", ".arrow"])
def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"x{extension}", np.random.default_rng(0).integers(0, 100, (20_000, 6)))
    file = VectorFile(path)
    _ = file[19_000:]
    write(tmp_path / f"y{extension}", np.random.default_rng(1).integers(0, 100, (20_000, 6))).replace(path)
    with pytest.raises(InvalidInput, match="was removed or replaced while it was read; open it again"):
        _ = file[:10]


def test_what_is_no_array_of_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "scalar.npy", np.float32(3))
    np.savez(tmp_path / "none.npz", x=np.empty((3, 0)))
    with gzip.open(tmp_path / "struct.npy.gz", "wb") as file:
        np.save(file, np.zeros(4, [("dim", "i4"), ("x", "f4", (3,))]))
    for name in ("scalar.npy", "none.npz", "struct.npy.gz", "x" * 300 + ".npy"):
        for work in (VectorFile, as_ids):
            with pytest.raises((InvalidInput, Unavailable)):
                work(tmp_path / name)


def test_parts_that_would_be_left_out(tmp_path: Path) -> None:
    for name in ("1.npy", "²3.npy", "10.npy"):
        np.save(tmp_path / name, np.ones((2, 3)))
    assert VectorFile(tmp_path).shape == (6, 3)
    (tmp_path / "2.npy").symlink_to(tmp_path / "nowhere.npy")
    with pytest.raises(InvalidInput, match=r"2.npy: no such file"):
        VectorFile(tmp_path)
    (tmp_path / "2.npy").unlink()
    (tmp_path / "year=1").mkdir()
    assert VectorFile(tmp_path).shape == (6, 3)
    np.save(tmp_path / "year=1" / "a.npy", np.ones((2, 3)))
    with pytest.raises(InvalidInput, match="has vector files in its subfolder year=1"):
        VectorFile(tmp_path)
