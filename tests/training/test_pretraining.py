"""A worker's pretraining, in this process: reproducible, resumable, honest about what it belongs to."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from tiny import TINY

from cromss.config import resolve
from cromss.data.store import PatchStore
from cromss.networks.encoders import load_encoder
from cromss.training import checkpoint, pretraining


class Stopped(Exception):
    pass


def pretrain(worlds, out, *layers, stop_after=None, downstream=False, **more):
    """(result, journal) of a tiny run; `stop_after` epochs it is killed."""
    journal = []

    def log(step, metrics, epoch):
        journal.append((step, metrics))
        if stop_after is not None and epoch >= stop_after:
            raise Stopped

    store = PatchStore.open(worlds[0])
    judge = PatchStore.open(worlds[1]) if downstream else None
    result = pretraining.run(resolve(TINY, *layers), store, out, journal=log, downstream=judge, **more)
    return result, journal


def losses(journal):
    return [(step, metrics["train/loss"], metrics["val/loss"]) for step, metrics in journal]


def encoder(out):
    return load_encoder(out / "encoders" / "s2.safetensors")[0]


def test_two_runs_with_one_seed_are_bit_identical_and_another_seed_is_not(worlds, tmp_path):
    first, second = pretrain(worlds, tmp_path / "a")[1], pretrain(worlds, tmp_path / "b")[1]
    assert losses(first) == losses(second)
    assert all(torch.equal(t, encoder(tmp_path / "b")[k]) for k, t in encoder(tmp_path / "a").items())
    assert losses(first) != losses(pretrain(worlds, tmp_path / "c", {"seed": 1})[1])


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "constant"])
def test_a_killed_run_goes_on_bit_identical(worlds, tmp_path, schedule):
    layer = {"optim": {"schedule": {"kind": schedule}}}
    whole = pretrain(worlds, tmp_path / "whole", layer)[1]
    with pytest.raises(Stopped):
        pretrain(worlds, tmp_path / "killed", layer, stop_after=2)
    rest = pretrain(worlds, tmp_path / "killed", layer)[1]
    assert losses(rest) == losses(whole)[2:]
    assert all(torch.equal(t, encoder(tmp_path / "killed")[k]) for k, t in encoder(tmp_path / "whole").items())


def test_a_finished_run_is_not_repeated(worlds, tmp_path):
    first, _ = pretrain(worlds, tmp_path)
    again, journal = pretrain(worlds, tmp_path)
    assert journal == []
    assert again == json.loads(json.dumps(first))


def test_a_torn_newest_checkpoint_costs_an_epoch_not_the_run(worlds, tmp_path):
    with pytest.raises(Stopped):
        pretrain(worlds, tmp_path, stop_after=2)
    newest = checkpoint.newest_valid(tmp_path / "checkpoints")[0].path
    (newest / "model.safetensors").write_bytes(b"torn")
    journal = pretrain(worlds, tmp_path)[1]
    assert len(journal) == 2  # epochs 2 and 3


def test_a_folder_of_another_configuration_is_refused_by_the_keys_that_differ(worlds, tmp_path):
    pretrain(worlds, tmp_path)
    with pytest.raises(ValueError, match=r"optim.lr 0.002 -> 0.001.*choose another --out"):
        pretrain(worlds, tmp_path, {"optim": {"lr": 1e-3}})


@pytest.mark.parametrize("fusion", [{"kind": "single", "modality": "s1"}, {"kind": "late"}, {"kind": "middle"}])
@pytest.mark.parametrize("method", ["plain", "oracle", "cromss"])
def test_every_arm_trains_and_leaves_encoders_panels_and_a_noise_report(worlds, tmp_path, fusion, method):
    layer = {"model": {"fusion": fusion}, "objective": {"method": {"kind": method}}, "optim": {"epochs": 1},
             "transfer": {"modalities": ["s1"]}}  # fmt: skip
    result, journal = pretrain(worlds, tmp_path, layer, downstream=True)
    trained = ("s1",) if fusion["kind"] == "single" else ("s1", "s2")
    assert {path.stem for path in (tmp_path / "encoders").iterdir()} == set(trained)
    assert all(f"probe/{m}/miou" in journal[-1][1] and f"val/{m}/clean_miou" in journal[-1][1] for m in trained)
    assert 0.1 < result["noise"]["rate"] < 0.4
    panels = np.load(tmp_path / "panels.npz")
    assert panels["rgb"].shape == (6, 32, 32, 3)
    for modality in trained:
        assert panels[f"label_weights_{modality}"].min() >= 0
        assert panels[f"label_weights_{modality}"].max() <= 1


def test_label_smoothing_with_the_seasons_of_a_place_trains(worlds, tmp_path):
    pretrain(worlds, tmp_path, {"objective": {"smoothing": {"kind": "spatio_temporal"}}, "optim": {"epochs": 1}})


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(worlds, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss is not finite.*lower optim.lr"):
        pretrain(worlds, tmp_path, {"optim": {"lr": 1e30}})
    found, _ = checkpoint.newest_valid(tmp_path / "checkpoints")
    assert found is None or all(torch.isfinite(t).all() for t in found.tensors["model"].values())


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"data": {"bands": {"s2": ["B2", "B77"]}}}, "has no band 'B77'"),
        ({"data": {"val_folds": 500}}, "data.val_folds=500"),
        ({"optim": {"batch_size": 64}}, r"optim.batch_size=64: an epoch of .* choose at most 24"),
        ({"model": {"scaling": {"kind": "reflectance"}}}, "ingest with --encoding raw"),
    ],
)
def test_what_the_store_cannot_give_is_refused_with_the_way_out(worlds, tmp_path, layer, said):
    with pytest.raises(ValueError, match=said):
        pretrain(worlds, tmp_path, layer)


def test_a_subset_of_bands_trains_an_encoder_of_that_many_channels(worlds, tmp_path):
    layer = {"data": {"bands": {"s2": "9"}}, "optim": {"epochs": 1}}
    pretrain(worlds, tmp_path, layer)
    state, card = load_encoder(tmp_path / "encoders" / "s2.safetensors")
    assert card.bands == ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B11", "B12")
    assert next(t for t in state.values() if t.ndim == 4).shape[1] == 9


@pytest.fixture(scope="module")
def whole(worlds, tmp_path_factory):
    """(folder, journal) of a run in one piece."""
    out = tmp_path_factory.mktemp("whole")
    return out, pretrain(worlds, out)[1]


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_that_was_asked_to_leave_goes_on_bit_identical_from_mid_epoch(worlds, whole, tmp_path, steps):
    """Epochs end at the steps 4, 7 and 10: the losses of the one that was left are those of the epoch in one piece."""
    left, before = pretrain(worlds, tmp_path / "left", leave=lambda step: "asked" if step == steps else "")
    assert left == {"left": "asked", "step": steps}
    assert not (tmp_path / "left" / "pretraining.json").exists()
    rest = pretrain(worlds, tmp_path / "left")[1]
    assert losses(before + rest) == losses(whole[1])
    assert all(torch.equal(t, encoder(tmp_path / "left")[k]) for k, t in encoder(whole[0]).items())


def test_a_checkpoint_that_finds_no_room_is_told_and_missed_and_the_next_one_is_written(worlds, tmp_path, monkeypatch):
    save, said = checkpoint.save, []

    def full(directory, step, *given):
        if step < 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(directory, step, *given)

    monkeypatch.setattr(checkpoint, "save", full)
    journal = pretrain(worlds, tmp_path, say=said.append)[1]
    assert [metrics.get("checkpoint/missed", 0) for _, metrics in journal] == [1, 0, 0]
    (line,) = [line for line in said if "no checkpoint" in line]
    assert line == (
        f"step 4: no checkpoint, {tmp_path / 'checkpoints'} cannot be written (No space left on device); the one before it "
        f"stays"
    )
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000000007", "step-000000010"]


def test_the_last_checkpoint_must_find_room(worlds, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(
        ValueError, match=r"checkpoints: the last checkpoint cannot be written \(No space left on device\)"
    ):
        pretrain(worlds, tmp_path, {"optim": {"epochs": 1}})


def test_who_leaves_without_room_names_no_checkpoint_and_goes_on_from_the_one_before(
    worlds, whole, tmp_path, monkeypatch
):
    save = checkpoint.save

    def full(directory, step, *given):
        if step == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(directory, step, *given)

    monkeypatch.setattr(checkpoint, "save", full)
    left, before = pretrain(worlds, tmp_path, leave=lambda step: "asked" if step == 5 else "")
    assert left == {"left": "asked", "step": None}
    assert losses(before + pretrain(worlds, tmp_path)[1]) == losses(whole[1])
