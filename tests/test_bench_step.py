import argparse
import json
import subprocess
import sys
import time

import pytest
import torch

from cromss.bench import main
from cromss.benchmarks.step import (
    MARGIN,
    PARTS,
    Clock,
    PeakMemory,
    add_arguments,
    count_gflop,
    random_batch,
    step,
)
from cromss.config import RunConfig, resolve
from cromss.data.augment import augment
from cromss.objective.crossmodal import CrossModalObjective
from cromss.sensors import SENSORS
from cromss.training.loop import Inputs
from cromss.training.pretraining import build, start

CPU = torch.device("cpu")
TINY = ["--encoder", "resnet18", "--size", "64", "--batch", "2", "--steps", "2", "--device", "cpu"]
BANDS = {name: card.bands for name, card in SENSORS.items()}

# What a machine with neither Ray nor MLflow does with `bench step`.
WITHOUT_RAY_AND_MLFLOW = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from cromss.bench import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def config():
    return resolve({"model": {"encoder": "tu-test_resnet"}, "data": {"augment": {"crop": 64}}})


def started(config):
    inputs = Inputs(BANDS, "uint8", config.model.scaling)
    training = start(config, build(config, inputs, classes=9), world=1)
    training.network.train()
    return training, inputs


def test_it_runs_with_neither_ray_nor_mlflow(tmp_path):
    file = tmp_path / "step.json"
    command = [sys.executable, "-c", WITHOUT_RAY_AND_MLFLOW, "step", *TINY, "--threads", "1", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in PARTS)
    report = json.loads(file.read_text())
    assert report["channels"] == {"s1": 2, "s2": 13}
    assert (report["batch"], report["size"], report["steps"], report["threads"]) == (2, 64, 2, 1)
    assert set(report["seconds"]) == set(PARTS)
    assert 0 < report["objective_share"] < 1
    weights_gradients_and_adam = 16 * 25.5e6  # bytes; two resnet18 and a decoder
    assert report["memory_bytes"] > 0.8 * weights_gradients_and_adam


def test_the_parts_are_the_training_step(config):
    batch = random_batch(BANDS, classes=9, pairs=2, size=64 + MARGIN)
    parted, inputs = started(config)
    step(parted, batch, config, inputs, CPU, clock := Clock(CPU))
    whole, _ = started(config)
    cropped = augment(batch, config.data.augment)
    outcome = CrossModalObjective(config.objective)(whole.network(inputs(cropped)), cropped.labels, alpha=0.5, gamma=1)
    outcome.loss.backward()
    whole.optimizer.step()
    assert tuple(clock.seconds) == PARTS
    for (name, ours), theirs in zip(parted.network.named_parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
        assert torch.equal(ours, theirs), name


def test_a_pair_costs_the_published_operations():
    model = RunConfig().model
    network = model.fusion.build(model, {"s1": 2, "s2": 13}, 9)
    assert count_gflop(network, {"s1": 2, "s2": 13}, pairs=1, size=256) == pytest.approx(129.7, abs=0.05)


def test_the_defaults_are_the_papers_network_on_crops_of_256():
    add_arguments(parser := argparse.ArgumentParser())
    options = parser.parse_args([])
    assert (options.encoder, options.size, options.batch) == (RunConfig().model.encoder, 256, 4)
    assert RunConfig().model.fusion.kind == "middle"


def test_the_peak_is_seen_after_it_is_gone():
    with PeakMemory(CPU) as memory:
        passing = torch.ones(200, 2**18)  # 210 MB
        while memory.bytes < 180e6:
            assert passing.sum() > 0
        del passing
        time.sleep(0.1)
    assert 180e6 < memory.bytes < 400e6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "100"], "nearest valid size is 96x96"),
        (["--steps", "0"], "--steps=0: must be 1 or more"),
        (["--encoder", "resnet19"], "resnet19"),
        (["--json", "no/such/folder/step.json"], "there is no folder no/such/folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments, complaint, capsys):
    assert main(["step", *TINY, *arguments]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named(capsys):
    assert main(["step", *TINY, "--device", "cuda"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
