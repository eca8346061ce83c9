"""Encoders of every family: the same pyramid, the same file, the same heads."""

import pytest
import torch

from cromss.networks.encoders import EncoderCard, build_encoder, load_encoder, save_encoder
from cromss.networks.heads import FPN, PSPNet, load_into
from cromss.sensors import SENTINEL1, SENTINEL2

FAMILIES = ["tu-test_resnet", "efficientnet-b0", "tu-convnext_atto", "mit_b0", "tu-test_vit"]
WITHOUT_STRIDE_2 = ["tu-convnext_atto", "mit_b0", "tu-test_vit"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("channels", [2, 13])
def test_an_encoder_is_a_pyramid_of_halving_maps_at_any_size(name, channels):
    encoder = build_encoder(name, channels).eval()
    for side in (64, 96):
        features = encoder(torch.rand(1, channels, side, side))
        assert [f.shape[1] for f in features] == list(encoder.out_channels)
        assert [f.shape[-1] for f in features] == [side // 2**level for level in range(6)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", [PSPNet(), PSPNet(head_depth=5), FPN(channels=64)], ids=["psp3", "psp5", "fpn5"])
def test_an_encoder_of_any_family_goes_through_its_file_into_every_head(name, head, tmp_path):
    sensor = SENTINEL1 if name == "mit_b0" else SENTINEL2
    torch.manual_seed(0)
    encoder = build_encoder(name, len(sensor.bands)).eval()
    save_encoder(tmp_path / "e.safetensors", encoder,
                 EncoderCard(architecture=name, modality=sensor.name, bands=sensor.bands))  # fmt: skip
    state, card = load_encoder(tmp_path / "e.safetensors")
    network = head.build(card.architecture, len(card.bands), classes=3)
    load_into(network, state)
    image = torch.rand(2, len(card.bands), 64, 64)
    deepest = head.head_depth
    with torch.no_grad():
        torch.testing.assert_close(network.encoder.eval()(image)[deepest], encoder(image)[deepest])
    logits = network.train()(image)
    assert logits.shape == (2, 3, 64, 64)
    logits.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_the_pyramid_of_a_plain_transformer_is_its_last_map_alone():
    encoder = build_encoder("tu-test_vit", 4).eval()
    with torch.no_grad():
        image = torch.rand(2, 4, 64, 64)
        _, nothing, *pyramid = encoder(image)
        (last,) = encoder.model(image)
    assert nothing.shape == (2, 0, 32, 32)
    torch.testing.assert_close(pyramid[2], last)  # its own stride, 16
    torch.testing.assert_close(pyramid[3][..., 0, 0], last[..., :2, :2].mean((2, 3)))
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(pyramid[1], 4).mean(), last.mean(), atol=0.05, rtol=0.1)


def test_a_plain_transformer_has_the_same_weights_at_every_depth():
    shallow, deep = (build_encoder("tu-test_vit", 4, depth).state_dict().keys() for depth in (3, 5))
    assert shallow == deep


@pytest.mark.parametrize("name", WITHOUT_STRIDE_2)
def test_a_head_that_needs_stride_2_says_so_to_a_transformer(name):
    with pytest.raises(ValueError, match=rf"fpn at head_depth=4 reads stride 2, and {name} begins at stride 4"):
        FPN(head_depth=4).build(name, 4, 3)
