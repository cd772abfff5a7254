"""Defaults that depend on several parts: the dimension that a quantizer proposes, λ, gradient steps and reranked candidates."""

import math
from typing import Any

from omegaconf import DictConfig

TABLE_3 = {16: 0.05, 24: 0.02, 32: 0.01, 40: 0.005}
SIGN_LAMBDA = 0.08  # section 4.1 has λ chosen by the recall of the signs, and publishes no choice; ours is in docs/results.md
DECODER_LAMBDA = 0.005  # reconstruction spreads points too, so less of KoLeo is best; docs/results.md
RERANK = 500
STEPS = 2  # most of what more would gain, for twice or three times the time of encoding; docs/results.md


def paper_lambda(d_out: int | str) -> float:
    """λ by Table 3 of the paper; geometric between its dimensions, constant beyond them; that of 24 for auto.

    >>> [paper_lambda(d) for d in (8, 16, 24, 28, 40, 64, "auto")]
    [0.05, 0.05, 0.02, 0.01414, 0.005, 0.005, 0.02]
    """
    if not isinstance(d_out, int):  # also of what the settings will refuse
        return TABLE_3[24]
    dims = sorted(TABLE_3)
    low = max((d for d in dims if d <= d_out), default=dims[0])
    high = min((d for d in dims if d >= d_out), default=dims[-1])
    share = (d_out - low) / (high - low) if high > low else 0.0
    return round(math.exp((1 - share) * math.log(TABLE_3[low]) + share * math.log(TABLE_3[high])), 5)


def default_d_out(quantizer: DictConfig, bits: Any) -> int:
    """The dimension that a quantizer proposes for so many bits."""
    from catalyzer.parts import find_class
    from catalyzer.quantizers import Quantizer

    try:
        number = int(bits)
    except (TypeError, ValueError):  # which the settings will refuse
        number = 64
    return find_class(quantizer._target_, Quantizer).default_dim(number)


def default_lambda(quantizer: DictConfig, d_out: int | str, decoder: DictConfig) -> float:
    """Table 3's λ for the dimension; another one for signs, and where a decoder is trained."""
    from catalyzer.parts import find_class
    from catalyzer.quantizers import Quantizer, SignQuantizer

    if issubclass(find_class(quantizer._target_, Quantizer), SignQuantizer):
        return SIGN_LAMBDA
    return paper_lambda(d_out) if default_rerank(decoder) == 0 else DECODER_LAMBDA


def default_steps(quantizer: DictConfig, decoder: DictConfig) -> int:
    """Gradient steps before the nearest point: some where an MLP decodes points of a lattice, else none."""
    from catalyzer.nn import Decoder, Transform
    from catalyzer.parts import find_class
    from catalyzer.quantizers import LatticeQuantizer, Quantizer

    on_lattice = issubclass(find_class(quantizer._target_, Quantizer), LatticeQuantizer)
    decodes = decoder._target_ is not None and issubclass(find_class(decoder._target_, Transform), Decoder)
    return STEPS if on_lattice and decodes else 0


def default_rerank(decoder: DictConfig) -> int:
    """Candidates that are reranked by default: none without a decoder."""
    return 0 if decoder._target_ is None else RERANK
