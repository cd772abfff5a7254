"""Mining against brute force, batches, the schedule, and what a plain trainer of Lightning makes of the module."""

import csv
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from catalyzer import Catalyzer, InvalidInput, LatticeQuantizer
from catalyzer.codec import Codec
from catalyzer.datasets import Benchmark, Split
from catalyzer.errors import DamagedFile
from catalyzer.nn import Decoder, embed
from catalyzer.quantizers import ProductQuantizer
from catalyzer.training import CatalyzerTraining, Decay, LossTerm, QueryData, TripletData, TripletRank, Triplets
from catalyzer.training.checkpoints import AtomicCheckpoints, load_checkpoint
from catalyzer.training.memory import memory_available, memory_needed, tell_memory
from catalyzer.training.schedule import PAPER, factor
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
    rates = [0.1 * factor(epoch / 300, PAPER) for epoch in range(300)]
    assert rates == pytest.approx([0.1] * 80 + [0.05] * 40 + [0.01] * 180)


def test_checkpoints_come_back_and_nothing_is_unpickled(tmp_path: Path) -> None:
    checkpoint = {"state_dict": {"w": torch.arange(3)}, "epoch": 3}
    AtomicCheckpoints().save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    loaded = load_checkpoint(tmp_path / "a.ckpt")
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(3))

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"x": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(DamagedFile, match=r"hostile\.ckpt: not a checkpoint"):
        load_checkpoint(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "short.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:100])
    with pytest.raises(DamagedFile, match=r"short\.ckpt"):
        load_checkpoint(tmp_path / "short.ckpt")


QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


class Kept(pl.Callback):
    """A user's callback that keeps the names of the metrics it has seen."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.names |= trainer.callback_metrics.keys()

    on_validation_end = on_train_epoch_end = on_train_batch_end


def test_metrics_arrive_where_any_trainer_of_lightning_sends_them(tmp_path: Path) -> None:
    """Not those of ours only: a logger of Lightning, a callback of the user's, early stopping."""
    kept, logger = Kept(), pl.loggers.CSVLogger(tmp_path, name="", version="")
    stopping = pl.callbacks.EarlyStopping("val/recall_at_10", mode="max", patience=50)
    trainer = pl.Trainer(
        **QUIET,
        default_root_dir=tmp_path,
        max_epochs=2,
        log_every_n_steps=4,
        logger=logger,
        callbacks=[kept, stopping],
        num_sanity_val_steps=0,
        enable_checkpointing=False,
    )
    training = CatalyzerTraining(Codec(network(), LatticeQuantizer(8, 32)))
    trainer.fit(training, datamodule=triplet_data(tmp_path / "cache"))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    expected = {f"{when}/{name}" for when in ("train", "epoch") for name in ("loss", "rank", "koleo", "violated")}
    expected |= {
        "epoch/vectors_per_second",
        "epoch/positives_recall",
        "val/recall_at_1",
        "val/recall_at_10",
        "val/recall_at_100",
    }
    assert expected <= {*rows[0]} & kept.names
    for name, times in (("train/loss", 2 * (TRAIN_SIZE // 32) // 4), ("epoch/loss", 2), ("val/recall_at_10", 2)):
        values = [float(row[name]) for row in rows if row[name]]
        assert len(values) == times
        assert np.isfinite(values).all()
    assert float(stopping.best_score) == max(float(row["val/recall_at_10"]) for row in rows if row["val/recall_at_10"])


def test_a_checkpoint_of_a_plain_trainer_is_loaded_with_its_codec(tmp_path: Path) -> None:
    codec = Codec(network(), LatticeQuantizer(8, 32), Decoder(8, 16, hidden=32))
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=1, logger=False)
    trainer.fit(CatalyzerTraining(codec), datamodule=triplet_data(tmp_path / "cache"))
    (path,) = tmp_path.rglob("*.ckpt")
    fresh = Codec(network(), LatticeQuantizer(8, 32), Decoder(8, 16, hidden=32))
    assert fresh.decoder is not None
    assert codec.decoder is not None
    loaded = CatalyzerTraining.load_from_checkpoint(path, codec=fresh, weights_only=True)
    assert loaded.codec is fresh
    x = clustered(50, 16, 3)
    np.testing.assert_array_equal(embed(fresh.transform, x), embed(codec.transform, x))
    np.testing.assert_array_equal(
        embed(fresh.decoder, embed(fresh.transform, x)), embed(codec.decoder, embed(codec.transform, x))
    )


def test_validation_takes_steps_by_the_decoder_of_its_epoch(tmp_path: Path) -> None:
    codec = Codec(network(), LatticeQuantizer(8, 32), Decoder(8, 16, hidden=32), steps=2)
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=3, logger=False)
    data = triplet_data(tmp_path / "cache")
    trainer.fit(CatalyzerTraining(codec), datamodule=data)
    codec.decoder.eval()  # type: ignore[union-attr]
    assert data.validation is not None
    base, trained = data.validation.base, replace(codec)
    expected = ((trained.decode(trained.encode(base)) - base) ** 2).sum(axis=1).mean()
    assert float(trainer.callback_metrics["val/squared_error"]) == pytest.approx(expected, rel=1e-4)


class Blind(Catalyzer):
    """Maps all vectors to one point."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(0 * x)


@pytest.mark.parametrize("blind", [True, False])
def test_a_training_no_better_than_chance_says_so(blind: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learned = network()
    transform = Blind(16, 8, hidden=32) if blind else learned
    transform.load_state_dict(learned.state_dict())
    training = CatalyzerTraining(Codec(transform, LatticeQuantizer(8, 32)))
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=10, logger=False, enable_checkpointing=False)
    trainer.fit(training, datamodule=triplet_data(tmp_path))
    assert ("and chance gives 10.0%: nothing was learned" in caplog.text) == blind


def test_without_a_validation_split_and_a_cache_it_trains(tmp_path: Path) -> None:
    data = TripletData(clustered(TRAIN_SIZE, 16, 0), batch_size=32, k_pos=5, k_neg=20)
    before = network().state_dict()
    training = CatalyzerTraining(Codec(network(), LatticeQuantizer(8, 32)))
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=1, logger=False, enable_checkpointing=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Total length of `list` across ranks is zero|`isinstance")
        trainer.fit(training, datamodule=data)
    assert trainer.global_step == TRAIN_SIZE // 32
    assert not torch.equal(training.transform.state_dict()["layers.0.weight"], before["layers.0.weight"])
    assert not any(tmp_path.iterdir())


def test_a_learned_quantizer_is_fitted_anew_only_when_the_weights_have_changed(tmp_path: Path) -> None:
    class Counting(ProductQuantizer):
        fits = 0

        def fit(self, x: np.ndarray) -> "Counting":
            self.fits += 1
            return super().fit(x)

    quantizer, data = Counting(8, 32), triplet_data(tmp_path / "cache")
    training = CatalyzerTraining(Codec(network(), quantizer))
    trainer = pl.Trainer(
        **QUIET, default_root_dir=tmp_path, max_epochs=2, logger=False, enable_checkpointing=False, num_sanity_val_steps=0
    )
    trainer.fit(training, datamodule=data)
    assert quantizer.fits == 2  # once an epoch
    recalls = [trainer.validate(training, datamodule=data, verbose=False)[0]["val/recall_at_10"] for _ in range(2)]
    assert quantizer.fits == 2
    assert recalls[0] == recalls[1]


def test_the_loss_is_the_weighted_sum_of_any_terms(tmp_path: Path) -> None:
    class Spread(LossTerm):
        def forward(self, triplets: Triplets) -> dict[str, torch.Tensor]:
            points = torch.cat(triplets.points)
            return {"loss": -points.var(), "largest": points.abs().max()}

    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    training = CatalyzerTraining(
        Codec(network(), LatticeQuantizer(8, 32)),
        {"rank": TripletRank(weight=0.5), "spread": Spread(weight=3.0)},
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        scheduler=partial(Decay, decay="cosine", warmup=0.1),
    )
    trainer = pl.Trainer(
        **QUIET, default_root_dir=tmp_path, max_epochs=1, log_every_n_steps=1, logger=logger, enable_checkpointing=False
    )
    trainer.fit(training, datamodule=triplet_data(tmp_path / "cache"))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == TRAIN_SIZE // 32
    for row in rows:
        total = 0.5 * float(row["train/rank"]) + 3 * float(row["train/spread"])
        assert float(row["train/loss"]) == pytest.approx(total, abs=1e-5)
        assert 0 < float(row["train/largest"]) <= 1


@pytest.mark.parametrize(
    ("scheduler", "interval", "steps"),
    [
        (partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5), "epoch", 2),
        (partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1), "step", 2 * (TRAIN_SIZE // 32)),
    ],
)
def test_schedules_of_torch_step_as_they_are_meant_to(scheduler: Any, interval: str, steps: int, tmp_path: Path) -> None:
    training = CatalyzerTraining(Codec(network(), LatticeQuantizer(8, 32)), scheduler=scheduler)
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=2, logger=False, enable_checkpointing=False)
    trainer.fit(training, datamodule=triplet_data(tmp_path / "cache"))
    (config,) = trainer.lr_scheduler_configs
    assert config.interval == interval
    assert config.scheduler.last_epoch == steps


def test_a_training_says_what_memory_it_needs(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    split = Split(clustered(1000, 16, 1), clustered(10, 16, 2))
    codec = Codec(network(), LatticeQuantizer(8, 32))
    for dtype, size in (("uint8", 1), ("float32", 4)):
        train = np.zeros((100_000, 16), dtype)
        need = memory_needed(Benchmark("x", train, split, split), codec, k_pos=10, k_neg=10)
        assert need["vectors"] == 16 * (100_000 * size + 1000 + 10)
        assert need["neighbours"] == 4 * 100_000 * 10
        assert need["mining"] == 100_000 * (max(16 * size, 2 * 4 * 8) + 8 * 11)
    with caplog.at_level("INFO"):
        tell_memory(Benchmark("x", train, split, split), codec, 10, 10)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    monkeypatch.setattr("catalyzer.training.memory.memory_available", lambda: 1 << 29)
    tell_memory(Benchmark("x", train, split, split), codec, 10, 10)
    assert "0.5 GiB are free; lower dataset.train_size" in caplog.records[-1].getMessage()
    assert memory_available() > 0
