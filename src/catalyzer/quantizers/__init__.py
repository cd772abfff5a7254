"""Quantizers behind one interface: `fit`, `encode`, `decode`, `search`, with `dim`, `bits`, `code_size`."""

from catalyzer.quantizers.additive import AdditiveQuantizer
from catalyzer.quantizers.base import MAX_TRAINING, Quantizer
from catalyzer.quantizers.binary import ITQQuantizer, LSHQuantizer, SignQuantizer
from catalyzer.quantizers.eden import EdenQuantizer
from catalyzer.quantizers.lattice import MOST_ATOMS, LatticeQuantizer
from catalyzer.quantizers.product import ProductQuantizer
from catalyzer.quantizers.rabitq import RaBitQuantizer
from catalyzer.quantizers.scalar import ScalarQuantizer
