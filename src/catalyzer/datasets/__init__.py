"""Benchmarks: training vectors, a validation split and a test split, both with exact ground truth."""

from catalyzer.datasets.annbenchmarks import AnnBenchmarks
from catalyzer.datasets.benchmark import Benchmark, Dataset, DatasetVectors, Split, split_sizes
from catalyzer.datasets.demo import Demo
from catalyzer.datasets.files import BigANN, Deep1B, Files, Photosift, Published
from catalyzer.datasets.glosses import Glosses, make_glosses
from catalyzer.datasets.photosift import make_photosift
from catalyzer.datasets.published import fetch_published
