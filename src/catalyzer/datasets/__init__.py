"""What a benchmark is: training vectors, a validation split and a test split, each with exact ground truth."""

from catalyzer.datasets.benchmark import Benchmark, Split
from catalyzer.datasets.demo import load_demo
from catalyzer.datasets.files import load_bigann, load_deep1b, load_files, load_photosift
from catalyzer.datasets.photosift import make_photosift
from catalyzer.datasets.published import fetch_published

__all__ = [
    "Benchmark", "Split", "fetch_published", "load_bigann", "load_deep1b", "load_demo", "load_files", "load_photosift",
    "make_photosift",
]  # fmt: skip
