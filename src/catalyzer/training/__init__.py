"""Training: the mining of triplets, the Lightning module, and what surrounds them."""

from catalyzer.training.data import TripletData
from catalyzer.training.dimension import choose_dimension
from catalyzer.training.fit import check_trainer, fit_catalyzer
from catalyzer.training.module import CatalyzerTraining, Loss, Optimization, fit_quantizer

__all__ = [
    "CatalyzerTraining",
    "Loss",
    "Optimization",
    "TripletData",
    "check_trainer",
    "choose_dimension",
    "fit_catalyzer",
    "fit_quantizer",
]
