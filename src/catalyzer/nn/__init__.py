"""What learns: the catalyzer and its plain stand-ins (PCA, identity), the losses, the straight-through layer."""

from catalyzer.nn.losses import KoLeoLoss, RankLoss, TriangleLoss
from catalyzer.nn.straight_through import StraightThrough, StraightThroughSign
from catalyzer.nn.transforms import PCA, Catalyzer, Identity, embed, load_transform, save_transform

__all__ = [
    "PCA",
    "Catalyzer",
    "Identity",
    "KoLeoLoss",
    "RankLoss",
    "StraightThrough",
    "StraightThroughSign",
    "TriangleLoss",
    "embed",
    "load_transform",
    "save_transform",
]
