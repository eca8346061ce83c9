"""One optimizer step: nothing is asked of the device, a loss that is not finite moves nothing, pieces change nothing."""

import datetime
import gc
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cromss.config import resolve
from cromss.data.augment import augment
from cromss.data.patch import Batch
from cromss.networks.scaling import MeanStd
from cromss.objective.crossmodal import CrossModalObjective
from cromss.objective.fused import FusedObjective
from cromss.training.pretraining import build, start
from cromss.training.state import Inputs
from cromss.training.step import Step, _pieces, objective_of
from cromss.training.uploads import uploaded

CPU = torch.device("cpu")
BANDS = {"s1": ("VV", "VH"), "s2": ("B2", "B3", "B4")}
TINY = {
    "model": {"encoder": "tu-test_resnet", "depth": 3, "decoder_channels": [8, 8, 8]},
    "data": {"augment": {"crop": 24}, "lanes": 4},
    "optim": {"batch_size": 4, "epochs": 10},
}


def batch(rows=4, size=26):
    draw = torch.Generator().manual_seed(0)
    images = {
        name: torch.randint(256, (rows, len(bands), size, size), generator=draw, dtype=torch.uint8)
        for name, bands in BANDS.items()
    }
    labels = torch.randint(5, (rows, size, size), generator=draw, dtype=torch.uint8)
    valid = torch.ones(rows, size, size, dtype=torch.bool)
    valid[0, :9] = False
    keys = torch.randint(2**62, (rows,), generator=draw)
    return Batch(images, BANDS, labels, [f"p{row}" for row in range(rows)], torch.zeros(rows, dtype=torch.int64), keys,
                 valid=valid)  # fmt: skip


class Convolutions(nn.Module):
    """A network whose samples do not know of each other; `dropout` in front."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({name: nn.Conv2d(len(bands), 5, 3, padding=1) for name, bands in BANDS.items()})
        self.dropout = nn.Dropout(dropout)
        self.seen = []

    def forward(self, images):
        logits = {name: layer(self.dropout(images[name])) for name, layer in self.layers.items()}
        self.seen.append(logits["s2"].detach())
        return logits


def stepped(network, *layers, micro_batch=None, steps=2, data=None):
    config = resolve(TINY, *layers)
    training = start(config, network, world=1)
    step = Step(training, config, Inputs(BANDS, "uint8", MeanStd()), 5, CPU, micro_batch)
    outcomes = [step(data or batch(), epoch=number) for number in range(steps)]
    step.finite.check()
    return training, outcomes


def unet():
    return build(resolve(TINY), Inputs(BANDS, "uint8", MeanStd()), classes=5)


@pytest.mark.parametrize("fusion", ["middle", "late"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"objective": {"per_class": True, "scope": "global"}},
        {"objective": {"smoothing": {"kind": "none"}, "method": {"kind": "plain"}}},
        {"objective": {"method": {"kind": "jocor"}}},
        {"objective": {"method": {"kind": "elr"}}},
    ],
)
def test_nothing_is_read_back_from_the_device_and_no_shape_depends_on_the_data(fusion, how):
    # Parameters without numbers cannot change their layout in place.
    config = resolve(TINY, {"model": {"fusion": {"kind": fusion}}, "scaling": {"channels_last": False}}, how)
    with FakeTensorMode(
        allow_non_fake_inputs=True
    ):  # tensors without numbers: .item(), .cpu(), nonzero(), mask indexing raise
        inputs = Inputs(BANDS, "uint8", MeanStd())
        networks = [config.model.fusion.build(config.model, {"s1": 2, "s2": 3}, 5) for _ in range(2)]
        training = start(
            resolve(config.model_dump(), {"objective": {"method": {"kind": "plain"}}}), networks[0], world=1
        )
        if config.objective.method.averages:  # built, because a tensor without numbers cannot be copied
            training.average = networks[1].requires_grad_(False).eval()
        images = {name: torch.zeros(4, len(bands), 26, 26, dtype=torch.uint8) for name, bands in BANDS.items()}
        labels, keys = torch.zeros(4, 26, 26, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
        fake = Batch(images, BANDS, labels, list("abcd"), keys, keys, valid=torch.ones(4, 26, 26, dtype=torch.bool))
        outcome = Step(training, config, inputs, 5, CPU)(fake, epoch=3)
        assert outcome.logits["s2"].shape == (4, 5, 24, 24)
        assert all(parameter.grad is not None for parameter in training.network.parameters())


def test_the_detector_of_the_test_above_detects():
    with FakeTensorMode(), pytest.raises(Exception, match="nonzero"):
        torch.zeros(3)[torch.zeros(3) > 0]


@pytest.mark.parametrize("fused", [True, False])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_named_at_the_next_look(fused):
    network = Convolutions()
    config = resolve(TINY, {"scaling": {"fused_adam": fused}})
    training = start(config, network, world=1)
    step = Step(training, config, Inputs(BANDS, "uint8", MeanStd()), 5, CPU)
    step(batch(), epoch=0)
    with torch.no_grad():
        network.layers["s1"].bias[0] = float("nan")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def twice():  # without a fused optimizer it is named at once, else when the next step begins
        return [step(batch(), epoch=0) for _ in range(2)]

    named = r"step 1: the loss is not finite \(nan on this worker\).*p0, p1, p2, p3"
    with pytest.raises(FloatingPointError, match=named):
        twice()
    torch.testing.assert_close(network.state_dict(), before, equal_nan=True)


def test_after_it_a_finite_step_moves_nothing_either():
    network = Convolutions()
    training = start(resolve(TINY), network, world=1)
    step = Step(training, resolve(TINY), Inputs(BANDS, "uint8", MeanStd()), 5, CPU)
    step.finite.admit(torch.tensor(float("inf")), 0, ["a"])
    with pytest.raises(FloatingPointError):
        step.finite.check()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    step(batch(), epoch=0)
    torch.testing.assert_close(network.state_dict(), before)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cromss", "elr", "jocor"])
def test_in_pieces_the_objective_still_sees_the_whole_batch(micro_batch, kind):
    """Same loss, thresholds, gradients and weights as in one go, where the network's samples are independent."""
    how = {"objective": {"method": {"kind": kind}}}
    whole, expected = stepped(Convolutions(), how)
    parted, found = stepped(Convolutions(), how, micro_batch=micro_batch)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other.parts.loss, one.parts.loss)
        torch.testing.assert_close(other.parts.label_weights, one.parts.label_weights)
    torch.testing.assert_close(parted.network.state_dict(), whole.network.state_dict())


def test_both_passes_over_a_piece_drop_the_same_paths():
    network = Convolutions(dropout=0.5)
    stepped(network, micro_batch=2, steps=1)
    first, second = network.seen[:2], network.seen[2:]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(other, one)
    assert not torch.equal(first[0], first[1])


def test_running_statistics_see_a_piece_once():
    whole, _ = stepped(unet(), micro_batch=2, steps=1)
    reference = start(resolve(TINY), unet(), world=1).network
    reference.train()
    images = Inputs(BANDS, "uint8", MeanStd())(augment(batch(), resolve(TINY).data.augment))
    with torch.no_grad():
        for rows in (slice(0, 2), slice(2, 4)):
            reference({name: image[rows] for name, image in images.items()})
    for (name, found), expected in zip(whole.network.named_buffers(), reference.buffers(), strict=True):
        if "num_batches" not in name:
            torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_the_averaged_network_follows_the_weights():
    """Step by step, the mean that a running mean of decay d is; the first steps count alike (1 - 1 / (step + 1) < d)."""
    decay = 0.7
    config = resolve(TINY, {"objective": {"method": {"kind": "elr", "decay": decay}}})
    training = start(config, Convolutions(), world=1)
    step = Step(training, config, Inputs(BANDS, "uint8", MeanStd()), 5, CPU)
    expected = [weight.detach().clone() for weight in training.network.parameters()]
    for number in range(6):
        step(batch(), epoch=0)
        kept = min(decay, 1 - 1 / (number + 2))
        for mean, weight in zip(expected, training.network.parameters(), strict=True):
            mean.mul_(kept).add_(weight.detach(), alpha=1 - kept)
    for found, mean in zip(training.average.parameters(), expected, strict=True):
        torch.testing.assert_close(found, mean)
        assert not found.requires_grad


def test_the_averaged_network_drops_nothing_and_normalises_by_the_batch():
    network = unet()
    training = start(resolve(TINY, {"objective": {"method": {"kind": "elr"}}}), network, world=1)
    images = Inputs(BANDS, "uint8", MeanStd())(augment(batch(), resolve(TINY).data.augment))
    network.train()
    with torch.no_grad():
        before = {name: buffer.clone() for name, buffer in training.average.named_buffers()}
        torch.testing.assert_close(training.average(images), network(images))
        for name, buffer in training.average.named_buffers():
            if "num_batches" not in name:
                assert torch.equal(buffer, before[name])
    assert start(resolve(TINY), network, world=1).average is None


def test_only_a_method_with_a_closed_form_is_compiled(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)  # what objective_of sets is taken back
    monkeypatch.setattr("cromss.training.step.FusedObjective", partial(FusedObjective, compiled=False))
    for kind, form in (("cromss", FusedObjective), ("co_teaching", FusedObjective), ("gce", CrossModalObjective)):
        config = resolve({"scaling": {"compile": "objective"}, "objective": {"method": {"kind": kind}}})
        assert isinstance(objective_of(config, CPU), form)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    own = list(_pieces(batch(), 2))[rank]
    for micro_batch in (None, 1):
        config = resolve(TINY, {"objective": {"scope": "global"}})
        training = start(config, Convolutions(), world=2)
        step = Step(training, config, Inputs(BANDS, "uint8", MeanStd()), 5, CPU, micro_batch)
        for number in range(2):
            step(own, epoch=number)
        step.finite.check()
        torch.save(training.module.state_dict(), f"{folder}/{rank}-{micro_batch}.pt")
    del training, step
    gc.collect()  # the wrapper, itself a cycle, holds the group: a thread of gloo's that outlives Python aborts the process
    dist.destroy_process_group()


def test_workers_and_pieces_together_train_the_same_network(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    whole, _ = stepped(Convolutions(), {"objective": {"scope": "global"}})
    for rank in (0, 1):
        for micro_batch in (None, 1):
            found = torch.load(tmp_path / f"{rank}-{micro_batch}.pt", weights_only=True)
            torch.testing.assert_close(found, whole.network.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "how", [{"channels_last": False}, {"fused_adam": False}, {"double_buffer": False}, {"bucket_mb": 1}]
)
def test_the_switches_change_speed_not_numbers(how):
    plain, expected = stepped(unet())
    switched, found = stepped(unet(), {"scaling": how})
    torch.testing.assert_close(found[0].parts.loss, expected[0].parts.loss, rtol=1e-4, atol=0)
    for name, tensor in plain.network.state_dict().items():
        torch.testing.assert_close(switched.network.state_dict()[name], tensor, rtol=1e-2, atol=2e-3)


def test_on_a_cpu_batches_arrive_as_they_are():
    batches = [batch(), batch(rows=2)]
    for given, there in zip(batches, uploaded(iter(batches), CPU), strict=True):
        assert there.ids == given.ids
        assert torch.equal(there.images["s2"], given.images["s2"])


def test_streams_and_compiled_networks_are_refused_together():
    with pytest.raises(ValueError, match=r"scaling.branches=streams: a compiled network .*compile the objective alone"):
        resolve({"scaling": {"branches": "streams", "compile": "all"}})


@pytest.mark.parametrize("value", [0, -3, "most"])
def test_a_micro_batch_that_cannot_be_is_refused_by_name(value):
    with pytest.raises(
        ValueError, match=rf"scaling\.micro_batch={value}: must be auto, or a number of pairs from 1 on"
    ):
        resolve({"scaling": {"micro_batch": value}})


def test_auto_compiles_on_a_gpu_only():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    auto, streams = resolve({}).scaling, resolve({"scaling": {"branches": "streams"}}).scaling
    assert not auto.compiles("objective", cpu)
    assert auto.compiles("objective", gpu)
    assert auto.compiles("networks", gpu)
    assert streams.compiles("objective", gpu)
    assert not streams.compiles("networks", gpu)
    assert resolve({"scaling": {"compile": "objective"}}).scaling.compiles("objective", cpu)
