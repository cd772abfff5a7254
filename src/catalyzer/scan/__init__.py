"""The k nearest lattice codes to each query, exactly: of all codes, or of some inverted lists."""

from catalyzer.scan.searching import Lattice, check_search, columns, nearest_columns, search, search_lists, search_part
