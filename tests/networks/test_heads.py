"""Downstream networks: a pretrained encoder under a new head."""

import typing

import pytest
import torch
from torch import nn

from cromss.networks.encoders import build_encoder
from cromss.networks.heads import Head, PSPNet, freeze, load_into

HEADS = typing.get_args(typing.get_args(Head)[0])
AT_DEPTHS = [
    pytest.param(cls(head_depth=depth), id=f"{cls.__name__}-{depth}")
    for cls in HEADS
    for depth in typing.get_args(cls.model_fields["head_depth"].annotation)
]


def step(network, channels=4):
    """One small step that moves whatever is trainable."""
    torch.manual_seed(0)
    logits = network(torch.rand(2, channels, 64, 64))
    logits.square().mean().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


@pytest.mark.parametrize("head", AT_DEPTHS)
@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet"])
def test_every_head_returns_full_size_logits_and_trains_every_parameter(head, encoder):
    network = head.build(encoder, channels=4, classes=8)
    logits = network(torch.rand(2, 4, 64, 64))
    assert logits.shape == (2, 8, 64, 64)
    logits.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize("encoder", ["mit_b0", "tu-convnext_atto"])
def test_heads_take_encoders_that_are_no_resnets(cls, encoder):
    network = cls().build(encoder, channels=4, classes=8)
    assert network(torch.rand(2, 4, 64, 64)).shape == (2, 8, 64, 64)


@pytest.mark.parametrize("head", AT_DEPTHS)
def test_a_full_encoder_loads_into_a_head_of_any_depth(head):
    pretrained = build_encoder("resnet18", 4).state_dict()
    network = head.build("resnet18", channels=4, classes=8)
    load_into(network, pretrained)
    loaded = network.encoder.state_dict()
    assert loaded.keys() <= pretrained.keys()
    assert all(torch.equal(loaded[name], pretrained[name]) for name in loaded)
    assert any(name.startswith("layer4") for name in loaded) == (head.head_depth == 5)


def test_depth_3_of_a_resnet50_is_six_percent_of_it():
    whole = sum(p.numel() for p in build_encoder("resnet50", 13).parameters())
    seen = sum(p.numel() for p in PSPNet().build("resnet50", 13, 8).encoder.parameters())
    assert seen / whole == pytest.approx(0.06, abs=0.005)


def test_an_encoder_pretrained_with_too_few_stages_is_refused():
    shallow = PSPNet(head_depth=3).build("resnet18", 4, 8).encoder.state_dict()
    with pytest.raises(ValueError, match=r"lacks 60 of the encoder's 120 tensors \(layer3.*fewer stages"):
        load_into(PSPNet(head_depth=5).build("resnet18", 4, 8), shallow)


def test_an_encoder_of_other_bands_is_refused_and_nothing_is_copied():
    network = PSPNet().build("resnet18", 4, 8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="trained on 13 input channels, 4 bands are given"):
        load_into(network, build_encoder("resnet18", 13).state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_size_that_the_stride_does_not_divide_names_the_nearest_valid_one():
    with pytest.raises(ValueError, match=r"60x64.*stride 8.*64x64"):  # 60 / 8 = 7.5 rounds to 8
        PSPNet().build("resnet18", 4, 8)(torch.rand(2, 4, 60, 64))


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize("batchnorm", ["adapt", "fixed"])
def test_a_frozen_encoder_keeps_its_weights_through_training(cls, batchnorm):
    network = cls().build("tu-test_resnet", channels=4, classes=8)
    freeze(network.encoder, batchnorm)
    network.train()
    encoder = {name: p.clone() for name, p in network.encoder.named_parameters()}
    others = {name: p.clone() for name, p in network.named_parameters() if p.requires_grad}
    step(network)
    assert all(torch.equal(p, encoder[name]) for name, p in network.encoder.named_parameters())
    assert any(not torch.equal(dict(network.named_parameters())[name], p) for name, p in others.items())
    assert all(name.startswith(("decoder.", "head.")) for name in others)


@pytest.mark.parametrize("architecture", ["resnet18", "tu-test_resnet"])
@pytest.mark.parametrize(("batchnorm", "moves"), [("adapt", True), ("fixed", False)])
def test_frozen_batchnorm_statistics_adapt_or_stay(architecture, batchnorm, moves):
    network = PSPNet().build(architecture, channels=4, classes=8)
    freeze(network.encoder, batchnorm)
    network.eval()
    network.train()
    step(network)
    norms = [module for module in network.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert {bool(norm.running_mean.abs().sum() > 0) for norm in norms} == {moves}
    assert {norm.training for norm in norms} == {moves}
    decoder_norms = [module for module in network.decoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.training for norm in decoder_norms)


def test_fixed_batchnorm_keeps_the_names_of_its_tensors():
    network = PSPNet().build("resnet18", 4, 8)
    names = list(network.state_dict())
    freeze(network.encoder, "fixed")
    freeze(network.encoder, "fixed")
    assert list(network.state_dict()) == names
