"""Processes and threads: forked children compute, objects travel to other processes, and loops are safe in threads."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from catalyzer import Codec, LatticeQuantizer, ProductQuantizer, SignQuantizer, SphericalLattice, TrainedRun
from tests import helpers
from tests.helpers import ROOT, clustered, make_run

INDEX = """
import multiprocessing, os, sys, threading
import numpy as np
from catalyzer import Catalyzer, CatalyzerIndex, Codec, Decoder, LatticeQuantizer

x = np.random.default_rng(0).normal(size=(8000, 32)).astype(np.float32)
index = CatalyzerIndex.from_codec(
    Codec(Catalyzer(32, 24, 512).eval(), LatticeQuantizer(dim=24, bits=64), Decoder(24, 32, 512).eval())
)
index.add(x)

def found(_=None):
    return index.search(x[:100], k=10)[1].tolist()
"""

FORKED = """
here = found()
child = os.fork()
if not child:
    os._exit(0 if found() == here and index.add(x[:5000]).size == 0 else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(found, range(4)) == [here] * 4
    assert found() == here
"""

LEARNED = """
import os
import numpy as np
from catalyzer import ProductQuantizer

x = np.random.default_rng(0).normal(size=(1000, 32)).astype(np.float32)
ProductQuantizer(32, 64, rotate=True).fit(x)
child = os.fork()
if not child:
    quantizer = ProductQuantizer(32, 64).fit(x)
    os._exit(0 if quantizer.encode(x).shape == (1000, 8) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""

THREADS = """
lattice = index._contents.codec.quantizer.lattice
y = np.random.default_rng(0).normal(size=(100_000, 24)).astype(np.float32)
expected, got = lattice.encode(y), [None] * 4

def encode(i):
    for _ in range(5):
        got[i] = lattice.encode(y)

threads = [threading.Thread(target=encode, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert all((codes == expected).all() for codes in got)
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")


def python(code: str, environment: dict[str, str], **changes: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, with two threads, which must end within three minutes."""
    environment = {key: value for key, value in environment.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = environment | {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(ROOT / "src"), **changes}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180)


@needs_fork
@pytest.mark.parametrize("code", [INDEX + FORKED, LEARNED], ids=["index", "faiss"])
def test_a_forked_child_computes_what_its_parent_does(code: str, environment: dict[str, str]) -> None:
    done = python(code, environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_threads_may_share_a_lattice_on_every_threading_layer(layer: str, environment: dict[str, str]) -> None:
    if layer == "omp" and sys.platform != "linux":
        pytest.skip("numba's wheels have OpenMP on Linux only")
    done = python(INDEX + THREADS, environment, NUMBA_THREADING_LAYER=layer)
    assert done.returncode == 0, done.stderr


def test_without_a_folder_for_compiled_loops_one_warning_says_what_to_set(environment: dict[str, str]) -> None:
    environment = {key: value for key, value in environment.items() if key != "NUMBA_CACHE_DIR"}
    code = "import logging; logging.basicConfig(); from catalyzer import SphericalLattice as S; import numpy as np\n"
    code += "print(S(3, 2).decode(np.zeros((1, 1), np.uint8)).shape)"
    done = python(code, environment, NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator")
    assert done.stdout == "(1, 3)\n"
    assert done.stderr.count("set NUMBA_CACHE_DIR to a writable folder") == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_compiled_loops_that_fit_no_disk_are_used_all_the_same(environment: dict[str, str], tmp_path: Path) -> None:
    code = "import logging, resource; logging.basicConfig(); from catalyzer import SphericalLattice as S; import numpy as np\n"
    code += "lattice = S(3, 2); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    code += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "print(lattice.decode(np.zeros((1, 1), np.uint8)).shape)"
    done = python(code, environment, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == "(1, 3)\n", done.stderr
    assert done.stderr.count("compiled loops cannot be cached") == 1


@pytest.mark.parametrize(
    ("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, None)]
)
def test_threads_wait_passively_unless_the_user_says_otherwise(
    given: dict[str, str], policy: str | None, environment: dict[str, str]
) -> None:
    done = python("import os, catalyzer; print(os.environ.get('OMP_WAIT_POLICY'))", environment, **given)
    assert done.stdout == f"{policy}\n"


def test_lattices_quantizers_and_codecs_travel_to_other_processes(codec: Codec) -> None:
    lattice = SphericalLattice(24, 79)
    y = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    lattice.encode(y)
    for other in (pickle.loads(pickle.dumps(lattice)), copy.deepcopy(lattice)):
        assert (other.encode(y) == lattice.encode(y)).all()
    quantizers = LatticeQuantizer(24, 64), SignQuantizer(24), ProductQuantizer(24, 32).fit(y)
    for quantizer in quantizers:
        other = pickle.loads(pickle.dumps(quantizer))
        assert (other.encode(y) == quantizer.encode(y)).all()
    x = clustered(100, 32, 0)
    codes = codec.encode(x)
    for other in (pickle.loads(pickle.dumps(codec)), copy.deepcopy(codec)):
        assert (other.encode(x) == codes).all()
        assert (other.search(x[:9], codes, 5, 50)[1] == codec.search(x[:9], codes, 5, 50)[1]).all()


@pytest.mark.parametrize("quantizer", ["lattice", "opq"])
def test_a_run_travels_to_other_processes(quantizer: str, tmp_path: Path) -> None:
    run = TrainedRun.load(make_run(tmp_path / "run", f"quantizer={quantizer}"))
    x = clustered(100, run.codec.transform.d_in, 0)
    assert (pickle.loads(pickle.dumps(run)).encode(x) == run.encode(x)).all()


def test_commands_of_tests_fork_from_a_process_that_has_imported(environment: dict[str, str], tmp_path: Path) -> None:
    code = "import sys; print({'numba', 'pytorch_lightning'} <= {*sys.modules})"
    assert helpers.python("-c", code, environment=environment, folder=tmp_path).stdout == "True\n"
