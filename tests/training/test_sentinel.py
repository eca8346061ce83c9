"""The sentinel lets what the store holds pass, and stops what only looks like it by name."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import TINY

from cromss.config import resolve
from cromss.data.plan import Plan
from cromss.data.store import PatchStore
from cromss.data.stream import open_batches
from cromss.training import pretraining
from cromss.training.sentinel import PATCHES, Sentinel


@pytest.fixture(scope="module")
def store(worlds):
    return PatchStore.open(worlds[0])


def watched(store, change=lambda batch: batch, bands=None, seed=0):
    bands = bands or store.bands
    contracts = {name: store.contract(name).select(names, "it") for name, names in bands.items()}
    plan = Plan(store.blocks, seed=seed, epochs=4, batch_size=8, lanes=4)
    sentinel = Sentinel(contracts, store.manifest.statistics["train"])
    seen = list(sentinel.watch(change(batch) for batch in open_batches(store, plan, bands=bands)))
    assert sentinel.done
    assert len(seen) == plan.steps
    return seen


def images(change):
    def changed(batch):
        return dataclasses.replace(batch, images={name: change(image, name) for name, image in batch.images.items()})

    return changed


@pytest.mark.parametrize("seed", range(5))
def test_the_store_itself_passes_whatever_is_drawn(store, seed):
    watched(store, seed=seed)
    watched(store, bands={"s2": ("B4", "B3", "B2")}, seed=seed)


def test_the_raw_downstream_store_passes(worlds):
    raw = PatchStore.open(worlds[1])
    plan = Plan(raw.blocks, seed=0, epochs=8, batch_size=8, lanes=4)
    sentinel = Sentinel(raw.contracts, raw.manifest.statistics["train"])
    list(sentinel.watch(open_batches(raw, plan)))
    assert sentinel.done


@pytest.mark.parametrize(
    "change",
    [
        lambda image, name: torch.zeros_like(image),
        lambda image, name: torch.full_like(image, 127),
        lambda image, name: (image.float() / 255).to(torch.uint8),  # scaled before it was stored
        lambda image, name: 255 - image,
        lambda image, name: (
            (image.int() + 90).clamp(max=255).to(torch.uint8) if name == "s2" else image
        ),  # offset is back
    ],
    ids=["zeros", "constant", "scaled twice", "negative", "offset"],
)
def test_nonsense_stops_the_run_and_lists_both_sides(store, change):
    with pytest.raises(ValueError, match=r"the first 32 patches are not what .*mean .* on the axis .* the store has"):
        watched(store, images(change))


def test_the_verdict_falls_after_so_many_patches_and_not_before(store):
    contracts, statistics = store.contracts, store.manifest.statistics["train"]
    sentinel = Sentinel(contracts, statistics)
    plan = Plan(store.blocks, seed=0, epochs=4, batch_size=8, lanes=4)
    bad = images(lambda image, name: torch.zeros_like(image))
    taken = []

    def train():
        for batch in sentinel.watch(map(bad, open_batches(store, plan))):
            taken.append(len(batch))

    with pytest.raises(ValueError, match="not what the store's statistics say"):
        train()
    assert sum(taken) == PATCHES - 8


def test_pixels_without_data_are_not_looked_at(store):
    def masked(batch):
        valid = torch.ones_like(batch.labels, dtype=torch.bool)
        valid[:, :16] = False
        hidden = {name: image.clone() for name, image in batch.images.items()}
        for image in hidden.values():
            image[:, :, :16] = 0
        return dataclasses.replace(batch, images=hidden, valid=valid)

    watched(store, masked)


def test_a_pretraining_is_stopped_and_the_guard_can_be_switched_off(worlds, tmp_path, monkeypatch):
    original = pretraining.open_batches

    def swapped(*args, **kwargs):
        return (images(lambda image, name: torch.zeros_like(image))(batch) for batch in original(*args, **kwargs))

    monkeypatch.setattr(pretraining, "open_batches", swapped)
    store = PatchStore.open(worlds[0])
    with pytest.raises(ValueError, match=r"data\.sentinel=false"):
        pretraining.run(resolve(TINY), store, tmp_path / "stopped")
    result = pretraining.run(
        resolve(TINY, {"data": {"sentinel": False}, "optim": {"epochs": 1}}), store, tmp_path / "off"
    )
    assert np.isfinite(result["final"]["train/loss"])


def test_a_short_run_is_judged_at_its_end(store):
    bad = images(lambda image, name: torch.zeros_like(image))
    plan = Plan(store.blocks, seed=0, epochs=1, batch_size=8, lanes=4)
    few = list(open_batches(store, plan))[:2]
    sentinel = Sentinel(store.contracts, store.manifest.statistics["train"])
    with pytest.raises(ValueError, match="the first 16 patches are not what"):
        list(sentinel.watch(map(bad, few)))
    list(Sentinel(store.contracts, store.manifest.statistics["train"]).watch(few))


def test_the_message_names_the_modality_that_is_wrong(store):
    only_s2 = images(lambda image, name: torch.zeros_like(image) if name == "s2" else image)
    with pytest.raises(ValueError, match=r"s2 B1: .*The store says Sentinel-2 L1C: B1") as error:
        watched(store, only_s2)
    assert "Sentinel-1" not in str(error.value)


def tiled_batch(rng, locations: int, tiles: int, between: float, within: float):
    """Tiles whose level is mostly their location's, of a world of codes around 127."""
    levels = rng.normal(127, between, locations)
    codes, ids = [], []
    for location in range(locations):
        for tile in range(tiles):
            level = levels[location] + rng.normal(0, within)
            codes.append(np.clip(rng.normal(level, 10, (1, 16, 16)), 0, 255).astype(np.uint8))
            ids.append(f"L{location}/0/r0c{tile}")
    return torch.from_numpy(np.stack(codes)), ids


def test_the_tiles_of_a_few_locations_raise_no_false_alarm():
    """512 tiles of 32 locations are 32 draws, not 512."""
    from cromss.contract import Contract
    from cromss.data.patch import Batch
    from cromss.data.statistics import Counter

    rng = np.random.default_rng(0)
    contract = Contract.of("s2", ("B2",), "uint8")
    counter = Counter("s2", ("B2",))
    world, _ = tiled_batch(rng, 400, 4, between=40, within=5)
    scale, offset = contract.scale[0], contract.offset[0]
    for codes in world.numpy():
        counter.add(codes * np.float32(scale) + np.float32(offset), codes, None)
    statistics = {"s2": counter.tally().finish()}
    for _ in range(200):
        codes, ids = tiled_batch(rng, 32, 16, between=40, within=5)
        blank = torch.zeros(len(ids), dtype=torch.int64)
        batch = Batch({"s2": codes}, {"s2": ("B2",)}, codes[:, 0], ids, blank, blank)
        Sentinel({"s2": contract}, statistics).look(batch)
