"""True colour: what a pixel looks like depends on the land, not on what else is in the patch."""

import numpy as np
import pytest
import torch
from tiny import TINY

from cromss.config import resolve
from cromss.data.store import PatchStore
from cromss.data.stream import open_rows
from cromss.settings import overlay
from cromss.training.pictures import Selection, true_colour, views
from cromss.training.pretraining import build, inputs_for

# Typical Sentinel-2 L1C values of B4, B3, B2 (DN).
WATER, FOREST, FIELD, SAND, SNOW = (
    (420, 700, 950),
    (440, 640, 860),
    (1190, 1230, 1220),
    (3300, 2900, 2700),
    (6400, 5800, 6900),
)


def scene(*colours, size=24):
    """Vertical stripes with a little texture."""
    rng = np.random.default_rng(0)
    stripes = np.repeat(np.array(colours, np.float32), size // len(colours), axis=0)
    return np.broadcast_to(stripes, (size, *stripes.shape)) + rng.normal(0, 15, (size, *stripes.shape))


def shown(dn, valid=None):
    return true_colour(dn, np.ones(dn.shape[:2], bool) if valid is None else valid).astype(float)


def test_forest_is_dark_green_fields_brown_sand_bright_and_water_blue_green():
    picture = shown(scene(WATER, FOREST, FIELD, SAND))
    water, forest, field, sand = picture.reshape(24, 4, 6, 3).mean((0, 2))
    assert water[0] < min(water[1:])
    assert forest.max() < 0.6 * field.max()
    assert forest.argmax() == 1
    assert field[0] > field[2]
    assert sand.min() > 150
    assert sand.min() > field.max()


def test_snow_is_white_and_keeps_its_relief():
    picture = shown(scene(SNOW, tuple(0.6 * value for value in SNOW)))
    bright, shaded = picture[:, :12].mean((0, 1)), picture[:, 12:].mean((0, 1))
    assert bright.min() > 225
    assert np.ptp(bright) < 20
    assert shaded.max() < bright.min()


@pytest.mark.parametrize("land", [WATER, FOREST])
def test_a_patch_of_nothing_but_dark_land_is_not_stretched_into_noise(land):
    picture = shown(scene(land))
    assert picture.max() < 110
    assert picture.std((0, 1)).max() < 6


def test_clear_air_is_taken_away_and_surface_reflectance_left_alone():
    surface = scene((60, 60, 60), FIELD, SAND)
    np.testing.assert_allclose(shown(np.add(surface, (250, 400, 650))), shown(surface), atol=1)


def test_a_gap_changes_the_colour_of_nothing_else():
    dn, valid = scene(FOREST, FIELD), np.ones((24, 24), bool)
    before = shown(dn)
    dn[:6], valid[:6] = 0, False
    np.testing.assert_allclose(shown(dn, valid)[6:], before[6:], atol=1)
    assert not shown(dn, np.zeros_like(valid))[:6].any()


def test_a_store_without_red_green_and_blue_is_shown_in_grey(worlds, monkeypatch):
    store = PatchStore.open(worlds[0])
    batch = next(iter(open_rows(store, split="train", batch_size=4)))
    assert np.ptp(views(batch, store)["rgb"], axis=-1).max() > 20
    batch.images["s2"] = batch.images["s2"][:, -2:]
    monkeypatch.setitem(store.bands, "s2", store.bands["s2"][-2:])
    assert not np.ptp(views(batch, store)["rgb"], axis=-1).any()


# --- the selection over epochs ------------------------------------------------------------------------------------------


def test_the_selection_is_kept_at_six_epochs_and_survives_a_resume(worlds, tmp_path):
    """The first weights are all 1 (alpha begins at 1); a frame is what the objective says, and the network keeps its mode."""
    config, store, selection, network = _selection(worlds, tmp_path / "selection.npz", epochs=11)
    network.train()
    for epoch in range(6):
        selection(epoch, network, torch.device("cpu"))
    _, _, resumed, _ = _selection(worlds, tmp_path / "selection.npz", epochs=11)
    for epoch in range(4, 11):  # epoch 4 is trained again
        resumed(epoch, network, torch.device("cpu"))
    assert network.training
    with np.load(tmp_path / "selection.npz") as found:
        data = {key: found[key] for key in found.files}
    assert data["epochs"].tolist() == [1, 3, 5, 7, 9, 11]
    patches, size = len(data["label"]), store.size[0]
    for modality in ("s1", "s2"):
        weights, trust = data[f"label_weights_{modality}"], data[f"confidence_{modality}"]
        assert weights.shape == trust.shape == data[f"prediction_{modality}"].shape == (patches, 6, size, size)
        known = data["label"] != 255
        assert (weights[:, 0][known] >= 0.98).mean() > 0.9  # alpha is still nearly 1
        assert (weights[:, -1][known] == 1).mean() == pytest.approx(config.objective.alpha.end, abs=0.05)
        np.testing.assert_array_equal(trust[:, 0], trust[:, -1])  # the network was not trained in between
    assert list(tmp_path.glob(".selection*")) == []


def _selection(worlds, path, epochs):
    store = PatchStore.open(worlds[0])
    config = resolve(overlay(TINY, {"optim": {"epochs": epochs}}))
    inputs = inputs_for(config, store)
    network = build(config, inputs, len(store.scheme))
    return config, store, Selection(path, store, config, inputs, store.folds("train")[:8]), network
