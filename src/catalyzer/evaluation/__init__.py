"""Numbers about results: recall, and what a method costs. No pictures."""

from catalyzer.evaluation.benchmarking import Result, measure
from catalyzer.evaluation.recall import RANKS, recall_at
