"""The maps to the quantized space: where they put vectors, and how they are saved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from catalyzer import InvalidInput
from catalyzer.errors import DamagedFile, UntrustedPart
from catalyzer.nn import PCA, Catalyzer, Identity, Transform, embed, load_part, multiplies_bfloat16, save_part
from tests.helpers import clustered


def adapted(kind: str, x: np.ndarray) -> Transform:
    torch.manual_seed(0)
    transforms = {"mlp": Catalyzer(32, 12, hidden=40), "pca": PCA(32, 12), "identity": Identity(32)}
    return transforms[kind].adapt(x).eval()


@pytest.fixture(params=["mlp", "pca", "identity"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_saved_and_loaded_it_maps_the_same(kind: str, tmp_path: Path) -> None:
    x = clustered(500, 32, 0)
    transform = adapted(kind, x)
    save_part(transform, tmp_path, "catalyzer", 1.5)
    assert {p.name for p in tmp_path.iterdir()} == {"catalyzer.safetensors", "catalyzer.json"}
    loaded, seconds = load_part(tmp_path, "catalyzer", Transform)
    assert seconds == 1.5
    np.testing.assert_array_equal(embed(loaded, x), embed(transform, x))


def test_outputs_lie_on_the_sphere() -> None:
    x = clustered(500, 32, 0)
    for kind in ("mlp", "pca"):
        np.testing.assert_allclose(np.linalg.norm(embed(adapted(kind, x), x), axis=1), 1, rtol=1e-5)


def test_the_network_does_not_care_for_the_inputs_unit_or_origin() -> None:
    x = torch.from_numpy(clustered(500, 32, 0)).float()
    one, other = (adapted("mlp", y.numpy()).eval()(y).detach() for y in (x, x / 500 - 3))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_embedding_is_the_network_s_output_to_the_precision_that_the_hardware_multiplies_in() -> None:
    x = clustered(500, 32, 0)
    expected = adapted("mlp", x).eval()(torch.from_numpy(x)).detach()
    tolerance = 0.02 if multiplies_bfloat16(torch.device("cpu")) else 1e-5
    np.testing.assert_allclose(embed(adapted("mlp", x), x), expected, atol=tolerance)


def test_the_network_is_that_of_section_5_2() -> None:
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    assert all(isinstance(layer, kind) for layer, kind in zip(Catalyzer(128, 24).layers, kinds, strict=True))
    widths = [layer.weight.shape for layer in Catalyzer(128, 24).layers if isinstance(layer, nn.Linear)]
    assert widths == [(1024, 128), (1024, 1024), (24, 1024)]


def test_pca_is_numpy_s() -> None:
    x = clustered(2000, 32, 0).astype(np.float32)
    centred = x - x.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:12]
    expected = centred @ axes.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    ours = embed(adapted("pca", x), x)
    np.testing.assert_allclose(np.abs(ours), np.abs(expected), atol=2e-3)  # the axes' signs are arbitrary


def test_embedding_leaves_the_module_as_it_was() -> None:
    module = Catalyzer(32, 12, hidden=16).train()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    embed(module, clustered(100, 32, 0))
    assert module.training
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_pca_cannot_add_dimensions() -> None:
    with pytest.raises(InvalidInput, match="cannot map 8 dimensions to more, d_out = 24"):
        PCA(8, 24)


def test_equal_vectors_teach_nothing() -> None:
    with pytest.raises(InvalidInput, match="all training vectors are equal"):
        Catalyzer(8, 4).adapt(np.ones((100, 8), np.float32))


def changed(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE = {
    "truncated": lambda folder: (folder / "catalyzer.safetensors").write_bytes(
        (folder / "catalyzer.safetensors").read_bytes()[:-10]
    ),
    "a pickle": lambda folder: torch.save({"a": 1}, folder / "catalyzer.safetensors"),
    "another shape": lambda folder: changed(folder / "catalyzer.json", arguments={"d_in": 32, "d_out": 13, "hidden": 40}),
    "arguments that it does not take": lambda folder: changed(folder / "catalyzer.json", arguments={"depth": 3}),
    "a class of another kind": lambda folder: changed(folder / "catalyzer.json", **{"class": "catalyzer.LatticeQuantizer"}),
    "no JSON": lambda folder: (folder / "catalyzer.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_in_one_sentence(damage: str, tmp_path: Path) -> None:
    save_part(adapted("mlp", clustered(100, 32, 0)), tmp_path, "catalyzer", 1.5)
    DAMAGE[damage](tmp_path)
    with pytest.raises(DamagedFile) as caught:
        load_part(tmp_path, "catalyzer", Transform)
    assert "catalyzer.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_class_that_is_not_trusted(tmp_path: Path) -> None:
    save_part(adapted("mlp", clustered(100, 32, 0)), tmp_path, "catalyzer", 1.5)
    (tmp_path / "my_parts.py").write_text("raise SystemError('imported')")
    changed(tmp_path / "catalyzer.json", **{"class": "my_parts.Network"})
    with pytest.raises(UntrustedPart, match="trust=my_parts"):
        load_part(tmp_path, "catalyzer", Transform)
    (tmp_path / "catalyzer.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"catalyzer\.safetensors: no such file"):
        load_part(tmp_path, "catalyzer", Transform)
