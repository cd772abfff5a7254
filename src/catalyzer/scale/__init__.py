"""Encoding and search of what does not fit into memory or onto one machine: codes in shards, work that survives kills."""

from catalyzer.scale.encoding import encode
from catalyzer.scale.engines import Engine, RayEngine, local
from catalyzer.scale.searching import search, write_neighbours
from catalyzer.scale.shards import CodeShards, Manifest, Shard

__all__ = ["CodeShards", "Engine", "Manifest", "RayEngine", "Shard", "encode", "local", "search", "write_neighbours"]
