"""The arithmetic of an estimate, worked by hand."""

import pytest

from cromss.config import resolve
from cromss.costs import estimate as estimates
from cromss.costs.amounts import Amounts, TransferAmounts
from cromss.costs.estimate import GROUP, RAY, TASKS, TRACKING, TRIAL, estimate_run, estimate_sweep
from cromss.costs.parts import parts, side_by_side
from cromss.costs.rates import NOTHING, Cost, Rates, TransferRates

RUN = TransferAmounts(trainings=1, steps=10, drawn=80, scored=20)
TODO = Amounts(
    epochs=4, places=100, steps=50, validated=6, probes=2, checkpoints=4, place_bytes=1e3, store_bytes=1e15,
    transfers={("s1", "frozen"): RUN, ("s2", "frozen"): RUN}, repeats=3,
)  # fmt: skip
CONFIG = {"optim": {"batch_size": 8, "epochs": 4}, "data": {"lanes": 4}, "scaling": {"num_workers": 0}}


def measured(seconds, limit=""):
    return Cost(seconds, "measured", limit)


def rates(**changes):
    transfer = TransferRates(measured(1.0), measured(0.5, "compute"), measured(0.01), measured(0.1))
    usual = {
        "device": "toy", "gpu": False, "workers": 1, "together": 2, "devices": 4, "judges": 2, "start": measured(5.0),
        "first": measured(3.0),
        "step": measured(2.0, "compute"), "passes": measured(0.5), "place": measured(0.25), "probe": measured(7.0),
        "checkpoint": measured(1.5, "storage"), "finish": measured(4.0),
        "transfers": {("s1", "frozen"): transfer, ("s2", "frozen"): transfer},
    }  # fmt: skip
    return Rates(**usual | changes)


@pytest.fixture
def todo(monkeypatch):
    monkeypatch.setattr(estimates, "amounts", lambda config, store, downstream: TODO)


def test_a_run_is_amounts_times_rates():
    found = parts(resolve(CONFIG), TODO, rates())
    assert found.steps.seconds == 50 * 2 + 3
    assert found.validation.seconds == 4 * 0.5 + 4 * 6 * 0.25
    assert found.probes.seconds == 2 * 7
    assert found.checkpoints.seconds == 4 * 1.5
    assert found.pretraining.seconds == 103 + 8 + 14 + 6 + 4
    assert found.transfers["s1", "frozen"].seconds == 1 + 10 * 0.5 + 20 * 0.1
    assert found.downstream.seconds == 3 * 8  # six runs, two at a time
    assert found.pretraining.how == "measured"
    assert found.pretraining.limit == "compute"


@pytest.mark.parametrize(
    ("changes", "seconds", "limit"),
    [
        ({}, 2.0, "compute"),
        ({"reader": 10.0}, 2.0, "compute"),  # 8 places: 0.8 s
        ({"reader": 2.0}, 4.0, "decode"),
        ({"reader": 2.0, "workers": 4}, 2.0, "compute"),  # each reads two of the eight
        ({"storage": 1e3}, 8.0, "storage"),
        ({"storage": 1e3, "reader": 0.5}, 16.0, "decode"),
    ],
)
def test_a_step_waits_for_the_slowest_of_arithmetic_decoding_and_storage(changes, seconds, limit):
    found = parts(resolve(CONFIG), TODO, rates(**changes))
    assert (found.step.seconds, found.step.limit) == (seconds, limit)


def test_a_store_that_memory_holds_is_read_from_storage_once():
    held = Amounts(epochs=4, places=100, steps=50, place_bytes=1e3, store_bytes=1e5)
    found = parts(resolve(CONFIG), held, rates(storage=1e3))  # 400 places of 1 kB, a quarter of them from the disk
    assert found.step.seconds == 8 * 0.25


def test_what_a_frozen_encoder_said_is_not_asked_again():
    drawn = TransferAmounts(trainings=1, steps=100, drawn=800, scored=0)
    todo = Amounts(transfers={("s1", "frozen"): drawn, ("s1", "finetuned"): drawn}, repeats=1)
    speed = TransferRates(NOTHING, measured(0.5), measured(0.05), NOTHING)
    of = rates(transfers=dict.fromkeys(todo.transfers, speed))
    kept = {"transfer": {"frozen_batchnorm": "fixed", "epochs": 10, "augment": {"flip": 0, "rotate": 0, "crop": None}}}
    found = parts(resolve(CONFIG, kept), todo, of).transfers
    assert found["s1", "frozen"].seconds == pytest.approx(50 - (800 - 80) * 0.05)  # one view of 80 places
    assert found["s1", "finetuned"].seconds == 50
    adapting = parts(resolve(CONFIG, kept, {"transfer": {"frozen_batchnorm": "adapt"}}), todo, of).transfers
    assert adapting["s1", "frozen"].seconds == 50


def test_runs_side_by_side_take_as_long_as_the_fuller_place():
    costs = [measured(seconds) for seconds in (3.0, 1.0, 1.0, 4.0)]
    assert side_by_side(costs, 1).seconds == 9
    assert side_by_side(costs, 2).seconds == 6  # 3 | 1 1 4
    assert side_by_side(costs, 9).seconds == 4
    assert side_by_side([], 2).seconds == 0


def test_what_is_partly_computed_is_computed():
    assert (measured(1.0) + measured(2.0)).how == "measured"
    assert (measured(1.0, "memory") + Cost(2.0, "computed", "decode")) == Cost(3.0, "computed", "decode")
    assert (measured(1.0, "memory") + measured(2.0)).limit == "memory"


def test_the_table_of_a_run_adds_up_and_is_paid_by_the_device_hour(todo):
    found = estimate_run(resolve(CONFIG), None, None, rates(), price=3.0)
    rows = {row.name: row for row in found.rows}
    start = (1 + RAY + TRACKING + 1 + RAY + TASKS + TRACKING) * 5
    assert rows["start: processes, Ray, MLflow"].seconds == start
    assert rows["run"].seconds == found.seconds == start + 135 + 24
    assert rows["epoch"].each == 135 / 4
    held = [start * 4, 135 * 4, 24 * 2]  # cores: four while it trains, two while it is judged
    assert found.device_hours == rows["run"].device_hours == pytest.approx(sum(held) / 3600)
    assert found.money == pytest.approx(3 * found.device_hours)
    assert rows["one run: s1 frozen"].device_hours == pytest.approx(3 * 8 * 1 / 3600)
    assert (found.unit, found.bottleneck) == ("core-hours", "compute")
    assert rows["training step"].how == "measured"
    assert rows["run"].how == "computed"  # the starts are
    free = estimate_run(resolve(CONFIG), None, None, rates())
    assert free.money is None
    assert all(row.money is None for row in free.rows)


def configs(*seeds, **changes):
    return [resolve(CONFIG, changes, {"seed": seed}) for seed in seeds]


def test_a_sweep_takes_its_slots_in_turn(todo):
    three = configs(0, 1, 2)
    found = estimate_sweep(three, None, None, [rates()] * 3, concurrent=2, devices_per_trial=2, price=10.0)
    trial = 135 + 24
    first, second = TRIAL * 5 + trial, trial  # a process stays for the next trial
    around = (1 + RAY + TRACKING) * 5
    assert found.seconds == first + second + around
    assert found.device_hours == pytest.approx((2 * first + second) * 2 / 3600)
    assert found.money == pytest.approx(10 * found.device_hours)
    assert found.rows[1].number == 3


def test_workers_are_started_for_every_trial(todo):
    two = configs(0, 1, scaling={"num_workers": 1})
    found = estimate_sweep(two, None, None, [rates()] * 2, concurrent=1, devices_per_trial=1)
    trial = 5 * (TRIAL + GROUP + TASKS) + 135 + 24
    assert found.seconds == 2 * trial + (1 + RAY + TRACKING) * 5


def test_a_twins_pretraining_is_waited_for_not_repeated(todo):
    twins = [resolve(CONFIG, {"transfer": {"epochs": epochs}}) for epochs in (3, 4)]
    found = estimate_sweep(twins, None, None, [rates()] * 2, concurrent=2, devices_per_trial=1)
    assert found.seconds == TRIAL * 5 + 135 + 24 + (1 + RAY + TRACKING) * 5
    assert {fact.name: fact.value for fact in found.facts} == {"trials": 2, "pretrainings, each done once": 1}
    later = estimate_sweep(twins, None, None, [rates()] * 2, concurrent=1, devices_per_trial=1)
    assert later.seconds == found.seconds + 24  # taken over: judged again, not trained again


def test_a_trial_given_twice_runs_once(todo):
    found = estimate_sweep(configs(0, 0, 1), None, None, [rates()] * 3, concurrent=1, devices_per_trial=1)
    assert found.rows[1].number == 2
