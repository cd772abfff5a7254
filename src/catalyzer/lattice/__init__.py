"""The integer points of a sphere, a quantizer without a codebook: count, nearest point, code, decode (Appendix B)."""

from catalyzer.lattice.counting import best_radius_sq, enumerate_atoms, num_atoms, num_points
from catalyzer.lattice.spherical import SphericalLattice

__all__ = ["SphericalLattice", "best_radius_sq", "enumerate_atoms", "num_atoms", "num_points"]
