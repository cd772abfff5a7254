"""photosift, made by the command as a user makes it: by the recipe, whole or not at all, and read back."""

import json
import logging
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from catalyzer import open_vectors
from catalyzer.datasets import Photosift, make_photosift
from catalyzer.errors import InvalidInput, Unavailable
from catalyzer.files.array_cache import ArrayCache
from catalyzer.files.atomic import locked
from tests.helpers import Command, brute_force, command, prepared

SEED = 7
SIZES = {"queries_size": 600, "base_size": 1500, "learn_size": 1000, "seed": SEED, "skip_unreadable": False}
OVERRIDES = ["queries_size=600", "dataset.base_size=1500", "learn_size=1000", f"seed={SEED}"]
FILES = ("bigann_query.bvecs", "bigann_base.bvecs", "bigann_learn.bvecs", "gnd/idx_1500.ivecs")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blurred noise in several formats: large, small, in colour, with nothing in it; and what is no photograph."""
    folder = tmp_path_factory.mktemp("photographs")
    shapes = [(240, 180, 3)] * 8 + [(150, 900), (90, 70), (60, 60), (160, 200)]
    for i, shape in enumerate(shapes):
        noise = np.random.default_rng(i).integers(0, 256, shape).astype(np.uint8)
        photograph = cv2.normalize(cv2.GaussianBlur(noise, None, 1.5), None, 0, 255, cv2.NORM_MINMAX)
        if i == 10:
            photograph[:] = 128
        cv2.imwrite(str(folder / f"{'zyx'[i % 3]}{i}{('.jpg', '.PNG', '.bmp', '.webp', '.tif')[i % 5]}"), photograph)
    (folder / "README.md").write_text("no photograph")
    (folder / "._z0.jpg").write_text("what macOS leaves on foreign disks")
    return folder


def by_the_recipe(images: Path) -> dict[str, np.ndarray]:
    """The three parts, extracted all at once in memory."""
    random = np.random.default_rng(SEED)
    names = sorted(path.name for path in images.iterdir() if path.name not in ("README.md", "._z0.jpg"))
    descriptors = []
    for name in random.permutation(names):
        grey = cv2.imread(str(images / name), cv2.IMREAD_GRAYSCALE)
        if grey.shape == (150, 900):
            grey = cv2.resize(grey, (640, 107), interpolation=cv2.INTER_AREA)
        found = cv2.SIFT_create(contrastThreshold=0.01).detectAndCompute(grey, None)[1]
        descriptors.append(np.empty((0, 128)) if found is None else found)
    parts: list[np.ndarray] = []
    for part, size in enumerate((600, 1500, 10**9)):
        taken = [np.empty((0, 128))]
        while descriptors and sum(map(len, taken)) < size:
            x = descriptors.pop(0)
            taken.append(random.choice(x, 250, replace=False) if part == 0 and len(x) > 250 else x)
        parts.append(np.concatenate(taken))
    shuffled = [random.permutation(part).astype(np.uint8) for part in parts]
    return {"query": shuffled[0][:600], "base": shuffled[1][:1500], "learn": shuffled[2][:1000]}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(images: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one start of the command makes, where dataset=photosift reads it."""
    folder = tmp_path_factory.mktemp("made")
    process = command("prepare.py", environment, folder)("dataset=photosift", f"images={images}", *OVERRIDES)
    assert process.stdout == ""
    return folder / "data" / "photosift"


def test_it_is_made_by_the_recipe_and_read_back(images: Path, made: Path, tmp_path: Path) -> None:
    assert set(contents(made)) == {*FILES, "photosift.json"}
    parts = by_the_recipe(images)
    for name, expected in parts.items():
        np.testing.assert_array_equal(open_vectors(made / f"bigann_{name}.bvecs")[:], expected)

    cache = ArrayCache(tmp_path / "cache")
    splits = {"train_size": 700, "validation_base_size": 200, "validation_queries_size": 50}
    benchmark = Photosift(str(made), 1500, **splits).load(cache)
    assert benchmark.name == "photosift"
    np.testing.assert_array_equal(benchmark.train, parts["learn"][:700])
    ids = benchmark.test.ground_truth
    assert not cache.folder.exists()  # the ground truth is the one that was made
    distances = brute_force(parts["query"], parts["base"], 100)[0]
    differences = parts["base"][ids].astype(int) - parts["query"][:, None].astype(int)
    np.testing.assert_array_equal((differences**2).sum(axis=2), distances)


def test_a_finished_folder_is_left_alone(prepare: Command, images: Path, made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    again = prepare("dataset=photosift", f"images={images}", *OVERRIDES, f"dataset.root={made}", typed=True)
    assert "is already complete" in again.stderr
    with pytest.raises(InvalidInput, match="contains photosift with other queries_size, seed; choose another folder"):
        make_photosift(images, made, **{**SIZES, "queries_size": 599, "seed": 8})
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}


def test_killed_in_the_midst_it_goes_on_to_the_same_end(
    prepare: Command, images: Path, made: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["dataset=photosift", f"images={images}", *OVERRIDES, "dataset.root=killed"]
    unfinished = tmp_path / "killed" / "unfinished"
    # The system kills it where the file of all descriptors would pass a size that it has after some of the photographs.
    limit = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))"
    )
    assert prepared(limit, "prepare.py", arguments, environment, tmp_path).returncode == -signal.SIGXFSZ
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"unfinished", "unfinished.lock"}
    for file in ("journal", "descriptors.u8"):  # in the worst case, in the middle of a line and of a descriptor
        with (unfinished / file).open("ab") as torn:
            torn.write(b'["z')
    assert "resuming after" in prepare(*arguments).stderr
    assert contents(tmp_path / "killed") == contents(made)


def test_two_at_once_are_one_too_many(images: Path, tmp_path: Path) -> None:
    refused = pytest.raises(Unavailable, match="unfinished is being written by another process")
    with locked(tmp_path / "unfinished"), ThreadPoolExecutor() as others, refused:
        others.submit(make_photosift, images, tmp_path, **SIZES).result()
    assert not [*tmp_path.iterdir()]


def test_too_few_photographs(
    prepare: Command, images: Path, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    too_many = "dataset.base_size=1_000_000"
    error = prepare("dataset=photosift", f"images={images}", *OVERRIDES, too_many, expect=2).stderr.splitlines()[-1]
    root = tmp_path / "data" / "photosift"
    total = (root / "unfinished" / "descriptors.u8").stat().st_size // 128
    assert error.startswith(
        f"error: the 12 photographs in {images} have {total:,} descriptors, enough for 600 of 600 queries, "
    )
    assert " of 1,000,000 base vectors, 0 of 1,000 learn vectors; add photographs, or lower " in error
    with caplog.at_level(logging.INFO, logger="catalyzer"):
        make_photosift(images, root, **SIZES)
    assert "resuming after 12 of 12 photographs" in caplog.text
    assert contents(root) == contents(made)


def test_a_photograph_that_cannot_be_read(images: Path, tmp_path: Path) -> None:
    copy, root = shutil.copytree(images, tmp_path / "images"), tmp_path / "photosift"
    broken = next(copy.glob("*.PNG"))
    broken.write_bytes(broken.read_bytes()[:500])
    sizes = {"queries_size": 300, "base_size": 400, "learn_size": 300, "seed": SEED}
    with pytest.raises(InvalidInput, match=r"cannot read 1 of the 12 photographs, the first is .*PNG; .* skip_unreadable=true"):
        make_photosift(copy, root, **sizes, skip_unreadable=False)
    make_photosift(copy, root, **sizes, skip_unreadable=True)
    assert json.loads((root / "photosift.json").read_text())["left_out"] == [broken.name]
    assert len(open_vectors(root / "bigann_base.bvecs")) == 400


@pytest.mark.parametrize("same_size", [False, True])  # if so, nothing but another try tells that it was mended
def test_a_mended_photograph_is_extracted_again(same_size: bool, images: Path, made: Path, tmp_path: Path) -> None:
    copy, root = shutil.copytree(images, tmp_path / "images"), tmp_path / "photosift"
    broken = next(copy.glob("*.webp"))
    whole = broken.read_bytes()
    broken.write_bytes(bytes(len(whole)) if same_size else whole[:500])
    with pytest.raises(InvalidInput, match="cannot read 1"):
        make_photosift(copy, root, **SIZES)
    broken.write_bytes(whole)
    make_photosift(copy, root, **SIZES)
    assert contents(root) == contents(made)


def test_an_unfinished_folder_is_not_read(images: Path, made: Path, tmp_path: Path) -> None:
    root = shutil.copytree(made, tmp_path / "photosift")
    (root / "photosift.json").unlink()
    (root / "unfinished").mkdir()
    with pytest.raises(InvalidInput, match="is incomplete; repeat the command that makes it to resume"):
        Photosift(str(root), 1500).load(ArrayCache(tmp_path))


def test_what_is_no_folder_of_photographs(prepare: Command, tmp_path: Path) -> None:
    error = prepare("dataset=photosift", expect=2).stderr
    assert error == "error: images is missing; give it on the command line: images=...\n"
    with pytest.raises(InvalidInput, match="nowhere is not a folder"):
        make_photosift(tmp_path / "nowhere", tmp_path / "photosift", **SIZES)
    with pytest.raises(InvalidInput, match=r"has no photographs; expected files that end in \.avif"):
        make_photosift(tmp_path, tmp_path / "photosift", **SIZES)
    assert not any(tmp_path.iterdir())


def test_files_made_elsewhere_are_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "bigann_base.bvecs").write_bytes(b"a download")
    with pytest.raises(InvalidInput, match=r"contains bigann_base\.bvecs, which no earlier call has made"):
        make_photosift(images, tmp_path, **SIZES)
    assert contents(tmp_path) == {"bigann_base.bvecs": b"a download"}
