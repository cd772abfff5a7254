"""Vector files of every format, atomic writes and locks, and the cache of computed arrays."""
