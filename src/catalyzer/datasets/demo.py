"""The bundled dataset: SIFT descriptors of the photographs that scikit-image installs; nothing is downloaded.

Learn, base and queries come from different photographs. The queries are of the right image of a stereo pair whose left
image is in the base, so that most of them have a true match there.
"""

from functools import partial
from importlib.metadata import version
from importlib.resources import files

import numpy as np

from catalyzer.datasets.benchmark import Dataset, DatasetVectors
from catalyzer.datasets.sift import sift
from catalyzer.errors import MissingPackage
from catalyzer.files.array_cache import ArrayCache
from catalyzer.progress import progress

LEARN = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coins.png", "grass.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "page.png", "retina.jpg", "text.png",
)  # fmt: skip
BASE = ("coffee.png", "gravel.png", "motorcycle_left.png", "rocket.jpg")
QUERIES = ("motorcycle_right.png",)
NUM_QUERIES = 2_000


class Demo(Dataset):
    """About 76k learn, 24k base and 2k query vectors of 128 × uint8, extracted in seconds and cached.

    See `Dataset` for the arguments.
    """

    label = "demo"
    dim = 128

    def read(self, cache: ArrayCache) -> DatasetVectors:
        """Extract the descriptors, or take them from the cache.

        Raises:
            MissingPackage: OpenCV, Pillow or scikit-image is not installed.
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
        return DatasetVectors(**parts)


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
