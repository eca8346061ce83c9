"""Encoders: built by name, kept with their card, imported from other people's checkpoints."""

import argparse
import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from cromss.networks.encoders import (
    EncoderCard,
    build_encoder,
    import_encoder,
    load_encoder,
    save_encoder,
)
from cromss.networks.scaling import Reflectance, ZScore
from cromss.sensors import SENTINEL2

ARCHITECTURE = "resnet18"


def random_state(channels, seed=0):
    torch.manual_seed(seed)
    return build_encoder(ARCHITECTURE, channels).state_dict()


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


S1, S2 = random_state(2), random_state(13, seed=1)
DECODER = {"net.decoder.blocks.0.weight": torch.ones(1), "net.segmentation_head.0.bias": torch.ones(1)}
PROJECTION = {"module.encoder_q.fc.0.weight": torch.ones(1)}
CHECKPOINTS = {
    "middle": (under("net.encoder1.", S1) | under("net.encoder.", S2) | DECODER, {"s1": S1, "s2": S2}),
    "late": (under("net.model1.encoder.", S1) | under("net.model2.encoder.", S2) | DECODER, {"s1": S1, "s2": S2}),
    "single-s1": (under("net.encoder.", S1) | DECODER, {"s1": S1}),
    "single-s2": ({"state_dict": under("module.net.encoder.", S2) | DECODER, "epoch": 7}, {"s2": S2}),
    "moco": (
        {
            "state_dict": under("module.encoder_q.", S2) | under("module.encoder_k.", random_state(13, 2)) | PROJECTION,
            "arch": "resnet18",
        },
        {"s2": S2},
    ),
    "dino": (
        {
            "student": under("module.backbone.", random_state(13, 3)),
            "teacher": under("module.backbone.", S2) | {"module.head.mlp.0.weight": torch.ones(1)},
            "args": argparse.Namespace(arch="resnet18"),
        },
        {"s2": S2},
    ),
    "torchvision": (S2 | {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}, {"s2": S2}),
}
CASES = [
    pytest.param(name, modality, id=f"{name}-{modality}") for name in CHECKPOINTS for modality in CHECKPOINTS[name][1]
]


def import_all_bands(path, modality="s2", **options):
    return import_encoder(path, modality=modality, bands="all", architecture=ARCHITECTURE, **options)


@pytest.mark.parametrize(("name", "modality"), CASES)
def test_every_known_layout_yields_exactly_the_encoder_of_the_modality(name, modality, tmp_path):
    content, encoders = CHECKPOINTS[name]
    torch.save(content, tmp_path / "weights.pth")
    state, card = import_all_bands(tmp_path / "weights.pth", modality)
    assert same(state, encoders[modality])
    assert (card.modality, card.architecture, card.method) == (modality, ARCHITECTURE, "weights")


def test_names_are_torchvisions():
    import torchvision

    theirs = {name for name in torchvision.models.resnet50().state_dict() if not name.startswith("fc.")}
    assert build_encoder("resnet50", 3).state_dict().keys() == theirs


def test_foreign_safetensors_are_read_and_the_stated_scaling_is_kept(tmp_path):
    save_file(S2, tmp_path / "weights.safetensors")
    state, card = import_all_bands(tmp_path / "weights.safetensors", scaling=Reflectance(), method="MoCo")
    assert same(state, S2)
    assert (card.scaling, card.method, card.bands) == (Reflectance(), "MoCo", SENTINEL2.bands)


def test_half_precision_and_old_checkpoints_without_batch_counters_are_completed(tmp_path):
    old = {name: t.half() if t.is_floating_point() else t for name, t in S2.items() if "num_batches" not in name}
    torch.save(old, tmp_path / "old.pt")
    state, _ = import_all_bands(tmp_path / "old.pt")
    assert {name: t.dtype for name, t in state.items()} == {name: t.dtype for name, t in S2.items()}


def test_other_bands_than_the_checkpoints_name_both_sides(tmp_path):
    torch.save(S2, tmp_path / "s2.pth")
    with pytest.raises(ValueError, match=r"s2\.pth was trained on 13 input channels, 3 bands are given \(B4, B3, B2\)"):
        import_encoder(tmp_path / "s2.pth", modality="s2", bands="3", architecture=ARCHITECTURE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({k: v for k, v in S2.items() if not k.startswith("layer4")}, r"90 of 120 tensors matched; missing: layer4\."),
        (S2 | {"layer5.weight": torch.ones(1)}, "120 of 120 tensors matched; missing: none; unknown: layer5.weight"),
        (under("somewhere.else.", S2), r"0 of 120 .*prefixes tried: 'net\.encoder\.', .*'module\.encoder_q\.'"),
        ({"epoch": 3}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
    ],
)
def test_what_does_not_match_is_counted_and_named(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        import_all_bands(tmp_path / "weights.pth")


def test_another_architecture_is_refused(tmp_path):
    torch.save(S2, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="120 of 216 tensors matched"):
        import_encoder(tmp_path / "weights.pth", modality="s2", bands="all", architecture="resnet34")


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_never_runs_code(tmp_path):
    torch.save({"state_dict": S2, "extra": Trap(tmp_path / "owned")}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="could run its code"):
        import_all_bands(tmp_path / "trap.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "name", ["absent.pth", "absent.safetensors", "garbage.pth", "garbage.safetensors", "empty.pth"]
)
def test_unreadable_files_are_named(name, tmp_path):
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"no checkpoint at all" * 20)
    with pytest.raises(ValueError, match=name):
        import_all_bands(tmp_path / name)


# --- our own files ----------------------------------------------------------------------------------------------------

CARD = EncoderCard(
    architecture=ARCHITECTURE,
    modality="s2",
    bands=("B4", "B3", "B2"),
    scaling=ZScore(),
    method="CromSS-midF",
    store="abc",
    epoch=99,
    seed=1,
    extra={"note": "grüße"},
)


def test_an_encoder_returns_with_its_card(tmp_path):
    encoder = build_encoder(ARCHITECTURE, 3).to(memory_format=torch.channels_last)
    save_encoder(tmp_path / "new" / "s2.safetensors", encoder, CARD)
    state, card = load_encoder(tmp_path / "new" / "s2.safetensors")
    assert card == CARD
    assert same(state, encoder.state_dict())


def test_the_card_is_json_in_the_header_that_anyone_can_read(tmp_path):
    save_encoder(tmp_path / "e.safetensors", build_encoder(ARCHITECTURE, 3), CARD)
    data = (tmp_path / "e.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert json.loads(header["__metadata__"]["card"])["scaling"] == {"kind": "zscore"}


def test_a_failed_write_leaves_the_previous_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "e.safetensors"
    save_encoder(path, build_encoder(ARCHITECTURE, 3), CARD)
    before = path.read_bytes()

    def disk_full(state, aside, metadata):
        aside.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("cromss.networks.encoders.save_file", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_encoder(path, build_encoder(ARCHITECTURE, 3), CARD)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_a_card_is_no_encoder_of_ours(tmp_path):
    save_file(S2, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="has no encoder card"):
        load_encoder(tmp_path / "foreign.safetensors")


def test_a_card_knows_the_bands_of_its_modality():
    with pytest.raises(ValueError, match="Sentinel-1 has no band 'B4'"):
        EncoderCard(architecture=ARCHITECTURE, modality="s1", bands=("B4",))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", "did you mean 'resnet50'"),
        ("tu-convnext_ato", "did you mean 'tu-convnext_atto'"),
        ("timm-resnest14d", "tu-resnest14d"),
        ("tu-vit_small_patch14_dinov2", "patches of 14 pixels have no place among strides"),
        ("tu-beit_base_patch16_224", "takes images of one size only"),
    ],
)
def test_an_encoder_that_cannot_be_built_is_named_with_its_neighbours(name, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(name, 3)


def test_an_encoder_is_random_and_seeded():
    assert same(random_state(2), random_state(2))
    assert not same(random_state(2), random_state(2, seed=5))
