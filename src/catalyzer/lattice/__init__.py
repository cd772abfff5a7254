"""The integer points of spheres and of their products: quantizers without a codebook (Appendix B)."""

import os
import sys

# Left to itself, numba gives the OpenMP that it shares with torch and faiss a thread for each core at its first parallel
# loop, whatever OMP_NUM_THREADS says; a run that was resumed would then differ in its last digits from one that was not.
if "numba" not in sys.modules and os.environ.get("OMP_NUM_THREADS", "").isdigit():
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

from catalyzer.lattice.counting import best_radius_sq, enumerate_atoms, num_atoms, num_points
from catalyzer.lattice.gain_shape import GainShapeLattice, GainShapeProduct
from catalyzer.lattice.product import ProductLattice
from catalyzer.lattice.spherical import SphericalLattice
