import argparse
import json
import multiprocessing
import subprocess
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from cromss.bench import main
from cromss.benchmarks import scaling
from cromss.benchmarks.scaling import add_arguments, plan_of
from cromss.benchmarks.scaling_law import Law, duration, fit, power, volume
from cromss.benchmarks.scaling_picture import draw
from cromss.benchmarks.scaling_point import LiveMemory, Point, Setting, modalities
from cromss.benchmarks.scaling_report import AXES, Measured, Report, efficiency, growth, words
from cromss.benchmarks.scaling_workers import Crew
from cromss.data.augment import augment
from cromss.objective.crossmodal import CrossModalObjective
from cromss.sensors import SENSORS
from cromss.training.pretraining import build, start

CPU = torch.device("cpu")
TINY = ["--encoder", "tu-test_resnet", "--size", "32", "--batch", "4", "--steps", "2", "--device", "cpu"]
SETTING = Setting("tu-test_resnet", pairs=2, size=32, classes=9, modalities=("s1", "s2"))


def options(*arguments):
    add_arguments(parser := argparse.ArgumentParser())
    return parser.parse_args([*TINY, *arguments])


def points(values, seconds, memory=None, fusion="middle"):
    """Points of made numbers; the objective takes a tenth of a step."""
    return tuple(
        Measured(value, fusion, (each,) * 3, (each / 10,) * 3, int(memory or 1e6))
        for value, each in zip(values, seconds, strict=True)
    )


def workers_left():
    """Processes that a crew would have started and that are still there."""
    children = psutil.Process().children(recursive=True)
    there = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]  # which has no command line, either
    spawned = [child for child in there if "spawn_main" in " ".join(child.cmdline())]
    return [*multiprocessing.active_children(), *spawned]


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.93, -0.8])
def test_a_power_is_recovered(exponent):
    x = np.array([1, 2, 4, 8])
    law = fit(x, 0.3 * x**exponent, work=1)
    assert law.exponent == pytest.approx(exponent)
    assert law.constant == pytest.approx(0, abs=1e-9)
    assert law(16) == pytest.approx(0.3 * 16.0**exponent)
    assert law.error < 1e-9


@pytest.mark.parametrize(("constant", "factor", "work"), [(0.2, 0.001, 1), (0.02, 3e-6, 2), (0.1, 0.4, -1)])
def test_a_constant_beside_the_work_is_recovered(constant, factor, work):
    x = np.array([2, 9, 19, 44])
    law = fit(x, constant + factor * x.astype(float) ** work, work)
    assert (law.constant, law.factor, law.exponent) == pytest.approx((constant, factor, work))
    assert law.error < 1e-9


def test_noise_of_a_few_per_cent_moves_the_slope_by_a_few_hundredths():
    rng, x = np.random.default_rng(0), np.array([1, 2, 4, 8])
    slopes = [power(x, 0.3 * x * rng.normal(1, 0.03, 4)).exponent for _ in range(200)]
    assert np.mean(slopes) == pytest.approx(1, abs=0.01)
    assert np.abs(np.array(slopes) - 1).max() < 0.08


def test_no_step_starts_with_less_than_nothing():
    x = np.array([1, 2, 4, 8])
    assert fit(x, 0.1 * x - 0.05, work=1).constant == 0


def test_the_error_is_the_worst_point():
    law = fit([1, 2, 4], [1, 2 * 1.1, 4], work=1)
    assert law.error == pytest.approx(max(abs(law(x) / cost - 1) for x, cost in ((1, 1), (2, 2.2), (4, 4))))
    assert 0.03 < law.error < 0.1


def test_laws_read_as_people_write_them():
    assert Law(0, 1, 0.974, 0).formula("pairs", duration) == "pairs^0.97"
    assert Law(0.02, 0.0014, 1, 0).formula("classes", duration) == "20 ms + 1.4 ms x classes"
    assert Law(1.5, 15e-6, 2, 0).formula("pixels", duration) == "1.5 s + 15 us x pixels^2"
    assert Law(3e9, 5e8, -1, 0).formula("workers", volume) == "3 GB + 500 MB / workers"


def test_an_axis_is_a_sentence():
    sentence = words(growth("batch", points([1, 2, 4, 8], [0.1 * n**0.93 for n in (1, 2, 4, 8)])))
    assert sentence.startswith("batch: a step grows as pairs^0.93 (within 0%); from 1 to 8 pairs 6.9 x")
    assert words(growth("batch", points([4], [1.0]))) == "batch: one point is no law"


def test_efficiency_is_the_speed_of_workers_over_their_number():
    one = growth("workers", points([2, 4, 8], [1.0, 0.5, 0.5]))
    assert [efficiency(one, point) for point in one.points] == [1, 1, 0.5]
    assert "8 workers are 2.00 x as fast as 2, efficiency 50%" in words(one)


def test_late_fusion_stands_beside_the_law():
    middle, late = points([1, 2, 3], [1.0, 2.0, 3.0]), points([2], [50.0], fusion="late")
    assert growth("modalities", (*middle, *late)).laws == growth("modalities", middle).laws


# --- points -----------------------------------------------------------------------------------------------------------


def test_a_timed_step_is_the_training_step():
    timed = Point(SETTING, CPU)  # has warmed up: two steps
    plain = start(timed.config, build(timed.config, timed.inputs, classes=9), world=1)
    plain.network.train()
    for _ in range(2):
        batch = augment(timed.batch, timed.config.data.augment)
        objective = CrossModalObjective(timed.config.objective)
        outcome = objective(plain.network(timed.inputs(batch)), batch.labels, alpha=0.5, gamma=1)
        plain.optimizer.zero_grad()
        outcome.loss.backward()
        plain.optimizer.step()
    for (name, ours), theirs in zip(timed.training.network.named_parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    sample = timed()
    assert 0 < sample.objective < sample.step


def test_live_memory_is_what_a_hand_counts():
    network = nn.Linear(10, 5)
    with LiveMemory(network) as memory:
        assert memory.bytes == 4 * (10 * 5 + 5)
        kept = torch.ones(1000)  # 4,000 bytes
        passing = kept * 2  # and 4,000
        view = passing[:10]  # and nothing
        del passing, view
        torch.ones(500)  # and 2,000, after 4,000 have gone
    assert memory.peak == 220 + 8000
    assert len(kept) == 1000


def test_live_memory_holds_what_autograd_keeps():
    layers = nn.Sequential(*(nn.Sigmoid() for _ in range(4)))
    x = torch.zeros(1000, requires_grad=True)
    with LiveMemory(layers) as memory:
        y = layers(x)  # each sigmoid keeps its output for the way back
    assert memory.bytes == 4 * 4000
    assert y.shape == x.shape


def test_memory_grows_with_the_batch_by_its_activations():
    # From where activations outweigh the gradients, which are there only when most of them have gone.
    few, more, most = (Point(replace(SETTING, pairs=pairs, size=64), CPU).memory_bytes for pairs in (4, 8, 16))
    assert most - more == pytest.approx(2 * (more - few), rel=0.01)


def test_modalities_beyond_the_sensors_are_stand_ins_and_go_again():
    before = dict(SENSORS)
    with modalities(4) as names:
        assert names == ("s1", "s2", "stand-in-3", "stand-in-4")
        logits = Point(replace(SETTING, modalities=names), CPU).training.network
        assert logits.modalities == names
    assert before == SENSORS
    with modalities(1) as alone:
        assert alone == ("s2",)


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_fails_is_heard_and_none_is_left_behind():
    broken = replace(SETTING, classes=-1)  # no network has so many
    with pytest.raises(RuntimeError, match="(?s)worker 0 of 1 failed:.*random_batch"), Crew(broken, 1, 1, CPU):
        pytest.fail("a crew without its network")
    assert workers_left() == []


def test_a_worker_that_vanishes_is_missed():
    with Crew(SETTING, 1, 1, CPU) as crew:
        assert crew().step > 0
        crew.processes[0].kill()
        with pytest.raises(RuntimeError, match="worker 0 of 1 ended with exit code -9"):
            crew()
    assert workers_left() == []


# --- from end to end --------------------------------------------------------------------------------------------------


def test_every_axis_is_measured_told_written_and_drawn(tmp_path, capsys):
    values = {"batches": "2,4", "sizes": "32,64", "classes": "2,44", "modalities": "1,2", "workers": "1,2"}
    chosen = options(*(word for name, value in values.items() for word in (f"--{name}", value)), "--threads", "1",
                     "--json", str(tmp_path / "laws.json"), "--png", str(tmp_path / "laws.png"))  # fmt: skip
    threads = torch.get_num_threads()
    try:
        assert chosen.run(chosen) == 0
    finally:
        torch.set_num_threads(threads)
    assert workers_left() == []

    found, told = json.loads((tmp_path / "laws.json").read_text()), capsys.readouterr().out
    assert [one["axis"] for one in found["growths"]] == list(AXES)
    axes = {one["axis"]: one for one in found["growths"]}
    for name, text in zip(AXES, values.values(), strict=True):
        rows = [row for row in axes[name]["points"] if row["fusion"] != "late"]
        assert [row["value"] for row in rows] == [int(value) for value in text.split(",")]
        assert all(0 < row["objective_seconds"] < row["step_seconds"] for row in rows)
        assert all(len(row["step"]) == len(row["objective"]) == 2 for row in rows)
        assert axes[name]["words"] in told
    memory = {name: [row["memory_bytes"] for row in one["points"]] for name, one in axes.items()}
    assert all(memory[name] == sorted(memory[name]) for name in ("batch", "size", "classes", "modalities"))
    assert [row["fusion"] for row in axes["modalities"]["points"]] == ["single", "middle", "late"]
    assert axes["workers"]["points"][0]["efficiency"] == 1
    assert "2 (late)" in told
    assert (tmp_path / "laws.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_one_axis_with_one_point_is_a_picture(tmp_path):
    report = Report(SETTING, (growth("workers", points([1], [0.2])),), 3, "float32", "cpu", 1, 1, 0.0, "2", "counted")
    draw(report, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000


def test_the_defaults_halve_and_double_the_base_point():
    plan = plan_of(options("--size", "128"))
    assert plan.values["batch"] == (1, 2, 4, 8)
    assert plan.values["size"] == (64, 96, 128, 192, 256)
    assert plan.values["classes"] == (2, 9, 19, 44)
    assert plan.values["modalities"] == (1, 2, 3)
    assert plan.base.modalities == ("s1", "s2")
    assert plan_of(options("--axes", "size", "--sizes", "96,64")).values == {"size": (64, 96)}


@pytest.mark.parametrize(
    ("batch", "cores", "workers"), [(4, 8, (1, 2, 4)), (4, 2, (1, 2)), (6, 8, (1, 2)), (8, 1, (1,))]
)
def test_workers_are_as_many_as_cores_and_share_the_batch_evenly(batch, cores, workers, monkeypatch):
    monkeypatch.setattr(scaling.os, "cpu_count", lambda: cores)
    assert plan_of(options("--size", "64", "--batch", str(batch))).values["workers"] == workers


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--axes", "batch,sise"],
            "--axes=batch,sise: 'sise' is none; did you mean 'size'? valid: batch, size, classes",
        ),
        (["--axes", ","], "name at least one of batch, size"),
        (
            ["--size", "100"],
            "--size=100: must be divisible by the stride 32 of tu-test_resnet; the nearest valid size is 96",
        ),
        (["--sizes", "64,72"], "--sizes=72: must be divisible by the stride 32"),
        (["--size", "32", "--batches", "1,2"], "--batches=1: one pair of 32 pixels leaves BatchNorm a single value"),
        (["--size", "32", "--workers", "4"], "--workers=4: one pair of 32 pixels leaves BatchNorm a single value"),
        (["--batches", "0,4"], "--batches=0: must be 1 or more"),
        (["--classes", "1"], "--classes=1: must lie between 2 and 255"),
        (["--classes", "256"], "--classes=256: must lie between 2 and 255"),
        (["--modalities", "0"], "--modalities=0: must be 1 or more"),
        (["--workers", "0"], "--workers=0: must be 1 or more"),
        (["--workers", "-2"], "--workers=-2: must be 1 or more"),
        (["--workers", "3"], "--workers=3: 4 pairs cannot be shared evenly; choose a divisor of them"),
        (["--steps", "0"], "--steps=0: must be 1 or more"),
        (["--threads", "0"], "--threads=0: must be 1 or more"),
        (["--encoder", "resnet19"], "resnet19"),
        (["--json", "no/such/folder/laws.json"], "there is no folder no/such/folder"),
        (["--png", "no/such/folder/laws.png"], "there is no folder no/such/folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(arguments, complaint):
    refused = options(*arguments)
    with pytest.raises(ValueError) as error:
        refused.run(refused)
    assert complaint in str(error.value)


def test_a_mistake_is_one_line_of_the_verb(capsys):
    assert main(["scaling", *TINY, "--workers", "3"]) == 2
    assert capsys.readouterr().err.startswith("bench: --workers=3: 4 pairs cannot be shared evenly")


def test_neither_ray_nor_mlflow_is_wanted():
    rooms = ", ".join(f"cromss.benchmarks.scaling{room}" for room in ("", "_workers", "_picture"))
    check = f"import sys, {rooms}; sys.exit(' '.join({{'ray', 'mlflow'}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_numbers_are_whole_and_comma_separated(capsys):
    with pytest.raises(SystemExit):
        options("--batches", "2,four")
    assert "'2,four': whole numbers, comma-separated" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="--device=cuda: torch finds no GPU here"):
        plan_of(options("--device", "cuda"))
