"""Nobody waits for a CPU that will never come; an unchanged pretraining is not repeated."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cromss.config import resolve
from cromss.costs.hardware import gpu_memory
from cromss.trials import cache
from cromss.trials.resources import DRIVER_CPUS, budget


@given(st.sampled_from([1, 2, 3, 4, 8, 16, 96]), st.sampled_from([None, 1, 2, 4]), st.sampled_from(["ray", "direct"]))
def test_what_the_trials_take_together_never_exceeds_the_cluster(cpus, workers, reader):
    config = resolve({"scaling": {"num_workers": workers}, "data": {"reader": {"kind": reader}}})
    reader_cpus = 0 if reader == "direct" else (0.25 if cpus <= 4 else 1)
    needed = (workers or min(2, cpus)) * ((0.5 if cpus <= 4 else 1) + reader_cpus) + DRIVER_CPUS
    if needed > cpus:
        with pytest.raises(ValueError, match="the cluster has"):
            budget(config, cpus, 0)
        return
    found = budget(config, cpus, 0)
    training = DRIVER_CPUS + found.share.all_cpus
    judging = DRIVER_CPUS + found.together * found.transfer_cpus
    assert found.concurrent >= 1
    assert found.concurrent * max(training, judging) <= cpus + 1e-6


def test_two_cpus_are_enough_for_two_workers_with_their_ray_readers():
    found = budget(resolve(), 2, 0)
    assert (found.share.workers, found.share.cpus, found.share.reader_cpus, found.concurrent) == (2, 0.5, 0.25, 1)


def test_four_gpus_make_one_trial_of_four_workers_that_share_them_downstream():
    found = budget(resolve(), 96, 4)
    assert (found.share.workers, found.concurrent, found.together, found.transfer_gpus) == (4, 1, 8, 0.5)


def test_small_downstream_runs_share_a_gpu_as_its_memory_allows():
    small = resolve({"model": {"encoder": "resnet18"}, "transfer": {"batch_size": 4}})
    types = {"CPU": 96.0, "GPU": 4.0, "accelerator_type:A100": 1.0}
    assert (gpu_memory(types), gpu_memory({"GPU": 1.0})) == (40e9, None)
    found = budget(small, 96, 4, gpu_memory(types))
    assert (found.together, found.transfer_gpus) == (4 * 8, 1 / 8)
    assert budget(small, 96, 4, 2e9).together < 4 * 8


def test_what_cannot_fit_is_refused_by_name():
    with pytest.raises(ValueError, match=r"scaling.num_workers=4: .* the cluster has 2, enough for 2"):
        budget(resolve({"scaling": {"num_workers": 4}}), 2, 0)
    with pytest.raises(ValueError, match=r"scaling.num_workers=8: the cluster has 4 GPUs"):
        budget(resolve({"scaling": {"num_workers": 8}}), 96, 4)


def test_the_address_depends_on_what_matters_and_on_nothing_else():
    world = ["store", "sources", "2.13.0", "cpu"]

    def key(*layers):
        return cache.trial_key(resolve(*layers), world, "downstream")

    assert key() == key({"scaling": {"num_workers": 2}})
    assert key() != key({"seed": 1})
    assert key() != key({"transfer": {"lr": 1.0}})
    assert cache.pretraining_key(resolve(), world) == cache.pretraining_key(resolve({"transfer": {"lr": 1.0}}), world)
    assert cache.pretraining_key(resolve(), world) != cache.pretraining_key(resolve(), ["other", *world[1:]])


def test_a_twin_in_flight_is_waited_for_and_its_work_taken_over(tmp_path):
    first, second = tmp_path / "trials" / "a", tmp_path / "trials" / "b"
    first.mkdir(parents=True)
    second.mkdir()
    entered, seen = threading.Event(), []

    def twin():
        entered.wait()
        with cache.claimed(tmp_path, "key", second) as finished:
            seen.append(finished)

    thread = threading.Thread(target=twin)
    thread.start()
    with cache.claimed(tmp_path, "key", first) as finished:
        assert finished is None
        entered.set()
        time.sleep(0.3)
        assert seen == []  # the twin waits
        (first / "encoders").mkdir()
        (first / "encoders" / "s2.safetensors").write_bytes(b"weights")
        (first / "pretraining.json").write_text('{"final": {}}')
    thread.join(timeout=10)
    assert seen == [first]
    assert cache.bring(first, second) == {"final": {}}
    assert (second / "encoders" / "s2.safetensors").read_bytes() == b"weights"


def test_a_claim_left_by_a_killed_process_is_taken_over(tmp_path, monkeypatch):
    claim = tmp_path / "pretrainings" / "key.json"
    claim.parent.mkdir()
    claim.write_text(str(tmp_path / "dead"))
    monkeypatch.setattr(cache, "STALE", 0.0)
    time.sleep(0.05)
    with cache.claimed(tmp_path, "key", tmp_path / "alive") as finished:
        assert finished is None
        assert claim.read_text() == str(tmp_path / "alive")
    assert not claim.exists()  # nothing was finished: the next one starts afresh
