"""Where a configuration runs, which ones are measured together, and what happens when measuring fails."""

import os

import pytest
import torch
from tiny import TINY

from cromss.config import resolve
from cromss.costs import calibration
from cromss.costs.calibration import rates_of
from cromss.costs.computed import computed
from cromss.costs.crowd import Unmeasured
from cromss.costs.hardware import Hardware, gpu
from cromss.costs.measuring import LEAST, WARM_UP, Clocked
from cromss.costs.pieces import smaller
from cromss.costs.place import place_of, same_work
from cromss.data.store import PatchStore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(worlds):
    return tuple(map(PatchStore.open, worlds))


def test_trials_that_take_the_same_steps_are_measured_once():
    base = resolve(TINY)
    same = [{"seed": 3}, {"optim": {"lr": 0.1, "epochs": 9}}, {"objective": {"alpha": {"end": 0.1}}},
            {"transfer": {"repeats": 5}}, {"probe": {"every": 3}}]  # fmt: skip
    other = [{"optim": {"batch_size": 16}}, {"model": {"fusion": {"kind": "late"}}}, {"pretraining": {"kind": "random"}},
             {"scaling": {"threads": 2}}, {"objective": {"method": {"kind": "plain"}}}]  # fmt: skip
    assert all(same_work(resolve(TINY, change)) == same_work(base) for change in same)
    assert len({same_work(resolve(TINY, change)) for change in other} | {same_work(base)}) == len(other) + 1


def test_a_place_is_what_the_configuration_and_the_machine_say():
    alone = place_of(resolve(TINY), gpu="cpu", concurrent=2, together=3)
    assert (alone.workers, alone.threads, alone.together, alone.concurrent, alone.gpu) == (1, 1, 3, 2, False)
    free = resolve(TINY, {"scaling": {"num_workers": 2, "threads": None}})
    assert place_of(free, gpu="cpu").threads == max(1, os.cpu_count() // 2)
    far = place_of(resolve(TINY, {"scaling": {"num_workers": None}}), gpu="h200", devices=8)
    assert (far.workers, far.gpu, far.on.name) == (8, True, "h200")
    with pytest.raises(ValueError, match="h2000: unknown; did you mean 'h200'"):
        place_of(resolve(TINY), gpu="h2000")


def test_a_gpu_that_is_not_at_hand_is_computed_by_its_data_sheet(stores):
    config = resolve(TINY)
    slow, fast = (computed(config, *stores, gpu(name)) for name in ("a100-40", "h200"))
    assert slow.step.how == fast.step.how == "computed"
    assert slow.counted.flop == fast.counted.flop > 0
    assert slow.counted.seconds(slow.on) > fast.counted.seconds(fast.on)
    assert set(fast.transfers) == {("s1", "frozen"), ("s2", "frozen")}
    halved = computed(config, *stores, gpu("h200"), workers=2)
    assert halved.counted.flop == fast.counted.flop / 2


def test_without_time_to_measure_everything_is_computed(stores, monkeypatch):
    monkeypatch.setattr(calibration, "Crowd", None)  # nothing is started
    [rates] = rates_of([resolve(TINY)], *stores, gpu="cpu", seconds=0)
    assert (rates.step.how, rates.device, rates.gpu) == ("computed", "CPU, 1 thread", False)


class Silent:
    """A crowd that never comes to anything."""

    def __init__(self, size):
        self.size, self.started = size, 5.0

    def __enter__(self):
        raise Unmeasured("no room")

    def __exit__(self, *error):
        pass


def test_a_measurement_that_fails_is_replaced_by_computing_and_said(stores, monkeypatch):
    monkeypatch.setattr(calibration, "Crowd", Silent)
    [rates] = rates_of([resolve(TINY)], *stores, gpu="cpu", seconds=5)
    assert rates.step.how == "computed"
    assert "could not be measured here: no room" in rates.notes


class Scripted(Silent):
    """Answers without measuring: as if a step took a second a pair."""

    asked = []

    def __enter__(self):
        return self

    def ask(self, do, config, stores, **options):
        self.asked.append((do, options))
        return {
            "peaks": {"title": "toy", "flops": 1e10, "bandwidth": 1e10, "memory": 1e10},
            "pretraining": {"step": 8.0, "first": 1.0, "waited": 0.0, "noise": 0.5, "passes": 0.25, "place": 0.0,
                            "probe": 2.0, "probe_data": 0.5, "checkpoint": 0.125, "finish": 0.5},
            "reading": {"reader": 100.0, "storage": 1e6},
            "transfer": {"begin": 1.0, "step": 0.5, "place": 0.1, "encode": 0.0},
        }[do]  # fmt: skip


def test_measured_numbers_go_into_the_rates_as_they_are(stores, monkeypatch):
    monkeypatch.setattr(calibration, "Crowd", Scripted)
    monkeypatch.setattr(Scripted, "asked", [])
    [rates] = rates_of([resolve(TINY)], *stores, gpu="cpu", seconds=10, concurrent=3, together=2)
    assert (rates.step.seconds, rates.step.how) == (8.0, "measured")
    assert (rates.first.seconds, rates.finish.seconds, rates.passes.seconds) == (1.5, 1.0, 0.25)
    assert (rates.reader, rates.reader_how, rates.storage) == (100.0, "measured", 1e6)
    assert rates.transfers["s1", "frozen"].step.seconds == 0.5
    members = {do: options.get("members") for do, options in Scripted.asked}
    assert members["pretraining"] == min(3, calibration.MOST, 2 * os.cpu_count())  # three trials, a worker each
    assert members["transfer"] == min(6, calibration.MOST, 2 * os.cpu_count())


def test_configurations_that_time_did_not_reach_for_are_scaled_by_what_was_counted(stores, monkeypatch):
    monkeypatch.setattr(calibration, "Crowd", Scripted)
    monkeypatch.setattr(calibration, "LEAST", 1e9)  # time for one of them only
    wide = {"optim": {"batch_size": 16}}
    small, large = rates_of([resolve(TINY), resolve(TINY, wide)], *stores, gpu="cpu", seconds=1)
    assert (small.step.how, large.step.how) == ("measured", "computed")
    assert large.step.seconds == pytest.approx(2 * small.step.seconds, rel=0.2)  # twice the pairs


def test_a_step_that_is_too_large_is_measured_in_part_and_said(stores, monkeypatch):
    monkeypatch.setattr(calibration, "Crowd", Scripted)
    monkeypatch.setattr(Scripted, "asked", [])
    slow = Hardware("cpu", "toy", 1e6, 1e6, 1e10)
    monkeypatch.setattr(calibration, "_peaks", lambda crowd, where: slow)
    [rates] = rates_of([resolve(TINY)], *stores, gpu="cpu", seconds=5)
    [pairs] = [options["pairs"] for do, options in Scripted.asked if do == "pretraining"]
    assert pairs == 2
    assert any("measured with 2 of 8 pairs, and scaled by its counted FLOP" in note for note in rates.notes)


def test_a_busy_machine_is_named():
    assert calibration._busy(0.1) == ()
    [warning] = calibration._busy(100.0)
    assert warning.startswith("warning: 100.0 processes wanted")


def test_the_clock_leaves_out_the_warm_up_and_counts_the_wait():
    clock = Clocked(iter(range(WARM_UP + LEAST)), 0.0, CPU)
    assert list(clock) == list(range(WARM_UP + LEAST))
    assert clock.steps == LEAST
    assert clock.elapsed >= clock.waited * clock.elapsed >= 0
    short = Clocked(iter(range(2)), 10.0, CPU)
    assert len(list(short)) == short.steps == 2  # a run of two steps has no others
    endless = Clocked(iter(int, None), 0.05, CPU)
    assert sum(1 for _ in endless) == endless.steps + WARM_UP
    assert 0.05 <= endless.elapsed < 5


def test_a_smaller_store_holds_whole_blocks_of_both_splits(stores):
    downstream = stores[1]
    small = smaller(downstream, {"train": 2, "test": 1})
    assert 2 <= small.places("train") < downstream.places("train")
    assert 1 <= small.places("test") <= downstream.places("test")
    assert downstream.places("train") == 16
