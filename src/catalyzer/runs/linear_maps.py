"""The choice of a linear map if the settings leave it open: its damping, and whether codes have a gain."""

import logging
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from catalyzer.codec import Codec
from catalyzer.datasets import Benchmark, Split
from catalyzer.errors import InvalidInput
from catalyzer.evaluation import neighbours_found
from catalyzer.nn import Axes, Linear, LinearDecoder
from catalyzer.nn.linear import block_norms
from catalyzer.runs.build import build_codec, build_quantizer
from catalyzer.runs.settings import Settings

log = logging.getLogger(__name__)

DAMPINGS = (0.1, 0.0)  # in the order of preference among equals
NESTED_DAMPINGS = (0.25, 0.0)  # more for nested blocks, whose variances differ
BASE, QUERIES = 20_000, 1_000  # validation vectors that linear maps are compared by
COMPARED = 10  # nearest neighbours
GAINS = {False: "no gain", True: "a gain", "blocks": "a gain for each block"}  # in the order of preference among equals


def best_linear(settings: Settings, benchmark: Benchmark, d_out: int) -> Codec:
    """The parts of a run with `catalyzer=linear`, with the damping and the gain that find most of the validation vectors.

    `catalyzer.damping` and `quantizer.gain` are tried where they are null. A quantizer that learns would have to be fitted for
    each choice, so it gets the defaults. Nested codes are compared by the mean of all their first blocks, and their blocks are
    given their norms if they have gains.

    Args:
        settings: settings of the run.
        benchmark: the maps learn from its training vectors.
        d_out: dimension to map to.

    Returns:
        The untrained parts.

    Raises:
        InvalidInput: as for `build_codec`.
    """
    codec, nested = build_codec(settings, benchmark.dim, d_out), bool(settings.catalyzer.get("nested"))
    dampings, gains = [settings.catalyzer.get("damping", 0)], [settings.quantizer.get("gain", False)]
    if dampings == [None]:
        dampings = [*(NESTED_DAMPINGS if nested else DAMPINGS)]
    if gains == [None]:
        gains = [gain for gain in GAINS if not (nested and gain is True)]
    alone = len(dampings) * len(gains) == 1
    if codec.quantizer.is_learned or (alone and not (nested and gains == ["blocks"])):
        return codec
    axes = Axes.of(benchmark.train, d_out)
    held_out = np.concatenate([benchmark.validation.queries, benchmark.validation.base[:BASE]])
    split = Split(held_out, held_out[:QUERIES])
    k = min(COMPARED, len(held_out))
    tried: list[tuple[float, Settings]] = []
    for damping, gain in product(dampings, gains):
        try:
            norms = settings.quantizer.get("norms")
            if norms is None and nested and gain == "blocks":
                spheres = build_quantizer(_changed(settings.quantizer, {"gain": gain}), d_out).spheres
                norms = block_norms(axes.variances, damping, spheres)
            of_map, of_codes = {"damping": damping}, {"gain": gain, "norms": norms}
            parts = {"catalyzer": of_map, "decoder": of_map, "quantizer": of_codes}
            changed = {group: _changed(getattr(settings, group), arguments) for group, arguments in parts.items()}
            chosen = settings.model_copy(update=changed)
            codec = build_codec(chosen, benchmark.dim, d_out)
        except InvalidInput:
            if not tried:
                raise
            continue  # so few bits that a gain leaves none for the direction
        assert isinstance(codec.transform, Linear)
        codec.transform.take(axes)
        if isinstance(codec.decoder, LinearDecoder):  # by which steps and refine choose codes
            codec.decoder.take(axes)
        # Of nested codes, the first blocks count as well.
        compared = [replace(codec, blocks=blocks + 1) for blocks in range(len(codec.quantizer.spheres))] if nested else [codec]
        found = [neighbours_found(each, split.base, split.queries, split.ground_truth, k) for each in compared]
        share = float(np.mean(found))
        which = f", in the mean of searches of 1 to {len(found)} blocks" if nested else ""
        log.info("damping %s, %s: %.1f%% of the %d nearest%s", damping, GAINS[gain], 100 * share, k, which)
        tried.append((share, chosen))
    return build_codec(max(tried, key=lambda each: each[0])[1], benchmark.dim, d_out)


def _changed(part: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """A part with other values for those arguments that it has."""
    return part | {name: value for name, value in arguments.items() if name in part}
