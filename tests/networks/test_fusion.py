"""How the modalities share a network."""

import copy
import typing

import pytest
import torch
from torch import nn

from cromss import sensors
from cromss.networks.encoders import Backbone
from cromss.networks.fusion import Fusion, Late, Middle, Single
from cromss.settings import validate

FUSIONS = typing.get_args(typing.get_args(Fusion)[0])
CHANNELS = {"s1": 2, "s2": 13}
TINY = Backbone(encoder="tu-test_resnet", decoder_channels=(16, 16, 8, 8, 8))


def images(modalities=("s1", "s2"), side=64):
    generator = torch.Generator().manual_seed(0)
    channels = CHANNELS | {"dem": 1}
    return {name: torch.rand(2, channels[name], side, side, generator=generator) for name in modalities}


VARIANTS = [
    pytest.param(cls(**option), id="-".join([cls.__name__, *option.values()]))
    for cls in FUSIONS
    for option in (
        [{"decoder_norm": norm} for norm in typing.get_args(cls.model_fields["decoder_norm"].annotation)]
        if "decoder_norm" in cls.model_fields
        else [{}]
    )
]


@pytest.mark.parametrize("fusion", VARIANTS)
@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet", "mit_b0", "tu-convnext_atto", "tu-test_vit"])
def test_every_fusion_of_any_encoder_returns_full_size_logits_and_trains_every_parameter(fusion, encoder):
    backbone = TINY.model_copy(update={"encoder": encoder})
    network = fusion.build(backbone, CHANNELS, classes=5)
    logits = network(images())
    assert tuple(logits) == fusion.modalities
    assert all(each.shape == (2, 5, 64, 64) for each in logits.values())
    sum(each.square().sum() for each in logits.values()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("fusion", VARIANTS)
@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet", "mit_b0", "efficientnet-b0"])
def test_a_shallow_backbone_holds_no_layer_that_never_runs(fusion, encoder):
    backbone = Backbone(encoder=encoder, depth=3, decoder_channels=(16, 8, 8))
    network = fusion.build(backbone, CHANNELS, classes=5)
    sum(each.square().sum() for each in network(images(side=72)).values()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("fusion", "millions"), [(Middle(), 56.06), (Late(), 65.07)])
def test_parameter_counts_are_the_papers(fusion, millions):
    network = fusion.build(Backbone(), CHANNELS, classes=9)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    encoders = [sum(p.numel() for p in network.encoder(name).parameters()) / 1e6 for name in ("s1", "s2")]
    assert encoders == pytest.approx([23.50, 23.54], abs=0.005)


@pytest.mark.parametrize("fusion", VARIANTS)
def test_the_encoder_of_a_modality_is_the_one_that_sees_its_image(fusion):
    network = fusion.build(TINY, CHANNELS, classes=3)
    for name in fusion.modalities:
        seen = []
        handle = network.encoder(name).register_forward_hook(lambda _m, args, _o, seen=seen: seen.append(args[0]))
        given = images()
        network(given)
        handle.remove()
        assert len(seen) == 1
        assert seen[0] is given[name]


def test_middle_shares_decoder_and_head_and_late_shares_nothing():
    def reached_from(network, modality):
        network.zero_grad()
        network.logits(modality, images()[modality]).square().sum().backward()
        return {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    middle, late = Middle().build(TINY, CHANNELS, 3), Late().build(TINY, CHANNELS, 3)
    shared = reached_from(middle, "s1") & reached_from(middle, "s2")
    assert shared == {name for name, _ in middle.named_parameters() if name.startswith(("decoder.", "head."))}
    assert not reached_from(late, "s1") & reached_from(late, "s2")


def test_late_is_two_single_networks():
    torch.manual_seed(0)
    late = Late().build(TINY, CHANNELS, 3).eval()
    single = Single(modality="s1").build(TINY, CHANNELS, 3).eval()
    single.networks["s1"].load_state_dict(late.networks["s1"].state_dict())
    assert torch.equal(single(images())["s1"], late(images())["s1"])


def test_sentinel_1_passes_the_shared_decoder_first():
    network = Middle().build(TINY, CHANNELS, 3)
    seen = {}
    for name in CHANNELS:  # a pass of one modality alone leaves 0.1 (momentum) of its mean in fresh statistics
        alone = copy.deepcopy(network)
        alone.logits(name, images()[name])
        seen[name] = first_decoder_norm(alone).running_mean
    network(images())
    torch.testing.assert_close(first_decoder_norm(network).running_mean, 0.9 * seen["s1"] + seen["s2"])
    assert not torch.allclose(seen["s1"], seen["s2"])


def first_decoder_norm(network):
    return next(module for module in network.decoder.modules() if isinstance(module, nn.BatchNorm2d))


def per_modality_pair():
    torch.manual_seed(0)
    shared = Middle().build(TINY, CHANNELS, 3)
    torch.manual_seed(0)
    return shared, Middle(decoder_norm="per_modality").build(TINY, CHANNELS, 3)


def test_per_modality_statistics_change_nothing_in_training():
    shared, split = per_modality_pair()
    assert sum(p.numel() for p in shared.parameters()) == sum(p.numel() for p in split.parameters())
    for name, logits in shared(images()).items():
        assert torch.equal(logits, split(images())[name])


def test_per_modality_statistics_normalise_each_modality_by_its_own_in_evaluation():
    shared, split = per_modality_pair()
    alone = {name: copy.deepcopy(shared) for name in CHANNELS}  # the oracle: a decoder that met one modality only
    for _ in range(3):
        split(images())
        for name, network in alone.items():
            network.logits(name, images()[name])
    split.eval()
    for name, network in alone.items():
        torch.testing.assert_close(split(images())[name], network.eval().logits(name, images()[name]))


def test_per_modality_statistics_travel_in_the_state_dict():
    _, split = per_modality_pair()
    split(images())
    fresh = Middle(decoder_norm="per_modality").build(TINY, CHANNELS, 3)
    fresh.load_state_dict(split.state_dict())
    assert torch.equal(fresh.eval()(images())["s2"], split.eval()(images())["s2"])


@pytest.mark.parametrize("fusion", [Middle, Late])
def test_three_modalities_work_once_the_table_has_a_third(fusion, monkeypatch):
    monkeypatch.setitem(sensors.SENSORS, "dem", sensors.SENTINEL1)
    chosen = fusion(modalities=("s1", "s2", "dem"))
    network = chosen.build(TINY, CHANNELS | {"dem": 1}, classes=3)
    assert tuple(network(images(("dem", "s2", "s1")))) == ("s1", "s2", "dem")


def test_building_does_not_touch_the_fresh_batchnorm_statistics():
    network = Middle().build(TINY, CHANNELS, 3)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 0 and norm.running_mean.abs().sum() == 0 for norm in norms)
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


@pytest.mark.parametrize("fusion", VARIANTS)
def test_a_size_that_the_stride_does_not_divide_names_the_nearest_valid_one(fusion):
    network = fusion.build(TINY, CHANNELS, classes=3)
    with pytest.raises(ValueError, match=r"70x90.*stride 32.*64x96"):
        network({"s1": torch.rand(2, 2, 70, 90), "s2": torch.rand(2, 13, 70, 90)})


@pytest.mark.parametrize(
    ("cls", "layer", "message"),
    [
        (Middle, {"modalities": ["s1"]}, "fusion.kind=single"),
        (Late, {"modalities": ["s1", "s3"]}, "modality 's3': unknown; valid: s1, s2"),
        (Single, {"modality": "s4"}, "modality 's4': unknown"),
        (Backbone, {"depth": 4}, r"decoder_channels=.*depth is 4; for example \[256, 128, 64, 32\]"),
        (Backbone, {"encoder": "resnt50"}, "encoder 'resnt50': unknown; did you mean 'resnet50'"),
    ],
)
def test_mistakes_are_named_with_the_way_out(cls, layer, message):
    with pytest.raises(ValueError, match=message):
        validate(cls, layer)


def test_channels_of_a_missing_modality_are_named():
    with pytest.raises(ValueError, match="no channels for modality s1; the data has s2"):
        Middle().build(TINY, {"s2": 13}, 3)


def test_the_encoder_of_an_unknown_modality_lists_the_known():
    with pytest.raises(ValueError, match=r"no modality 's1'.*s2"):
        Single().build(TINY, CHANNELS, 3).encoder("s1")
