"""The code that is written beside every file, run as it stands in the real library: the same features as the encoder's."""

import json
import re
import struct

import pytest
import torch
from small_encoders import close, fed, pixels, trained

from cromss.exchange import libraries
from cromss.exchange.formats import FORMATS, Outgoing, format_of
from cromss.networks.encoders import load_encoder
from cromss.networks.scaling import Reflectance
from cromss.sensors import SENTINEL2


@pytest.fixture
def resnet():
    return trained("resnet18")


def loaded(code, folder, monkeypatch, **names):
    """The names that the code leaves behind, run where the file lies."""
    monkeypatch.chdir(folder)
    with torch.no_grad():
        exec(code, names)  # what we wrote ourselves
    return names


@pytest.mark.parametrize(
    ("name", "architecture", "depth"),
    [
        ("safetensors", "tu-test_resnet", 5),
        ("torchvision", "resnet18", 5),
        ("torchvision", "tu-resnet18", 5),
        ("timm", "resnet18", 5),
        ("timm", "tu-test_resnet", 5),
        ("timm", "tu-test_convnext", 3),
        ("timm", "tu-vit_tiny_patch16_224", 5),
        ("smp", "resnet18", 5),
        ("smp", "mit_b0", 4),
        ("smp", "tu-test_convnext", 3),
        ("torchgeo", "resnet18", 5),
        ("huggingface", "tu-test_resnet", 5),
        ("huggingface", "tu-test_convnext", 3),
        ("huggingface", "mit_b0", 5),
    ],
)
def test_the_code_beside_a_file_loads_it_and_computes_the_same(name, architecture, depth, tmp_path, monkeypatch):
    encoder, card = trained(architecture, depth=depth)
    if name == "torchgeo":
        pytest.importorskip("torchgeo", reason="torchgeo is not installed")
    code = format_of(name).write(tmp_path, Outgoing(encoder.state_dict(), card))
    x = fed(card, pixels(card))
    features = loaded(code, tmp_path, monkeypatch, x=x)["features"]
    with torch.no_grad():
        ours = encoder.model(x)[0] if architecture.startswith("tu-vit") else encoder(x)[-1]
    if isinstance(features, list):
        theirs = [one for one in features if one.shape == ours.shape]
        assert theirs, [one.shape for one in features]
        close(ours, theirs[-1])
    else:  # pooled, as a classifier would see them
        close(ours.mean((2, 3)), features)


def test_resnet50_of_13_bands_in_every_library(tmp_path, monkeypatch):
    encoder, card = trained("resnet50", bands=SENTINEL2.bands)
    x = fed(card, pixels(card, batch=1))
    with torch.no_grad():
        ours = encoder(x)[-1].mean((2, 3))
    for name in ("torchvision", "torchgeo"):
        if name == "torchgeo":
            pytest.importorskip("torchgeo", reason="torchgeo is not installed")
        code = format_of(name).write(tmp_path, Outgoing(encoder.state_dict(), card))
        close(ours, loaded(code, tmp_path, monkeypatch, x=x)["features"])


@pytest.mark.parametrize(
    ("name", "architecture", "depth", "said"),
    [
        ("torchvision", "tu-test_convnext", 3, "torchvision has no ResNet called test_convnext"),
        (
            "torchvision",
            "tu-resnet18",
            4,
            "torchvision's resnet18 has other tensors than this encoder of 4 stages: layer4",
        ),
        ("timm", "mit_b0", 5, "timm has no model mit_b0"),
        ("torchgeo", "resnet34", 5, "torchgeo has no model resnet34 to load it; it has resnet18, resnet50, resnet152"),
        ("smp", "tu-vit_tiny_patch16_224", 5, "SMP builds no pyramid of tu-vit_tiny_patch16_224 without cromss"),
    ],
)
def test_an_architecture_that_a_library_lacks_is_refused_by_name(name, architecture, depth, said, tmp_path):
    encoder, card = trained(architecture, depth=depth)
    with pytest.raises(ValueError, match=said):
        format_of(name).write(tmp_path, Outgoing(encoder.state_dict(), card))
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_fit_but_compute_something_else_are_not_written(resnet, tmp_path, monkeypatch):
    import torchvision

    encoder, card = resnet
    real = torchvision.models.get_model

    def with_other_epsilon(*args, **options):
        model = real(*args, **options)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1e-1  # the same names and shapes
        return model

    monkeypatch.setattr(torchvision.models, "get_model", with_other_epsilon)
    with pytest.raises(ValueError, match="torchvision: takes the tensors, but computes other features"):
        libraries.to_torchvision(encoder.state_dict(), card)
    with pytest.raises(ValueError, match="computes other features"):
        format_of("torchvision").write(tmp_path, Outgoing(encoder.state_dict(), card))
    assert list(tmp_path.iterdir()) == []


def metadata(path):
    """The header of a safetensors file, read without the library."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]


def test_the_header_says_in_flat_keys_what_to_feed_and_where_it_comes_from(resnet, tmp_path):
    encoder, card = resnet
    for name in ("safetensors", "torchvision", "timm", "smp"):
        format_of(name).write(tmp_path, Outgoing(encoder.state_dict(), card, licence="cc-by-4.0"))
        said = metadata(tmp_path / FORMATS[name].target)
        assert said["bands"] == "B4,B3,B2,B8"
        assert (said["unit"], said["product"], said["modality"]) == ("DN", "Sentinel-2 L1C", "s2")
        assert (said["scaling"], said["store"], said["licence"]) == ("mean_2std", "abc123", "cc-by-4.0")
        assert [float(one) for one in said["mean"].split(",")] == pytest.approx(
            [1363.52, 1314.87, 1390.78, 2299.90], abs=0.01
        )
        assert [float(one) for one in said["std"].split(",")] == pytest.approx(
            [1138.85, 875.06, 850.35, 1248.43], abs=0.01
        )
        assert json.loads(said["metrics"]) == {}
        assert ("card" in said) == (name == "safetensors")
    state, back = load_encoder(tmp_path / "encoder.safetensors")
    assert back == card
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in state.items())


def test_what_is_not_known_is_empty_or_unknown(tmp_path):
    encoder, card = trained("tu-test_resnet", contract=None, store="", epoch=None, seed=0, scaling=Reflectance())
    format_of("safetensors").write(tmp_path, Outgoing(encoder.state_dict(), card))
    said = metadata(tmp_path / "encoder.safetensors")
    assert (said["store"], said["epoch"], said["data_mean"], said["mean"]) == ("", "", "", "")
    assert said["licence"] == "unknown"
    assert said["seed"] == "0"


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(ValueError, match=re.escape("--to torchvison: unknown format; did you mean 'torchvision'?")):
        format_of("torchvison")
