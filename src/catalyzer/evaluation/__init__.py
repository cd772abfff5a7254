"""Measurements of results: recall and time. No figures."""

from catalyzer.evaluation.benchmarking import Result, measure, neighbours_found
from catalyzer.evaluation.recall import RANKS, recall_at
