"""Training: what is mined, the Lightning modules of the networks, and what surrounds them."""

from catalyzer.training.budget import measure_epoch, seconds_of
from catalyzer.training.data import TripletData
from catalyzer.training.dimension import choose_dimension
from catalyzer.training.fit import check_trainer, fit
from catalyzer.training.module import CatalyzerTraining, Loss, Optimization, fit_quantizer
from catalyzer.training.query import COMPETITORS, QueryData, QueryTraining

__all__ = [
    "COMPETITORS",
    "CatalyzerTraining",
    "Loss",
    "Optimization",
    "QueryData",
    "QueryTraining",
    "TripletData",
    "check_trainer",
    "choose_dimension",
    "fit",
    "fit_quantizer",
    "measure_epoch",
    "seconds_of",
]
