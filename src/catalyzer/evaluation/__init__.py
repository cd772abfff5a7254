"""Numbers about results: recall, and what a method costs. No pictures."""

from catalyzer.evaluation.benchmarking import Result, measure, neighbours_found
from catalyzer.evaluation.recall import RANKS, recall_at
