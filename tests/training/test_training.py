"""Mining against brute force, batches, and the schedule; training itself is tested through the commands."""

from pathlib import Path

import numpy as np
import pytest
import torch

from catalyzer import InvalidInput, LatticeQuantizer
from catalyzer.codec import Codec
from catalyzer.nn import embed
from catalyzer.training import Optimization, QueryData, TripletData
from catalyzer.training.checkpoints import WholeCheckpoints, load_checkpoint
from tests.helpers import TRAIN_SIZE, brute_force, clustered, network, options, triplet_data


@pytest.fixture
def mined(tmp_path: Path) -> TripletData:
    data = triplet_data(tmp_path)
    data.prepare_data()
    data.setup("fit")
    data.mine(network(), epoch=0)
    return data


def test_positives_are_input_neighbours_and_never_the_point_itself(mined: TripletData) -> None:
    x = clustered(TRAIN_SIZE, 16, 0)
    ranked = brute_force(x, x, TRAIN_SIZE)[1]
    for i in range(TRAIN_SIZE):
        others = ranked[i][ranked[i] != i][:5]
        assert mined.positive[i] in others


def test_negatives_are_the_k_th_latent_neighbour(mined: TripletData) -> None:
    latent = embed(network(), clustered(TRAIN_SIZE, 16, 0))
    distances, ids = brute_force(latent, latent, 21)
    assert (ids[:, 0] == np.arange(TRAIN_SIZE)).all()
    clear = (np.diff(distances, axis=1)[:, 18:] > 1e-6).all(axis=1)  # rows where float32 cannot swap neighbours 19 to 21
    assert clear.sum() > TRAIN_SIZE / 2
    np.testing.assert_array_equal(mined.negative.numpy()[clear], ids[clear, 20])


def test_an_epoch_depends_on_seed_epoch_and_weights_alone(tmp_path: Path, mined: TripletData) -> None:
    def tables(seed: int, epoch: int) -> list[torch.Tensor]:
        data = triplet_data(tmp_path, seed=seed)
        data.setup("fit")
        data.mine(network(), epoch)
        return [data.order, data.positive, data.negative]

    first = [mined.order, mined.positive, mined.negative]
    assert all(map(torch.equal, first, tables(0, 0)))
    for other in (tables(0, 1), tables(1, 0)):
        assert not torch.equal(first[0], other[0])
        assert not torch.equal(first[1], other[1])
        assert torch.equal(first[2], other[2])


def test_an_epoch_visits_every_vector_once(mined: TripletData) -> None:
    assert sorted(mined.order.tolist()) == list(range(TRAIN_SIZE))
    assert len(mined.train_dataloader()) == TRAIN_SIZE // 32
    anchors = torch.cat([mined.anchors(number) for number in mined.train_dataloader()])
    assert torch.equal(anchors, mined.order[: len(anchors)])


def test_triplets_are_the_vectors_of_the_tables(mined: TripletData) -> None:
    anchors = torch.tensor([3, 5, 7])
    x = torch.from_numpy(clustered(TRAIN_SIZE, 16, 0)).float()
    triplets = mined.batch(anchors)
    assert triplets.dtype == torch.float32
    assert torch.equal(triplets[0], x[anchors])
    assert torch.equal(triplets[1], x[mined.positive[anchors].long()])
    assert torch.equal(triplets[2], x[mined.negative[anchors].long()])


def test_the_middle_of_an_epoch_comes_back(tmp_path: Path, mined: TripletData) -> None:
    data = triplet_data(tmp_path)
    data.setup("fit")
    data.load_state_dict(mined.state_dict())
    for name in ("order", "positive", "negative"):
        assert torch.equal(getattr(data, name), getattr(mined, name))
    assert mined.recall == {"positives": 1.0, "negatives": 1.0}


def test_a_query_has_a_list_of_neighbours_in_both_spaces(tmp_path: Path) -> None:
    quantizer, x = LatticeQuantizer(8, 32), clustered(TRAIN_SIZE, 16, 0)
    data = QueryData(codec=Codec(network(), quantizer), **options(tmp_path))
    data.setup("fit")
    data.mine(network(), epoch=0)
    vectors, points, distances = data.batch(torch.arange(TRAIN_SIZE))
    latent = embed(network(), x)
    assert torch.equal(vectors, torch.from_numpy(x).float())
    for i in range(TRAIN_SIZE):
        once = distances[i].isfinite()
        members = data.lists[i][once].tolist()
        assert len(set(members)) == len(members)
        assert set(members) == set(data.lists[i].tolist())
        assert i not in members
        by_input, by_latent = (np.linalg.norm(space - space[i], axis=1) for space in (x.astype(np.float32), latent))
        for own, k in ((by_input, 5), (by_latent, 20)):
            assert set(np.flatnonzero(own < np.sort(own)[k] - 1e-4)) <= {i, *members}
        np.testing.assert_allclose(distances[i][once], by_input[members], rtol=1e-4)
        np.testing.assert_array_equal(points[i][once], quantizer.decode(quantizer.encode(latent[members])))

    lists, order = data.lists, data.order
    data.mine(network(), epoch=1)
    assert data.lists is lists
    assert sorted(data.order.tolist()) == list(range(TRAIN_SIZE))
    assert not torch.equal(data.order, order)


def test_too_few_vectors_for_the_settings(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"400 training vectors are too few for k_pos = 5, k_neg = 400 and batch_size = 32"):
        triplet_data(tmp_path, k_neg=400)


def test_the_schedule_is_the_papers() -> None:
    optimization = Optimization()
    rates = [optimization.learning_rate * optimization.factor(epoch / 300) for epoch in range(300)]
    assert rates == pytest.approx([0.1] * 80 + [0.05] * 40 + [0.01] * 180)


def test_checkpoints_come_back_and_nothing_is_unpickled(tmp_path: Path) -> None:
    checkpoint = {"state_dict": {"w": torch.arange(3)}, "epoch": 3}
    WholeCheckpoints().save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    loaded = load_checkpoint(tmp_path / "a.ckpt")
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(3))

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"x": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(InvalidInput, match=r"hostile\.ckpt: not a checkpoint"):
        load_checkpoint(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "short.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:100])
    with pytest.raises(InvalidInput, match=r"short\.ckpt"):
        load_checkpoint(tmp_path / "short.ckpt")
