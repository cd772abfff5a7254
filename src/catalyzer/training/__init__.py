"""Training: mining, the Lightning modules of the networks, loss terms, schedule and checkpoints."""

from catalyzer.training.budget import MEASURED_STEPS, measure_epoch, seconds_of
from catalyzer.training.checkpoints import Checkpoints, checkpoint_files, newest_checkpoint
from catalyzer.training.data import Miner, TripletData
from catalyzer.training.dimension import choose_dimension
from catalyzer.training.fit import check_trainer, fit, is_first
from catalyzer.training.module import CatalyzerTraining
from catalyzer.training.query import COMPETITORS, QueryData, QueryTraining
from catalyzer.training.schedule import Decay
from catalyzer.training.terms import KoLeo, LossTerm, Reconstruction, TriangleRank, TripletRank, Triplets
