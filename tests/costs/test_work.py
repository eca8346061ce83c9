"""Counting: by hand, against the known numbers of the paper's networks, and against its floors."""

import pytest
import torch
from torch import nn

from cromss.config import resolve
from cromss.costs import work
from cromss.costs.computed import PERFECT, Efficiency
from cromss.costs.hardware import Hardware, gpu
from cromss.costs.work import Operator, Work, counted_operators

DEVICE = Hardware("toy", "toy", flops=100.0, bandwidth=10.0, memory=1e9)
PAIRS = 128
STEPS = 100 * 102_756 / PAIRS  # 100 epochs of the paper's 103,793 locations less 1 % for validation, one worker


@pytest.fixture(scope="module")
def papers():
    return work.training_step(resolve({}), {"s1": 2, "s2": 13}, 9, PAIRS, 256)


def test_a_convolution_is_counted_as_by_hand():
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False, device="meta")
    image = torch.empty(2, 3, 16, 16, device="meta", requires_grad=True)
    with torch.no_grad():
        [forward], saved = counted_operators(lambda: layer(image))
    inside, weights, outside = 2 * 3 * 256, 8 * 3 * 9, 2 * 8 * 256
    assert forward == Operator(flop=2 * outside * 3 * 9, bytes=4 * (inside + weights + outside))
    assert saved == 0

    def both():
        z = layer(image)
        torch.autograd.backward(z, torch.empty_like(z))

    operators, saved = counted_operators(both)
    assert sum(one.flop for one in operators) == 3 * forward.flop  # the gradients of the image and of the weights
    assert saved == 4 * inside  # the image; the weights are kept anyway


def test_the_roofline_takes_the_longer_of_arithmetic_and_bytes_operator_by_operator():
    both = Work((Operator(200.0, 10.0), Operator(0.0, 30.0), Operator(100.0, 40.0)), other_bytes=20.0)
    assert both.flop == 300
    assert both.bytes == 100
    assert both.seconds(DEVICE) == 2 + 3 + 4 + 2
    assert both.seconds(DEVICE, compute=0.5) == 4 + 3 + 4 + 2
    assert both.seconds(DEVICE, memory=0.5) == 2 + 6 + 8 + 4
    assert both.fused_bytes == 70
    assert both.seconds(DEVICE, fused=True) == 2 + 4 + 2
    assert both.limit(DEVICE) == "memory"
    assert both.limit(DEVICE, compute=0.1) == "compute"


def test_starting_kernels_bounds_what_is_tiny():
    tiny = Work((Operator(1.0, 1.0),) * 50)
    assert Efficiency(1, 1, launch=1.0).seconds(tiny, DEVICE).limit == "launches"
    assert Efficiency(1, 1, launch=1.0).seconds(tiny, DEVICE).seconds == 50
    assert PERFECT.seconds(tiny, DEVICE).seconds == pytest.approx(5)


def test_the_papers_step_has_its_published_weights_and_arithmetic(papers):
    assert papers.parameters == pytest.approx(56.06e6, rel=1e-3)
    assert papers.flop / PAIRS == pytest.approx(129.7e9, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "peak", "eager", "fused"), [("a100-40", 1.19, 3.47, 1.55), ("h200", 0.37, 1.12, 0.50)]
)
def test_the_papers_job_comes_out_at_the_known_floors(papers, name, peak, eager, fused):
    on = gpu(name)
    assert papers.flop / on.flops * STEPS / 3600 == pytest.approx(peak, rel=0.05)
    assert papers.seconds(on) * STEPS / 3600 == pytest.approx(eager, rel=0.05)
    assert papers.seconds(on, fused=True) * STEPS / 3600 == pytest.approx(fused, rel=0.06)  # two figures are known
    assert papers.limit(on) == "memory"


def test_a_frozen_encoder_costs_its_forward_pass_only():
    config = resolve({"model": {"encoder": "tu-test_resnet"}, "transfer": {"head": {"kind": "pspnet"}}})
    frozen, tuned = (work.transfer_step(config, mode, 13, 10, 4, 64) for mode in ("frozen", "finetuned"))
    scoring, encoding = work.scoring_step(config, 13, 10, 4, 64), work.encoding_step(config, 13, 4, 64, head=True)
    head = scoring.flop - encoding.flop
    assert frozen.flop < tuned.flop
    assert frozen.parameters < tuned.parameters
    assert frozen.saved < tuned.saved
    assert frozen.flop <= encoding.flop + 3 * head
    assert tuned.flop == pytest.approx(3 * scoring.flop, rel=0.1)  # the image needs no gradient


def test_work_grows_with_the_batch():
    config = resolve({"model": {"encoder": "tu-test_resnet"}})
    one, two = (work.training_step(config, {"s1": 2, "s2": 13}, 9, pairs, 64) for pairs in (2, 4))
    assert two.flop == 2 * one.flop
    assert one.bytes < two.bytes < 2 * one.bytes  # weights are read once however many pairs there are
    assert two.saved == pytest.approx(2 * one.saved, rel=0.01)
