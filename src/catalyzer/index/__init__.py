"""The index: vectors of your own from `fit` to `search`, and in a file."""

from catalyzer.index.catalyzer_index import CatalyzerIndex
