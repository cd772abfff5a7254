"""Training: what is mined, the Lightning modules of the networks, and what surrounds them."""

from catalyzer.training.budget import measure_epoch, seconds_of
from catalyzer.training.checkpoints import newest_checkpoint
from catalyzer.training.data import Miner, TripletData
from catalyzer.training.dimension import choose_dimension
from catalyzer.training.fit import check_trainer, fit, is_first
from catalyzer.training.module import CatalyzerTraining, Loss, Optimization
from catalyzer.training.query import COMPETITORS, QueryData, QueryTraining

__all__ = [
    "COMPETITORS",
    "CatalyzerTraining",
    "Loss",
    "Miner",
    "Optimization",
    "QueryData",
    "QueryTraining",
    "TripletData",
    "check_trainer",
    "choose_dimension",
    "fit",
    "is_first",
    "measure_epoch",
    "newest_checkpoint",
    "seconds_of",
]
