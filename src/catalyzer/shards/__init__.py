"""Encoding and search of data too large for memory or for one machine: codes in shards, with resumable commands."""

from catalyzer.shards.code_shards import CodeShards, Manifest, Shard
from catalyzer.shards.encoding import encode
from catalyzer.shards.engines import Engine, RayEngine, local
from catalyzer.shards.searching import check_format, search, write_neighbours
