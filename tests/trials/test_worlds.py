"""Worlds as parameters of a sweep: who shares which store, who makes it, what has which address."""

import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
from tiny import TINY

from cromss.config import resolve
from cromss.data.manifest import read_manifest
from cromss.data.store import PatchStore
from cromss.files import Folder
from cromss.settings import overlay
from cromss.sweep import sweep
from cromss.trials.resources import Budget
from cromss.trials.space import Space, drawn, grid, load
from cromss.trials.trial import Setting, record_of
from cromss.trials.worlds import Worlds, generator_digest

SMALL = {"seed": "trial", "places": 16, "size": 32, "seasons": 1, "train": 4, "test": 4}


def worlds(folder, **base):
    return Worlds(SMALL | base, folder, "generator")


def setting(folder):
    budget = Budget(None, {}, 1, 1, 1.0, 0.0)
    return Setting({}, "", "", str(folder), budget, "", ["", "sources", "torch", "cpu"], "", worlds=worlds(folder))


def record(folder, trial=0, **world):
    return record_of({"arm": "midF", "seed": trial, "world": world}, setting(folder))


def test_a_world_has_one_address_whatever_the_order_and_the_defaults_that_are_spelled_out(tmp_path):
    plain = record(tmp_path, noise={"kind": "symmetric", "rate": 0.4})
    spelled = record(tmp_path, radar={"looks": 5.0}, noise={"rate": 0.4, "kind": "symmetric", "region": 0.0})
    assert plain["key"] == spelled["key"]


@pytest.mark.parametrize("other", [{"noise": {"kind": "none"}}, {"places": 20}, {"radar": {"looks": 9.0}}, {"seed": 7}])
def test_another_world_is_another_address(tmp_path, other):
    assert record(tmp_path)["key"] != record(tmp_path, **other)["key"]


def test_arms_of_one_seed_share_the_world_and_other_seeds_have_another(tmp_path):
    of = worlds(tmp_path).of
    assert of({"arm": "midF"}, 3) == of({"arm": "CromSS-midF"}, 3)
    assert of({}, 3).pretraining.path != of({}, 4).pretraining.path
    fixed = worlds(tmp_path, seed=5).of
    assert fixed({}, 3) == fixed({}, 4)


def test_worlds_that_differ_in_noise_or_places_share_their_downstream_store(tmp_path):
    of = worlds(tmp_path).of
    plain, noisy, larger = (of({"world": w}, 0) for w in ({}, {"noise": {"kind": "none"}}, {"places": 99}))
    assert plain.downstream.path == noisy.downstream.path == larger.downstream.path
    assert len({world.pretraining.path for world in (plain, noisy, larger)}) == 3
    more = of({"world": {"test": 5}}, 0)
    assert more.pretraining.path == plain.pretraining.path
    assert more.downstream.path != plain.downstream.path


def test_the_shared_stores_hold_what_a_store_of_the_very_world_would(tmp_path):
    """What is left out of a store's address has no effect on it: the same bytes."""
    world = worlds(tmp_path / "shared").of({"world": {"noise": {"kind": "none"}}}, 0)
    shared, own = world.downstream, tmp_path / "own"
    replace(shared, source=world.earth.model_copy(update={"downstream": True}), path=own).make()
    assert _sums(shared.make()) == _sums(own)
    trained, own = world.pretraining, tmp_path / "own too"
    replace(trained, source=world.earth, path=own).make()
    assert _sums(trained.make()) == _sums(own)


def _sums(path):
    return [shard.sha256 for shard in read_manifest(Folder.of(path)).shards]


def test_the_record_says_the_world_and_its_parameters_and_no_seed_that_follows_the_trial(tmp_path):
    said = record(tmp_path, trial=3, noise={"kind": "symmetric", "rate": 0.4})
    assert said["world"] == SMALL | {"seed": 3, "noise": {"kind": "symmetric", "rate": 0.4}}
    assert said["parameters"] == {"world.noise.kind": "symmetric", "world.noise.rate": 0.4}
    assert "world.seed" not in record(tmp_path, trial=3, seed="trial")["parameters"]
    assert record(tmp_path, seed=8)["parameters"] == {"world.seed": 8}


@pytest.mark.parametrize(
    ("world", "said"),
    [
        ({"plces": 3}, "world.plces: unknown key; did you mean 'places'?"),
        ({"noise": {"kind": "gaussian"}}, "world.noise.kind=gaussian: unknown"),
        ({"noise": {"kind": "border_displacement", "rate": 0.7}}, r"world.noise.rate=0.7: must lie in \[0, 0.4\]"),
        ({"downstream": True}, "world.downstream: a world is both"),
    ],
)
def test_an_invalid_world_is_refused_by_name(tmp_path, world, said):
    with pytest.raises(ValueError, match=said):
        record(tmp_path, **world)


@pytest.mark.parametrize(
    ("layer", "world", "said"),
    [
        ({"optim": {"batch_size": 16}}, {"places": 16}, "world.places=16: an epoch has 15 patches, fewer than optim.batch"),
        ({"model": {"fusion": {"modalities": ["s1", "s1d", "s2"]}}}, {}, "modality 's1d': this world has s1, s2"),
    ],
)  # fmt: skip
def test_what_a_world_cannot_feed_is_refused_before_there_is_a_store(tmp_path, layer, world, said):
    with pytest.raises(ValueError, match=said):
        worlds(tmp_path, **world).of({}, 0).check(resolve(overlay(TINY, layer)))
    assert list(tmp_path.iterdir()) == []


def test_a_space_whose_samples_name_a_world_only_here_and_there_is_refused():
    with pytest.raises(ValueError, match="some of its samples name a `world`"):
        _ = Space("mixed", "?", {}, [{"arm": "midF"}, {"arm": "midF", "world": {}}], "", 1).has_worlds


def test_a_design_runs_as_it_is_and_seeds_are_counted_from_the_runs():
    space = Space("design", "?", {}, [{"arm": "midF", "seed": 4}, {"arm": "random"}], "", 1)
    found = [(one["arm"], one["seed"]) for one in drawn(space, 1, 100, 2)]
    assert found == [("midF", 104), ("random", 100), ("random", 101)]


# --- who makes a store --------------------------------------------------------------------------------------------------


def _make(folder, at):
    world = worlds(folder, places=160, seasons=2).of({}, 0)
    time.sleep(max(0.0, at - time.time()))
    began = time.time()
    world.pretraining.make()
    PatchStore.open(world.pretraining.path)
    print(time.time() - began, flush=True)


def _started(folder, at=0.0):
    process = multiprocessing.get_context("fork").Process(target=_make, args=(folder, at))
    process.start()
    return process


def test_of_two_processes_one_makes_a_store_and_the_other_waits_for_it(tmp_path):
    at = time.time() + 0.3
    both = [_started(tmp_path, at) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    [home] = list(tmp_path.iterdir())
    assert sorted(path.name for path in home.iterdir()) == [".pretraining.lock", "pretraining"]
    assert PatchStore.open(home / "pretraining").manifest.places == {"train": 160}


def test_a_killed_makers_store_is_taken_over_and_what_it_wrote_is_kept(tmp_path):
    world = worlds(tmp_path, places=160, seasons=2).of({}, 0)
    first = _started(tmp_path)
    journal = world.pretraining.path / ".ingest" / "00000.json"  # the first of three shards is written
    while not journal.exists():
        assert first.is_alive(), "it was too quick to be killed"
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    written = (world.pretraining.path / "shard-00000.parquet").stat().st_mtime_ns
    assert not (world.pretraining.path / "manifest.json").exists()
    world.pretraining.make()
    assert (world.pretraining.path / "shard-00000.parquet").stat().st_mtime_ns == written
    whole = worlds(tmp_path / "at once", places=160, seasons=2).of({}, 0).pretraining.make()
    assert _sums(world.pretraining.path) == _sums(whole)


# --- in a sweep ---------------------------------------------------------------------------------------------------------

KINDS = {"arm": grid("random", "midF"), "world": {"noise": grid({"kind": "none"}, {"kind": "model"})}}
SHARED = SMALL | {"places": 28, "train": 16, "test": 8}
NOISES = Space("noises", "Does noise hurt?", {}, KINDS, "", 1, world=SHARED)
BASE = overlay(TINY, {"optim": {"epochs": 1}, "scaling": {"num_workers": 0}, "sweep": {"seeds": 1}})


@pytest.mark.timeout(280)
def test_a_sweep_over_worlds_makes_each_once_and_a_resumed_one_none(ray_session, tmp_path):
    outcome = sweep(NOISES, BASE, None, None, tmp_path)
    assert [trial["status"] for trial in outcome["trials"]] == ["done"] * 4
    assert sorted(path.name for path in tmp_path.glob("synthetic/*/[!.]*")) == [
        "downstream",
        "pretraining",
        "pretraining",
    ]
    assert {t["parameters"]["world.noise.kind"] for t in outcome["trials"]} == {"none", "model"}
    left = next(trial for trial in outcome["trials"] if trial["world"]["noise"]["kind"] == "none")
    shutil.rmtree(left["folder"])
    made = {trial["world"]["noise"]["kind"]: _home(tmp_path, trial) for trial in outcome["trials"]}
    shutil.rmtree(made["model"])  # its trials are finished: nobody asks for it
    again = sweep(NOISES, BASE, None, None, tmp_path, resume=True)
    assert {t["key"] for t in again["trials"]} == {t["key"] for t in outcome["trials"]}
    assert not made["model"].exists()


def _home(out, trial):
    of = Worlds(NOISES.world, out / "synthetic", generator_digest()).of
    return of(trial["sample"], trial["seed"]).pretraining.path


def test_a_sweep_over_worlds_takes_no_stores(ray_session, tmp_path):
    with pytest.raises(ValueError, match="--data, --downstream .* stand on synthetic Earths of their own"):
        sweep(NOISES, BASE, "a", "b", tmp_path)


# --- the protocol of does_selection_help --------------------------------------------------------------------------------


def test_the_protocol_has_16_pairs_that_share_world_and_seed_and_nothing_with_another_pair():
    space = load("does_selection_help")
    pairs = {}
    for one in drawn(space, 1, 0, 1):
        pairs.setdefault(one["seed"], {})[one["arm"]] = {key: one[key] for key in one if key != "arm"}
    assert len(pairs) == 16
    for arms in pairs.values():
        assert {"midF", "CromSS-midF"} <= set(arms)
        assert all(one == arms["midF"] for one in arms.values())
    assert space.world["seed"] == "trial"  # another seed, another world
    assert sum("oracle-midF" in arms for arms in pairs.values()) == 16


def test_the_protocols_factors_are_balanced_and_every_trial_takes_equally_many_steps():
    space = load("does_selection_help")
    for level in (
        lambda one: one["world"]["noise"]["kind"], lambda one: one["world"]["places"],
        lambda one: str(one["world"]["radar"]), lambda one: (str(one["world"]), one["arm"]),
    ):  # fmt: skip
        pairs = [level(one) for one in space.params if one["arm"] != "oracle-midF"]
        assert len({pairs.count(value) for value in pairs}) == 1
    steps = {one["optim"]["epochs"] * one["world"]["places"] for one in space.params}
    assert len(steps) == 1


def test_more_worlds_change_no_trial_of_the_protocol(monkeypatch):
    import tune_spaces.does_selection_help as protocol

    before = protocol.space()
    monkeypatch.setattr(protocol, "WORLDS", 4)
    after = protocol.space()
    assert all(one in after for one in before)
    assert len({one["seed"] for one in after}) == 64
