"""Every format, read back lazily; every kind of broken file refused with its name and numbers."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from catalyzer import InvalidInput
from catalyzer.files.vectors import VectorFile, check_finite, fingerprint, float_blocks
from tests.helpers import DTYPES, write


@pytest.fixture(params=[".fvecs", ".bvecs", ".ivecs", ".fbin", ".u8bin", ".i8bin", ".npy"])
def extension(request: pytest.FixtureRequest) -> str:
    return request.param


def test_blocks_are_float32_and_contiguous(tmp_path: Path, extension: str) -> None:
    x = np.arange(12).reshape(4, 3).astype(DTYPES[extension])
    for block in float_blocks(VectorFile(write(tmp_path / f"x{extension}", x)), "reading", size=3):
        assert block.dtype == np.float32
        assert block.flags.c_contiguous


def test_limit_takes_the_first_rows(tmp_path: Path, extension: str) -> None:
    x = np.arange(12).reshape(4, 3).astype(DTYPES[extension])
    file = VectorFile(write(tmp_path / f"x{extension}", x), limit=2)
    assert file.shape == (2, 3)
    np.testing.assert_array_equal(file[0:9], x[:2])


def test_opening_a_large_file_reads_almost_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "large.u8bin"  # sparse: 8 GB that occupy nothing
    with path.open("wb") as file:
        file.write(np.array([1 << 26, 128], "<i4").tobytes())
        file.truncate(8 + (1 << 33))
    code = (
        "import re; from pathlib import Path; from catalyzer.files.vectors import VectorFile; "
        f"f = VectorFile({str(path)!r}); assert f[60_000_000:60_000_002].shape == (2, 128); "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak < 200_000  # KiB, most of it NumPy itself


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _ = VectorFile(path)[:]
    for word in (path.name, *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.fvecs", "no such file")


def test_wrong_extension(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    refused(tmp_path / "x.csv", ".fvecs", ".npy")


def test_empty_file(tmp_path: Path, extension: str) -> None:
    (tmp_path / f"x{extension}").touch()
    refused(tmp_path / f"x{extension}", "empty")


def test_truncated_file(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"x{extension}", np.ones((5, 8), DTYPES[extension]))
    path.write_bytes(path.read_bytes()[:-3])
    refused(path)


@pytest.mark.parametrize("suffix", [".fbin", ".u8bin", ".i8bin"])
def test_header_that_disagrees_with_the_size(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", np.ones((5, 8), DTYPES[suffix]))
    path.write_bytes(np.array([7, 8], "<i4").tobytes() + path.read_bytes()[8:])
    refused(path, "7 rows of dimension 8")


def test_rows_of_different_dimension(tmp_path: Path) -> None:
    rows = [np.int32(3).tobytes() + bytes(3)] * 4 + [np.int32(10).tobytes() + bytes(3)]
    (tmp_path / "x.bvecs").write_bytes(b"".join(rows))
    refused(tmp_path / "x.bvecs", "row 4 has dimension 10", "3")


def test_a_first_dimension_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "x.fvecs").write_bytes(b"\xff" * 40)
    refused(tmp_path / "x.fvecs", "dimension is -1")


@pytest.mark.parametrize("suffix", [".fvecs", ".fbin", ".npy"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(tmp_path: Path, suffix: str, value: float) -> None:
    x = np.ones((5, 8), np.float32)
    x[3, 2] = value
    refused(write(tmp_path / f"x{suffix}", x), "row 3 ", "NaN or infinity")


def test_numbers_whose_squares_float32_cannot_hold() -> None:
    x = np.full((4, 4), 1e17)
    check_finite(x, "x")
    x[2, 1] = -3e38
    with pytest.raises(InvalidInput, match=r"x: row 2 contains numbers up to 3e\+38, too large for float32 squares"):
        check_finite(x, "x")


def test_npy_that_is_no_matrix(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(5))
    refused(tmp_path / "x.npy", "(5,)")


def test_npy_that_would_have_to_be_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(tmp_path / "x.npy")


def test_fingerprint_depends_on_content_type_and_shape(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    same = VectorFile(write(tmp_path / "x.fbin", x))
    assert fingerprint(x) == fingerprint(same)
    others = [x + 1, x.reshape(3, 4), x.astype(np.float64), x[:2]]
    assert len({fingerprint(x), *map(fingerprint, others)}) == 5


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64])
def test_integers_are_finite(dtype: type) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_finite(np.array([[np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype), "x")
