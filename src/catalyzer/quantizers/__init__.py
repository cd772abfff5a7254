"""Quantizers behind one interface: `fit`, `encode`, `decode`, `search`, with `dim`, `bits`, `code_size`."""

from catalyzer.quantizers.base import Quantizer, encode_mapped
from catalyzer.quantizers.binary import SignQuantizer
from catalyzer.quantizers.lattice import LatticeQuantizer
from catalyzer.quantizers.product import ProductQuantizer

__all__ = ["LatticeQuantizer", "ProductQuantizer", "Quantizer", "SignQuantizer", "encode_mapped"]
