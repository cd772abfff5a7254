"""Encoding and search of what does not fit into memory or onto one machine: codes in shards, work that can be resumed."""

from catalyzer.shards.code_shards import CodeShards, Manifest, Shard
from catalyzer.shards.encoding import encode
from catalyzer.shards.engines import Engine, RayEngine, local
from catalyzer.shards.searching import check_format, search, write_neighbours
