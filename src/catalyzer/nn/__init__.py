"""Everything that is trained: transforms (catalyzer, linear maps, identity), decoder, losses, straight-through layer."""

from catalyzer.nn.batch_norm import BatchNorm
from catalyzer.nn.collectives import rows_of_all_processes
from catalyzer.nn.descent import Descent
from catalyzer.nn.embedding import embed, multiplies_bfloat16
from catalyzer.nn.inference import row_wise
from catalyzer.nn.linear import Axes, Linear, LinearDecoder
from catalyzer.nn.losses import KoLeoLoss, ListNetLoss, RankLoss, TriangleLoss
from catalyzer.nn.statistics import mean_and_deviation
from catalyzer.nn.storage import digest, load_part, save_part, tensors
from catalyzer.nn.straight_through import StraightThrough, StraightThroughSign
from catalyzer.nn.transforms import PCA, Catalyzer, Decoder, Identity, PCADecoder, ResidualDecoder, Transform
