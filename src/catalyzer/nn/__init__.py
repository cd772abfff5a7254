"""What learns: the catalyzer and its plain stand-ins (PCA, identity), the decoder, the losses, the straight-through layer."""

from catalyzer.nn.batch_norm import BatchNorm
from catalyzer.nn.collectives import rows_of_all_processes
from catalyzer.nn.losses import KoLeoLoss, ListNetLoss, RankLoss, TriangleLoss
from catalyzer.nn.straight_through import StraightThrough, StraightThroughSign
from catalyzer.nn.transforms import PCA, Catalyzer, Decoder, Identity, embed, load_module, multiplies_bfloat16, save_module

__all__ = [
    "PCA",
    "BatchNorm",
    "Catalyzer",
    "Decoder",
    "Identity",
    "KoLeoLoss",
    "ListNetLoss",
    "RankLoss",
    "StraightThrough",
    "StraightThroughSign",
    "TriangleLoss",
    "embed",
    "load_module",
    "multiplies_bfloat16",
    "rows_of_all_processes",
    "save_module",
]
