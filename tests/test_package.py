"""The package as a whole: what importing it costs, and what it offers."""

import subprocess
import sys
from pathlib import Path

import catalyzer


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
