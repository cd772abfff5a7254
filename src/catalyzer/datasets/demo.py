"""The embedded dataset: SIFT descriptors of the photographs that scikit-image installs; nothing is downloaded.

Learn, base and queries come from different photographs. The queries are of the right image of a stereo pair whose left
image is in the base, so that most of them have a true match there.
"""

from functools import partial
from importlib.metadata import version
from importlib.resources import files

import numpy as np

from catalyzer.datasets.benchmark import Benchmark, make_benchmark
from catalyzer.datasets.sift import sift
from catalyzer.errors import InvalidInput, MissingPackage
from catalyzer.files.array_cache import ArrayCache
from catalyzer.progress import progress

LEARN = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coins.png", "grass.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "page.png", "retina.jpg", "text.png",
)  # fmt: skip
BASE = ("coffee.png", "gravel.png", "motorcycle_left.png", "rocket.jpg")
QUERIES = ("motorcycle_right.png",)
NUM_QUERIES = 2_000


def load_demo(cache: ArrayCache, base_size: int | None = None, **sizes: int) -> Benchmark:
    """About 76k learn, 24k base and 2k query vectors of 128 × uint8, extracted in seconds and cached.

    Args:
        cache: where the descriptors are kept.
        base_size: use the first this many base vectors; None for all.
        sizes: `train_size`, `validation_base_size`, `validation_queries_size`.

    Raises:
        InvalidInput: the base is smaller than asked for.
        MissingPackage: OpenCV, scikit-image or Pillow is not installed.
    """
    try:
        import cv2  # noqa: F401
        import PIL  # noqa: F401
        import skimage  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackage(f'the demo dataset needs {error.name}: pip install "catalyzer[sift]"') from None
    versions = (version("opencv-python-headless"), version("scikit-image"))
    parts = {}
    for name, photographs, limit in (("learn", LEARN, None), ("base", BASE, None), ("queries", QUERIES, NUM_QUERIES)):
        key = (*versions, photographs, limit)
        parts[name] = cache.get(f"demo-{name}", key, partial(_descriptors, photographs, limit))
    base = parts["base"][:base_size]
    if base_size is not None and len(base) < base_size:
        raise InvalidInput(
            f"demo: dataset.base_size = {base_size:,} asks for more than its {len(base):,} base vectors; "
            f"use dataset.base_size={len(base)} or less"
        )
    return make_benchmark("demo", parts["learn"], base, parts["queries"], None, cache=cache, **sizes)


def _descriptors(photographs: tuple[str, ...], limit: int | None) -> np.ndarray:
    from PIL import Image

    found = []
    with progress("extracting SIFT descriptors", len(photographs), "photographs") as advance:
        for name in photographs:
            with (files("skimage.data") / name).open("rb") as file, Image.open(file) as photograph:
                grey = np.asarray(photograph.convert("L"))
            # More scales and weaker corners than OpenCV's defaults: a dozen photographs have to yield a training set.
            found.append(sift(grey, nOctaveLayers=6, contrastThreshold=0.005, edgeThreshold=20))
            advance(1)
    return np.random.default_rng(0).permutation(np.concatenate(found))[:limit]
