"""The package as a whole: what importing it costs, what it offers, and what is published of it."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import catalyzer
from catalyzer.files.vectors import write_vecs
from tests.helpers import ROOT, clustered


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"torch", "numba", "faiss", "pytorch_lightning", "wandb", "matplotlib", "hydra", "rich"}
    assert not imported_by("import catalyzer") & heavy


def test_using_the_lattice_and_the_losses_imports_no_trainer() -> None:
    modules = imported_by("from catalyzer import SphericalLattice, KoLeoLoss, Catalyzer")
    assert not modules & {"pytorch_lightning", "wandb", "matplotlib", "hydra", "numba"}


def test_using_a_finished_run_imports_no_trainer() -> None:
    modules = imported_by("from catalyzer import CatalyzerIndex, TrainedRun; import catalyzer.shards, catalyzer.runs.settings")
    assert not modules & {"pytorch_lightning", "wandb", "hydra"}


def test_searching_a_loaded_index_imports_no_trainer() -> None:
    path = Path(__file__).parent / "index-format-1.catalyzer"
    search = "index.search(numpy.ones((2, 10)), k=2); index.search(numpy.ones((2, 10)), k=2, nprobe=3)"
    statement = f"import numpy; from catalyzer import CatalyzerIndex; index = CatalyzerIndex.load({str(path)!r}); {search}"
    assert not imported_by(statement) & {"pytorch_lightning", "hydra", "omegaconf", "wandb", "matplotlib"}


def test_all_that_is_offered_is_there() -> None:
    for name in catalyzer.__all__:
        assert getattr(catalyzer, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(catalyzer, "nonsense")


def test_without_faiss_one_sentence_says_what_to_install() -> None:
    code = "import sys; sys.modules['faiss'] = None; import catalyzer.neighbors"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'MissingPackage: faiss is not installed: pip install "catalyzer[cpu]"' in process.stderr


def test_no_extra_but_faiss_is_needed_to_import_and_search(tmp_path: Path) -> None:
    # Pillow is installed with matplotlib, but no search draws.
    code = f"""
import sys
extras = ["cv2", "skimage", "PIL", "ray", "onnx", "onnxruntime", "tensorboard", "optuna", "submitit", "sentence_transformers"]
sys.modules.update(dict.fromkeys(extras))
import numpy as np
import catalyzer
for name in catalyzer.__all__:
    getattr(catalyzer, name)
from catalyzer.nn import Identity
x = np.random.default_rng(0).normal(size=(500, 24)).astype(np.float32)
codec = catalyzer.Codec(Identity(d_in=24), catalyzer.LatticeQuantizer(dim=24, bits=64))
assert codec.search(x[:5], codec.encode(x), k=1)[1].ravel().tolist() == [0, 1, 2, 3, 4]
from catalyzer.datasets import Demo
from catalyzer.files.array_cache import ArrayCache
Demo().load(ArrayCache({str(tmp_path)!r}))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    sentence = 'catalyzer.errors.MissingPackage: the demo dataset needs cv2: pip install "catalyzer[sift]"'
    assert process.stderr.splitlines()[-1] == sentence


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which `python -m build` has written an sdist, and a wheel that is made from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    process = subprocess.run(build, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


def files_below(*folders: str) -> set[str]:
    """The files of this checkout in these folders, but for what Python has compiled."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


def test_the_sdist_has_what_building_and_testing_need_and_nothing_else(dist: Path) -> None:
    name = f"catalyzer-{catalyzer.__version__}"
    with tarfile.open(dist / f"{name}.tar.gz") as archive:
        found = {member.name.removeprefix(f"{name}/") for member in archive if member.isfile()}
    pages = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE"}
    building = {"pyproject.toml", "constraints.txt", "Makefile", ".gitignore", "PKG-INFO"}
    folders = files_below("src", "conf", "tests", "benchmarks", "docs", "notebooks")
    assert found == folders | pages | building


def test_the_wheel_has_the_package_and_all_of_conf(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"catalyzer-{catalyzer.__version__}-py3-none-any.whl") as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {name.removeprefix("src/") for name in files_below("src/catalyzer")}
    assert found == modules | {f"catalyzer/{name}" for name in files_below("conf")}
    assert "catalyzer/conf/settings.yaml" in found


def test_the_installed_wheel_makes_and_searches_an_index(dist: Path, environment: dict[str, str], tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    folder.mkdir()
    for name, n in (("learn", 600), ("base", 300), ("queries", 20)):
        write_vecs(folder / f"{name}.fvecs", [clustered(n, 32, n)])
    # To compile the loops again would take most of the time.
    environment = environment | {"PYTHONPATH": str(site), "NUMBA_DISABLE_JIT": "1"}

    def installed(*command: str | Path) -> str:
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        return process.stdout

    (wheel,) = dist.glob("*.whl")
    installed(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    origin = installed(sys.executable, "-c", "import catalyzer; print(catalyzer.__file__)")
    assert Path(origin.strip()) == site / "catalyzer" / "__init__.py"
    program = site / "bin" / "catalyzer"
    assert "usage: catalyzer" in installed(program, "--help")
    assert installed(program, "--version") == f"{catalyzer.__version__}\n"
    installed(program, "fit", "a.catalyzer", "learn.fvecs", "--method", "linear", "--d-out", "24")  # composes conf/
    assert installed(program, "add", "a.catalyzer", "base.fvecs") == "added 300 vectors; a.catalyzer holds 300\n"
    assert len(installed(program, "search", "a.catalyzer", "queries.fvecs", "-k", "3").splitlines()) == 1 + 20 * 3


def test_the_version_is_the_same_wherever_it_stands() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == catalyzer.__version__
    headings = re.findall(r"^## (\S+), (?:unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == catalyzer.__version__
