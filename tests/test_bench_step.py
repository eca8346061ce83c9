import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from cromss.bench import MEASUREMENTS, main
from cromss.benchmarks import apart
from cromss.benchmarks.apart import alone, batches_table, measure_batches, switches_of, switches_table
from cromss.benchmarks.everything import SMALL, Measurement, measurement, run_all
from cromss.benchmarks.meters import Clock, PeakMemory, Tally, count_gflop
from cromss.benchmarks.objectives import COMPILED, EAGER, RECIPE, Cost, Objectives
from cromss.benchmarks.roofline import computed, picture, spots
from cromss.benchmarks.sides import BACK, FORWARD, MARGIN, PARTS, SIDES, inputs_of, make_side, random_batch, step
from cromss.benchmarks.step import add_arguments, config_of, measure
from cromss.benchmarks.step_report import Report, Timed, table
from cromss.config import RunConfig, resolve
from cromss.costs.hardware import GPUS, Hardware, measured
from cromss.costs.traffic import compiled_bytes
from cromss.data.augment import augment
from cromss.sensors import SENSORS
from cromss.training.step import Step

CPU = torch.device("cpu")
UNCOMPILED = ["--set", "scaling.compile=none"]
TINY = ["--encoder", "resnet18", "--size", "64", "--batch", "2", "--steps", "2", "--device", "cpu", *UNCOMPILED]
DEMO = ["--fields-of", "demo", "--size", "32", "--batch", "2", "--steps", "2", "--device", "cpu", *UNCOMPILED]
BANDS = {name: card.bands for name, card in SENSORS.items()}

# What a machine with neither Ray nor MLflow does with `bench step`.
WITHOUT_RAY_AND_MLFLOW = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from cromss.bench import MEASUREMENTS, main

sys.exit(main(sys.argv[1:]))
"""


def options_of(*words):
    add_arguments(parser := argparse.ArgumentParser())
    return parser.parse_args(words)


@pytest.fixture
def config():
    return config_of(options_of(*DEMO))


@pytest.fixture
def batch():
    return random_batch(BANDS, classes=9, pairs=2, size=32 + MARGIN)


def in_training(name, config):
    side = make_side(name, config, CPU)
    side.training.network.train()
    return side


# --- the whole ---------------------------------------------------------------------------------------------------------


def test_it_runs_with_neither_ray_nor_mlflow(tmp_path):
    file, png = tmp_path / "step.json", tmp_path / "step.png"
    words = ["step", *TINY, "--threads", "1", "--json", str(file), "--png", str(png)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY_AND_MLFLOW, *words], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in PARTS)
    assert "computed from data sheets, nothing measured" in done.stdout
    assert png.read_bytes().startswith(b"\x89PNG")
    report = json.loads(file.read_text())
    assert done.stdout.splitlines()[-1] == report["headline"]
    assert report["channels"] == {"s1": 2, "s2": 13}
    assert (report["batch"], report["size"], report["steps"], report["threads"]) == (2, 64, 2, 1)
    weights_gradients_and_adam = 16 * 25.5e6  # bytes; two resnet18 and a decoder
    for name, side in report["sides"].items():
        assert set(side["seconds"]) == set(report["moved"][name]) == set(PARTS)
        assert 0 < side["objective_share"] < 1
        assert report["memory_bytes"][name] > 0.8 * weights_gradients_and_adam
    assert report["losses"]["ours"] == pytest.approx(report["losses"]["recipe"], rel=1e-5)
    assert set(report["sides"]) == set(SIDES)


def test_both_sides_take_the_same_step(config, batch):
    """Same weights, same pixels, same maths: after a step the networks are alike, but for rounding and Adam's sign of it."""
    ours, recipe = in_training("ours", config), in_training("recipe", config)
    losses = [float(step(side, batch, CPU, Clock(CPU)).loss) for side in (ours, recipe)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    pairs = zip(ours.training.network.parameters(), recipe.training.network.parameters(), strict=True)
    for own, theirs in pairs:
        scale = theirs.grad.abs().max()
        assert (own.grad - theirs.grad).abs().max() <= 1e-3 * scale + 1e-7


def test_the_parts_are_the_training_step(config, batch):
    parted = in_training("ours", config)
    step(parted, batch, CPU, clock := Clock(CPU))
    whole = in_training("ours", config)
    Step(whole.training, config, inputs_of(config), 9, CPU)(batch, epoch=config.optim.epochs - 1)
    assert tuple(clock.seconds) == PARTS
    parameters = whole.training.network.parameters()
    for (name, ours), theirs in zip(parted.training.network.named_parameters(), parameters, strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("side", SIDES)
def test_a_side_is_measured_alone(side, config):
    found = measure(config, 2, 1, CPU, side)
    assert (found.side, found.precision) == (side, "float32")
    assert 0 < found.step_seconds < 60
    assert found.memory_bytes > 0


def test_the_recipe_knows_no_channels_last_and_no_fused_adam(config, batch):
    side = in_training("recipe", config)
    images = side.inputs(augment(batch, config.data.augment))
    assert all(image.is_contiguous() for image in images.values())
    assert all(weight.is_contiguous() for weight in side.training.network.parameters())
    assert not side.training.optimizer.defaults["fused"]


def test_the_defaults_are_the_papers_network_and_the_recipes_maths_on_crops_of_256():
    options = options_of()
    config = config_of(options)
    assert config.model == RunConfig().model
    assert config.model.fusion.kind == "middle"
    assert (config.data.augment.crop, options.batch) == (256, 4)
    assert config.objective.per_class
    assert config.objective.consistency.kind == "cross_entropy"


def test_late_fusion_can_be_asked_for():
    assert config_of(options_of("--fusion", "late")).model.fusion.kind == "late"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "100"], "nearest valid size is 96x96"),
        (["--steps", "0"], "--steps=0: must be 1 or more"),
        (["--encoder", "resnet19"], "resnet19"),
        (["--json", "no/such/folder/step.json"], "there is no folder no/such/folder"),
        (["--set", "scaling.channels_first=true"], "channels_last"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments, complaint, capsys):
    assert main(["step", *TINY, *arguments]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named(capsys):
    assert main(["step", *TINY, "--device", "cuda"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err


# --- instruments -------------------------------------------------------------------------------------------------------


def test_a_pair_costs_the_published_operations():
    model = RunConfig().model
    network = model.fusion.build(model, {"s1": 2, "s2": 13}, 9)
    assert count_gflop(network, {"s1": 2, "s2": 13}, pairs=1, size=256) == pytest.approx(129.7, abs=0.05)


def test_the_peak_is_seen_after_it_is_gone():
    with PeakMemory(CPU) as memory:
        passing = torch.ones(200, 2**18)  # 210 MB
        while memory.bytes < 180e6:
            assert passing.sum() > 0
        del passing
        time.sleep(0.1)
    assert 180e6 < memory.bytes < 400e6


def test_what_operators_move_is_counted_by_hand():
    """1,000 float32: a sum of two reads 8,000 bytes and writes 4,000; views, broadcasts and patterns cost nothing."""
    own, other, one = torch.ones(10, 100), torch.ones(10, 100), torch.ones(1)

    def moved(work):
        tally = Tally()
        with tally.part("it"):
            work()
        return tally.bytes["it"]

    assert moved(lambda: own + other) == 12_000
    assert moved(lambda: own.T.view(10, 10, 10).unsqueeze(0)) == 0
    assert moved(lambda: own + one.expand(10, 100)) == 8_004
    assert moved(lambda: own.copy_(other)) == 8_000
    assert moved(lambda: own.zero_()) == 4_000
    assert moved(lambda: torch.zeros_like(own)) == 4_000
    assert moved(lambda: torch.empty(10, 100)) == 0


def test_what_compiled_kernels_move_is_counted_forward_and_backward():
    """sum((2x + 1)^2) fused: x is read and a number written; backward reads x and writes its gradient."""
    weights = torch.ones(1000, 256, requires_grad=True)

    @torch.compile
    def squared(x):
        return (2 * x + 1).square().sum()

    moved = compiled_bytes(lambda: squared(weights).backward())
    assert 3 * weights.nbytes <= moved < 3.2 * weights.nbytes


def test_what_a_machine_reaches_is_measured():
    hardware = measured(seconds=0.01)
    assert hardware.measured
    assert 1e8 < hardware.flops < 1e14
    assert 1e8 < hardware.bandwidth < 1e13
    assert "threads" in hardware.title


def test_of_two_measurements_the_higher_peaks_stand():
    slow = Hardware("cpu", "this CPU", 1e11, 2e10, 1e10, measured=True)
    assert slow.better(replace(slow, flops=3e11, bandwidth=1e10)) == replace(slow, flops=3e11)


# --- the objective alone -------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(config, batch):
    """Both sides, and what they saw in a first step."""
    sides = {name: in_training(name, config) for name in SIDES}
    return sides, {name: step(side, batch, CPU, Clock(CPU)) for name, side in sides.items()}


def test_our_objective_agrees_with_the_recipes_on_equal_logits(steps):
    objectives = Objectives(*steps, CPU)
    objectives.time()
    costs = objectives.done()
    assert costs[EAGER].loss_error < 1e-5
    assert costs[EAGER].gradient_error < 1e-4
    assert costs[RECIPE].loss_error == costs[RECIPE].gradient_error == 0
    assert costs[RECIPE].seconds > 0
    assert costs[COMPILED].why_not == "switched off: scaling.compile=none"


def test_other_maths_do_not_pass_for_the_recipes(steps):
    sides, seen = steps
    objective = sides["ours"].config.objective.model_copy(update={"per_class": False})
    other = sides["ours"].config.model_copy(update={"objective": objective})
    costs = Objectives({**sides, "ours": replace(sides["ours"], config=other)}, seen, CPU).costs
    assert costs[EAGER].loss_error > 1e-4


def test_where_nothing_compiles_the_row_says_why(steps, monkeypatch):
    sides, seen = steps
    scaling = sides["ours"].config.scaling.model_copy(update={"compile": "auto"})
    willing = replace(sides["ours"], config=sides["ours"].config.model_copy(update={"scaling": scaling}))
    monkeypatch.setattr("cromss.benchmarks.objectives.compiled_bytes", _no_compiler)
    costs = Objectives({**sides, "ours": willing}, seen, CPU).costs
    assert costs[COMPILED].why_not == "torch.compile cannot: No working C++ compiler found"


def _no_compiler(work):
    raise RuntimeError("\nNo working C++ compiler found\n\nSet CXX\n")


# --- apart ---------------------------------------------------------------------------------------------------------------


def found_alone(seconds, memory):
    return {"step_seconds": seconds, "memory_bytes": memory, "memory_means": "counted"}


def test_a_process_of_its_own_is_asked_for_the_same_thing(monkeypatch):
    asked = []

    def answer(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, f"noise\n{json.dumps(found_alone(1, 2))}\n", "")

    monkeypatch.setattr(apart.subprocess, "run", answer)
    options = options_of(*DEMO, "--threads", "1")
    assert alone(options, "recipe", batch=7, sets=("scaling.compile=all",)) == found_alone(1, 2)
    (command,) = asked
    again = options_of(*command[command.index("step") + 1 :])
    assert (again.side, again.batch, again.threads, again.fields_of, again.size) == ("recipe", 7, 1, "demo", 32)
    assert again.sets == ["scaling.compile=none", "scaling.compile=all"]  # the later one wins


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (2, "bench: resnet19: unknown", pytest.raises(ValueError, match="^resnet19: unknown")),
        (1, "ZeroDivisionError: x", pytest.raises(RuntimeError, match="ZeroDivisionError")),
    ],
)
def test_what_another_process_says_is_passed_on(status, said, expected, monkeypatch):
    monkeypatch.setattr(
        apart.subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, status, "", f"...\n{said}\n")
    )
    with expected:
        alone(options_of(*DEMO), "ours")


def test_batches_that_do_not_fit_are_said_and_the_others_measured(monkeypatch):
    def answer(options, side, batch):
        return {"failed": "does not fit into the memory"} if batch > 100 else found_alone(batch / 110, 3e9)

    monkeypatch.setattr(apart, "alone", answer)
    a100 = Hardware("x", "x", 14.3e12, 1e12, 40e9)
    rows = measure_batches(options_of("--batches", "32,128"), gflop=130, hardware=a100)
    assert rows[0]["of the paper"] == pytest.approx(2.0)  # 110 pairs/s, the paper's GPU made 55
    assert rows[0]["of the peak"] == pytest.approx(1.0)
    lines = batches_table(rows).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[n, s] for n in ("32", "128") for s in SIDES]
    assert lines[-1].endswith("does not fit into the memory")


def test_every_switch_is_turned_away_from_where_it_stands():
    turned = switches_of(resolve({}), 4, CPU)
    assert ("scaling.channels_last", "false") in turned
    assert ("scaling.micro_batch", "2") in turned
    assert [value for key, value in turned if key == "scaling.compile"] == ["objective", "networks", "all"]
    assert not any(key in apart.CUDA_SWITCHES for key, _ in turned)
    on_gpu = switches_of(resolve({"scaling": {"channels_last": False}}), 1, torch.device("cuda"))
    assert ("scaling.branches", "streams") in on_gpu
    assert ("scaling.double_buffer", "false") in on_gpu
    assert ("scaling.channels_last", "true") in on_gpu
    assert ("optim.precision", "float32") in on_gpu
    assert not any(key == "scaling.micro_batch" for key, _ in on_gpu)
    for key, value in (*turned, *on_gpu):
        config_of(options_of("--set", f"{key}={value}"))


def test_switches_are_compared_with_the_configuration():
    rows = [
        {"name": "as configured", "failed": None, "seconds": 2.0, "pairs/s": 2.0, "memory_bytes": 1e9},
        {"name": "scaling.compile=all", "failed": None, "seconds": 1.0, "pairs/s": 4.0, "memory_bytes": 0.5e9},
        {"name": "scaling.compile=networks", "failed": "no compiler"},
    ]
    lines = switches_table(rows).splitlines()
    assert lines[2].split()[-6:] == ["2.00", "x", "0.50", "GB", "0.50", "x"]
    assert lines[3].endswith("no compiler")


# --- the picture ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def report():
    recipe = Timed("float32", dict.fromkeys(PARTS, 0.1) | {FORWARD: 1.0, BACK: 2.0})
    ours = Timed("float32", {part: seconds / 2 for part, seconds in recipe.seconds.items()})
    moved = dict.fromkeys(PARTS, 10**8)
    return Report(
        fusion="middle", encoder="resnet50", channels={"s1": 2, "s2": 13}, classes=9, batch=4, size=256, device="cpu",
        threads=2, load=0.0, torch="2", steps=3, compile="auto", hardware=Hardware("cpu", "this CPU", 3e11, 2e10, 1e10, True),
        gflop=600.0, sides={"recipe": recipe, "ours": ours},
        moved={"recipe": moved, "ours": moved}, losses={"recipe": 8.5, "ours": 8.5},
        objectives={
            RECIPE: Cost(0.4, 10**9, 300, 10**8), EAGER: Cost(0.2, 5 * 10**8, 300, 10**8), COMPILED: Cost(why_not="no g++")
        },
        memory_bytes={"recipe": 4 * 10**9, "ours": 3 * 10**9}, memory_means="counted",
    )  # fmt: skip


def test_the_fastest_step_stands_with_its_own_parts():
    slow, fast = dict.fromkeys(PARTS, 2.0), dict.fromkeys(PARTS, 1.0)
    timed = Timed.of("float32", [slow, fast, slow | {FORWARD: 0.1}])
    assert timed.seconds == fast
    assert timed.step_seconds == len(PARTS)
    assert timed.objective_share == pytest.approx(2 / len(PARTS))


def test_the_headline_has_the_ratios(report):
    assert report.headline == (
        "objective (eager): 2.0 x as fast, 2.0 x fewer bytes; step: 2.00 x as fast; peak memory: 0.75 x"
    )
    assert "ours, compiled         no g++" in table(report)
    compiled = {**report.objectives, COMPILED: Cost(0.1, 10**7)}
    assert replace(report, objectives=compiled).headline.startswith(
        "objective (compiled): 4.0 x as fast, 100.0 x fewer"
    )


def test_points_stand_at_their_operations_a_byte_and_a_second(report):
    found = {spot.label: spot for spot in spots(report)}
    assert found["networks, ours"].intensity == pytest.approx(600e9 / 2e8)
    assert found["networks, ours"].rate == pytest.approx(600e9 / 1.5)
    assert found["whole step, ours"].rate == pytest.approx(600e9 / 1.7)
    assert found["objective, recipe"].rate == pytest.approx(1e8 / 0.4)
    assert "objective, ours, compiled" not in found  # it was not measured
    words = [text.get_text() for axes in picture(report).axes for text in axes.texts]
    assert any("this CPU, measured" in text for text in words)
    assert [text.partition(":")[0] for text in words[1:]] == ["A100 40 GB, computed", "H200 141 GB, computed"]


def test_the_computed_floor_is_the_papers_job_at_the_data_sheets_peak():
    """1.33e18 FLOP at 312 and 989 TFLOP/s: 1.19 and 0.37 hours."""
    lines = computed(config_of(options_of()), pairs=4).splitlines()
    assert "nothing measured" in lines[0]
    a100, h200 = lines[-2:]
    assert a100.startswith(GPUS["a100-40"].title)
    assert f" {312e12 / 129.73e9:,.0f} " in a100
    assert " 1.19 / " in a100
    assert " 0.37 / " in h200


# --- all -----------------------------------------------------------------------------------------------------------------

WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text({text!r}); pathlib.Path(sys.argv[2]).touch()"


def a_measurement(name, code, folder):
    files = (folder / f"{name}.json", folder / f"{name}.png")
    return Measurement(name, (sys.executable, "-c", code, *map(str, files)), files)


def test_a_measurement_that_fails_is_named_and_the_others_go_on(tmp_path, capfd):
    says = WRITES.format(text='{"headline": "1,000 patches/s"}')
    codes = {"first": "raise SystemExit(3)", "second": says, "third": "pass"}
    (tmp_path / "third.json").write_text("{}")  # of an earlier run
    assert run_all([a_measurement(name, code, tmp_path) for name, code in codes.items()]) == 1
    lines = capfd.readouterr().out.splitlines()[-4:]
    assert lines[0].split() == ["first", "FAILED", "exit", "status", "3"]
    assert lines[1].endswith("1,000 patches/s")
    assert lines[2].endswith("wrote no third.json and no third.png")
    assert lines[3] == "1 of 3 measured; without first, third"


def test_when_all_are_measured_the_status_is_0(tmp_path):
    assert run_all([a_measurement("only", WRITES.format(text="{}"), tmp_path)]) == 0


@pytest.mark.parametrize("name", SMALL)
def test_all_asks_every_measurement_for_what_it_understands(name, tmp_path):
    """The words are parsed, nothing is run."""
    module, _ = MEASUREMENTS[name]
    module.add_arguments(parser := argparse.ArgumentParser())
    words = measurement(name, tmp_path).command
    options = parser.parse_args(words[words.index(name) + 1 :])
    assert options.json == tmp_path / f"{name}.json"


def test_every_measurement_is_one_of_all():
    assert {*SMALL, "all"} == set(MEASUREMENTS)
