"""The codec: codes decode to the original space, and reranking equals a search by brute force."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import catalyzer.codec
from catalyzer import InvalidInput, LatticeQuantizer, SignQuantizer
from catalyzer.codec import Codec
from catalyzer.neighbors import knn
from catalyzer.nn import PCA, Catalyzer, Decoder, Descent, Identity, embed
from catalyzer.quantizers import LSHQuantizer, ProductQuantizer, Quantizer
from tests.helpers import clustered


def decoding(quantizer: Quantizer) -> Codec:
    torch.manual_seed(0)
    x = clustered(500, 32, 0)
    transform = Catalyzer(32, quantizer.dim, hidden=20).adapt(x).eval()
    return Codec(transform, quantizer, Decoder(quantizer.dim, 32, hidden=20).adapt(x).eval())


LATTICE = decoding(LatticeQuantizer(16, 64))
SIGN = decoding(SignQuantizer(48))


def by_brute_force(codec: Codec, queries: np.ndarray, codes: np.ndarray, k: int, candidates: int) -> np.ndarray:
    decoded = codec.decode(codes).astype(np.float64)
    found = codec.search(queries, codes, candidates)[1]
    distances = ((queries[:, None].astype(np.float64) - decoded[found]) ** 2).sum(axis=2)
    return np.sort(distances, axis=1)[:, :k]


@pytest.mark.parametrize("codec", [LATTICE, SIGN], ids=["lattice", "sign"])
@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 300), nq=st.integers(1, 20), data=st.data())
def test_reranking_equals_brute_force(codec: Codec, n: int, nq: int, data: st.DataObject) -> None:
    k, rerank = data.draw(st.integers(1, n)), data.draw(st.integers(1, 2 * n))
    base, queries = clustered(n, 32, 1), clustered(nq, 32, 2)
    codes = codec.encode(base)
    with pytest.MonkeyPatch.context() as patch:  # blocks as they are in searches that are too large for a test
        for name, most in (("PAIRS", 4 * n), ("DECODED", n)):
            patch.setattr(catalyzer.codec, name, data.draw(st.integers(1, most)))
        distances, ids = codec.search(queries, codes, k, rerank)
    assert distances.shape == ids.shape == (nq, k)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    expected = by_brute_force(codec, queries, codes, k, min(n, max(k, rerank)))
    # A decoder that multiplies in bfloat16 rounds a value otherwise in a block of one vector than in one of many.
    np.testing.assert_allclose(distances, expected, rtol=1e-3)
    own = ((queries[:, None].astype(np.float64) - codec.decode(codes)[ids].astype(np.float64)) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances, own, rtol=1e-3)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_queries_have_a_network_of_their_own_and_codes_do_not() -> None:
    base, queries = clustered(300, 32, 1), clustered(20, 32, 2)
    torch.manual_seed(1)
    own = Catalyzer(32, 16, hidden=20).adapt(base).eval()
    codec = replace(LATTICE, query=own)
    codes = codec.encode(base)
    np.testing.assert_array_equal(codes, LATTICE.encode(base))
    for found, expected in zip(
        codec.search(queries, codes, 5), LATTICE.quantizer.search(embed(own, queries), codes, 5), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_reranking_all_codes_is_a_search_in_the_original_space() -> None:
    base, queries = clustered(1000, 32, 1), clustered(50, 32, 2)
    codes = LATTICE.encode(base)
    distances, ids = LATTICE.search(queries, codes, 10, rerank=1000)
    expected, _ = knn(queries.astype(np.float32), LATTICE.decode(codes), 10)
    np.testing.assert_allclose(distances, expected, rtol=1e-3)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert (ids != LATTICE.search(queries, codes, 10)[1]).any()


def test_reranking_by_both_distances() -> None:
    base, queries = clustered(200, 32, 1), clustered(30, 32, 2)
    codes = LATTICE.encode(base)
    on_sphere, decoded = np.empty((30, 200)), np.empty((30, 200))
    for table, rerank in ((on_sphere, 0), (decoded, 200)):
        distances, ids = LATTICE.search(queries, codes, 200, rerank)
        np.put_along_axis(table, ids, distances, axis=1)
    scale = decoded.mean(axis=1, keepdims=True) / on_sphere.mean(axis=1, keepdims=True)
    expected = 0.7 * decoded + 0.3 * scale * on_sphere
    distances, ids = replace(LATTICE, latent_share=0.3).search(queries, codes, 200, rerank=200)
    np.testing.assert_allclose(distances, np.take_along_axis(expected, ids, axis=1), rtol=1e-4)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_reranking_adds_half_of_the_error_that_the_decoder_estimates() -> None:
    base, queries = clustered(2000, 32, 1), clustered(50, 32, 2)
    torch.manual_seed(0)
    decoder = Decoder(16, 32, 64, estimates_error=True).adapt(base).eval()
    codec = replace(LATTICE, decoder=decoder)
    codec.fit(base)
    codes = codec.encode(base)
    points = codec.quantizer.decode(codes)
    errors = ((codec.decode(codes) - base) ** 2).sum(axis=1)
    decoded, estimate = np.split(embed(decoder.with_error(), points), [32], axis=1)
    np.testing.assert_array_equal(decoded, codec.decode(codes))
    # As the best linear estimate has it, it is right on average, and nearer than the mean.
    features = np.pad(decoder._features(torch.from_numpy(points)).detach().numpy(), ((0, 0), (0, 1)), constant_values=1)
    best = features @ np.linalg.lstsq(features, errors, rcond=None)[0]
    assert np.corrcoef(estimate[:, 0], best)[0, 1] > 0.9
    np.testing.assert_allclose(estimate.mean(), errors.mean(), rtol=0.01)

    squared = knn(queries.astype(np.float32), codec.decode(codes), 2000)
    expected = np.take_along_axis(squared[0], squared[1].argsort(axis=1), axis=1) + 0.5 * estimate[:, 0]
    distances, ids = codec.search(queries, codes, 10, rerank=2000)
    np.testing.assert_allclose(distances, np.take_along_axis(expected, ids, axis=1), rtol=2e-3)
    assert (np.diff(distances, axis=1) >= 0).all()
    plain = codec.plain.search(queries, codes, 10, rerank=2000)[0]
    np.testing.assert_allclose(plain, squared[0][:, :10], rtol=1e-3)
    # In whole numbers, alone and among others.
    together = codec.for_search.search(queries, codes, 10, rerank=2000)
    np.testing.assert_allclose(together[0], distances, rtol=0.05)
    for found, among in zip(codec.for_search.search(queries[7:8], codes, 10, rerank=2000), together, strict=True):
        np.testing.assert_array_equal(found[0], among[7])


def test_the_estimate_of_a_decoder_that_is_training_or_dead() -> None:
    base = clustered(500, 32, 1)
    torch.manual_seed(0)
    decoder = Decoder(16, 32, 20, estimates_error=True).adapt(base)
    codec, before = replace(LATTICE, decoder=decoder.train()), copy.deepcopy(decoder.state_dict())
    codec.fit(base)
    assert decoder.training
    changed = {name for name, value in decoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"error_weight", "error_bias"}
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    codec.fit(base)
    deviation = ((base - base.mean(axis=0)) ** 2).sum(axis=1).mean()
    points = codec.quantizer.decode(codec.encode(base[:5]))
    np.testing.assert_allclose(embed(decoder.with_error(), points)[:, -1], deviation, rtol=1e-2)


def test_codes_that_all_are_the_query_itself() -> None:
    codec = replace(SIGN, latent_share=1.0)
    x = np.repeat(clustered(1, 32, 1), 5, axis=0)
    distances, ids = codec.search(x[:1], codec.encode(x), 5, rerank=5)
    assert (distances.tolist(), ids.tolist()) == ([[0.0] * 5], [[0, 1, 2, 3, 4]])


def test_a_candidate_of_many_queries_is_decoded_once() -> None:
    class Counting(Decoder):
        rows = 0

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            self.rows += len(z)
            return super().forward(z)

    codec = Codec(LATTICE.transform, LATTICE.quantizer, Counting(16, 32, hidden=20).adapt(clustered(500, 32, 0)).eval())
    codes = codec.encode(clustered(100, 32, 1))
    codec.search(clustered(200, 32, 2), codes, 5, rerank=100)
    assert codec.decoder is not None
    assert codec.decoder.rows == 100


def test_equal_distances_are_in_the_order_of_rows() -> None:
    codes = LATTICE.encode(np.repeat(clustered(3, 32, 1), 4, axis=0))
    distances, ids = LATTICE.search(clustered(20, 32, 2), codes, 12, rerank=12)
    for row, found in zip(distances, ids, strict=True):
        np.testing.assert_array_equal(np.lexsort((found, row)), np.arange(12))
        assert sorted(found.tolist()) == list(range(12))


def test_without_a_decoder_one_sentence() -> None:
    x = clustered(300, 32, 0)
    codec = Codec(PCA(32, 16).adapt(x), LatticeQuantizer(16, 64))
    codes = codec.encode(x)
    for attempt in (lambda: codec.decode(codes), lambda: codec.search(x, codes, 1, rerank=10)):
        with pytest.raises(InvalidInput, match="decoder=mlp"):
            attempt()
    signs = Codec(Identity(32), LSHQuantizer(32, 16).fit(x.astype(np.float32)))
    assert not signs.decodes


def test_what_is_not_mapped_decodes_by_its_quantizer() -> None:
    x = clustered(2000, 32, 0).astype(np.float32)
    codec = Codec(Identity(32), ProductQuantizer(32, 64).fit(x))
    codes = codec.encode(x)
    np.testing.assert_array_equal(codec.decode(codes), codec.quantizer.decode(codes))
    # Both stages then measure the same distance.
    stages = (codec.search(x[:20], codes, 5, rerank)[0] for rerank in (50, 0))
    np.testing.assert_allclose(*stages, rtol=1e-3, atol=1)


def test_refining_takes_the_point_that_decodes_best() -> None:
    x = clustered(200, 32, 1)
    refined = replace(LATTICE, refine=6)
    tried = LATTICE.quantizer.nearest(embed(LATTICE.transform, x), 6)
    errors = [((embed(LATTICE.decoder, tried[:, i]) - x) ** 2).sum(axis=1) for i in range(6)]  # type: ignore[arg-type]
    codes = refined.encode(x)
    np.testing.assert_allclose(((refined.decode(codes) - x) ** 2).sum(axis=1), np.min(errors, axis=0), rtol=1e-4)
    assert (codes != LATTICE.encode(x)).any(axis=1).mean() > 0.5


def test_steps_and_points_tried_lower_the_error(codec: Codec) -> None:
    x = clustered(2000, 32, 1)

    def error(steps: int, refine: int) -> float:
        changed = replace(codec, steps=steps, refine=refine)
        return float(((changed.decode(changed.encode(x)) - x) ** 2).sum(axis=1).mean())

    plain, one, two = (error(steps, 1) for steps in (0, 1, 2))
    assert one < 0.9 * plain
    assert two < 0.97 * one
    assert error(2, 4) < 0.97 * min(two, error(0, 4))


def test_codes_of_several_spheres_take_steps_too() -> None:
    x, codec = clustered(500, 32, 1), decoding(LatticeQuantizer(16, 64, blocks=2))
    assert codec.quantizer.spheres == (8, 8)
    codes = replace(codec, steps=2).encode(x)
    latent = embed(codec.transform, x)
    np.testing.assert_array_equal(codes, codec.quantizer.encode(Descent(codec.decoder, [8, 8])(latent, x, 2)))  # type: ignore[arg-type]
    assert (codes != codec.encode(x)).any(axis=1).mean() > 0.5


def test_steps_are_by_the_decoder_as_a_codec_finds_it() -> None:
    x, codec = clustered(300, 32, 1), replace(decoding(LatticeQuantizer(16, 64)), steps=2)
    before = codec.encode(x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(codec)).encode(x), before)
    other = copy.deepcopy(codec)
    with torch.no_grad():
        for weight in other.decoder.parameters():  # type: ignore[union-attr]
            weight *= 2
    fresh = replace(other, steps=2)
    np.testing.assert_allclose(fresh.descent.matrix, Descent(other.decoder, [16]).matrix)  # type: ignore[arg-type]
    np.testing.assert_array_equal(codec.encode(x), before)


def test_refining_what_cannot_be_refined() -> None:
    with pytest.raises(InvalidInput, match="decoder=mlp"):
        Codec(LATTICE.transform, LATTICE.quantizer, refine=2)
    with pytest.raises(InvalidInput, match="use quantizer=lattice"):
        replace(SIGN, refine=2)
    with pytest.raises(InvalidInput, match="steps = 2 go down the error of a decoder; train with decoder=mlp"):
        Codec(LATTICE.transform, LATTICE.quantizer, steps=2)
    with pytest.raises(InvalidInput, match="steps must be an integer between 0 and 100; got 101"):
        Codec(LATTICE.transform, LATTICE.quantizer, steps=101)
    for steps in (-1, 1.0, True):
        with pytest.raises(InvalidInput, match="steps must be an integer between 0 and 100; got"):
            replace(LATTICE, steps=steps)  # type: ignore[arg-type]
