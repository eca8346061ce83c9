"""Other people's checkpoints: a tiny generated file in each layout gives its source's features, its own bands and scaling."""

import argparse
import re

import pytest
import torch
from safetensors.torch import save_file
from small_encoders import close, fed, pixels, trained

from cromss.contract import Contract
from cromss.data.store import PatchStore
from cromss.exchange.formats import FORMATS, Outgoing, format_of
from cromss.exchange.incoming import Stated, bring
from cromss.exchange.layouts import IMAGENET, LAYOUTS, layout
from cromss.exchange.libraries import rebuilt
from cromss.files import sha256
from cromss.networks.encoders import Published, save_encoder
from cromss.networks.scaling import MeanStd, Reflectance, ZScore
from cromss.sensors import SENTINEL2
from cromss.transfer import check_encoders

ALL, NINE, RGB, RADAR = SENTINEL2.bands, SENTINEL2.subsets["9"], ("B4", "B3", "B2"), ("VV", "VH")
SOURCES = {
    ("s1", RADAR): trained("resnet18", "s1", RADAR),
    ("s2", ALL): trained("resnet18", "s2", ALL, seed=1),
    ("s2", NINE): trained("resnet18", "s2", NINE, seed=2),
    ("s2", RGB): trained("resnet18", "s2", RGB, seed=3),
}


def weights(modality, bands):
    return SOURCES[modality, bands][0].state_dict()


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


HEAD = {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}


def authors(s1, s2, bands):
    """A Lightning checkpoint of the authors'; whatever else is in it."""
    state = under(s1, weights("s1", RADAR)) | under(s2, weights("s2", bands)) | {"net.decoder.x": torch.ones(1)}
    return {"state_dict": state, "epoch": 199, "pytorch-lightning_version": "2.0.0"}


def moco(modality, bands):
    query, key = weights(modality, bands), weights(modality, bands)
    head = {"module.encoder_q.fc.0.weight": torch.ones(1), "module.queue": torch.ones(3)}
    key = {name: tensor + 1 for name, tensor in key.items()}
    return {
        "arch": "resnet18",
        "state_dict": under("module.encoder_q.", query) | under("module.encoder_k.", key) | head,
    }


def dino():
    student = {name: tensor + 1 for name, tensor in weights("s2", ALL).items()}
    teacher = under("module.backbone.", weights("s2", ALL)) | {"module.head.mlp.0.weight": torch.ones(1)}
    return {
        "student": under("module.backbone.", student),
        "teacher": teacher,
        "args": argparse.Namespace(arch="resnet18"),
    }


# layout -> (content of a file, the encoders that are in it)
FILES = {
    "authors-middle": (authors("net.encoder1.", "net.encoder.", ALL), [("s1", RADAR), ("s2", ALL)]),
    "authors-late": (authors("net.model1.encoder.", "net.model2.encoder.", NINE), [("s1", RADAR), ("s2", NINE)]),
    "authors-single": ({"state_dict": under("net.encoder.", weights("s2", NINE))}, [("s2", NINE)]),
    "authors-single s1": ({"state_dict": under("module.net.encoder.", weights("s1", RADAR))}, [("s1", RADAR)]),
    "ssl4eo-moco": (moco("s2", ALL), [("s2", ALL)]),
    "ssl4eo-moco s1": (moco("s1", RADAR), [("s1", RADAR)]),
    "ssl4eo-dino": (dino(), [("s2", ALL)]),
    "torchgeo-sentinel2-all-moco": (weights("s2", ALL) | HEAD, [("s2", ALL)]),
    "torchgeo-sentinel2-all-dino": (weights("s2", ALL), [("s2", ALL)]),
    "torchgeo-sentinel2-all-decur": (weights("s2", ALL), [("s2", ALL)]),
    "torchgeo-sentinel2-all-softcon": (weights("s2", ALL), [("s2", ALL)]),
    "torchgeo-sentinel2-rgb-moco": (weights("s2", RGB), [("s2", RGB)]),
    "torchgeo-sentinel1-grd-moco": (weights("s1", RADAR), [("s1", RADAR)]),
    "torchgeo-sentinel1-grd-decur": (weights("s1", RADAR), [("s1", RADAR)]),
    "torchgeo-sentinel1-grd-softcon": (weights("s1", RADAR), [("s1", RADAR)]),
    "timm": (weights("s2", RGB) | HEAD, [("s2", RGB)]),
    "torchvision": (weights("s2", RGB) | HEAD, [("s2", RGB)]),
    "smp": (under("encoder.", weights("s2", RGB)) | {"segmentation_head.0.bias": torch.ones(3)}, [("s2", RGB)]),
}


@pytest.fixture
def file(tmp_path):
    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def test_every_layout_has_a_file_here():
    assert {name.split()[0] for name in FILES} == set(LAYOUTS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_layout_computes_what_its_source_does(name, file):
    content, encoders = FILES[name]
    found = list(bring(file(content), name.split()[0]))
    assert [(card.modality, card.bands) for _, card in found] == encoders
    row = layout(name.split()[0])
    for (state, card), source in zip(found, encoders, strict=True):
        assert card.scaling == row.scalings[card.modality]
        assert (card.architecture, card.extra["imported_from"]) == ("resnet18", row.name)
        x = fed(card, pixels(card))
        with torch.no_grad():
            close(SOURCES[source][0](x)[-1], rebuilt(state, card)(x)[-1])


def test_each_has_its_own_input_scaling():
    radar = {row.name: row.scalings["s1"].kind for row in LAYOUTS.values() if "s1" in row.scalings}
    assert radar == {
        **dict.fromkeys(("authors-middle", "authors-late", "authors-single", "ssl4eo-moco"), "mean_2std"),
        **{f"torchgeo-sentinel1-grd-{one}": "published" for one in ("moco", "decur", "softcon")},
    }
    assert {row.name: row.scalings["s2"] for row in LAYOUTS.values() if "s2" in row.scalings} == {
        **dict.fromkeys(("authors-middle", "authors-late", "authors-single"), MeanStd()),
        **dict.fromkeys(("ssl4eo-moco", "ssl4eo-dino"), Reflectance()),
        **{f"torchgeo-sentinel2-{one}": Reflectance() for one in ("all-moco", "all-dino", "all-decur", "rgb-moco")},
        "torchgeo-sentinel2-all-softcon": LAYOUTS["torchgeo-sentinel2-all-softcon"].scalings["s2"],
        **dict.fromkeys(("timm", "torchvision", "smp"), IMAGENET),
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.startswith("torchgeo")])
def test_torchgeos_rows_say_what_torchgeo_says(name):
    models = pytest.importorskip("torchgeo.models", reason="torchgeo is not installed")
    row, weights = layout(name), name.removeprefix("torchgeo-").upper().replace("-", "_")
    published = [
        getattr(enum, weights) for enum in (models.ResNet18_Weights, models.ResNet50_Weights) if hasattr(enum, weights)
    ]
    assert published
    ((modality, (bands,)),) = row.bands.items()
    for one in published:
        assert tuple(band.upper() for band in one.meta["bands"]) == bands
        if row.digests:
            assert any(one.url.endswith(f"-{digest}.pth") for digest in row.digests)
        pixels = torch.rand(1, len(bands), 256, 256).mul(3000).floor() - (3000 if modality == "s1" else 0)
        theirs = one.transforms(pixels.clone())
        _, card = SOURCES[modality, bands]
        made = row.scalings[modality](pixels, None, bands, "raw") if isinstance(row.scalings[modality], Published) else (
            fed(card.model_copy(update={"scaling": row.scalings[modality]}), pixels))  # fmt: skip
        torch.testing.assert_close(made[..., 16:240, 16:240], theirs)


# --- auto -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(("torchgeo", "timm", "torchvision"))])
def test_auto_takes_the_only_layout_with_these_names(name, file):
    content, encoders = FILES[name]
    found = list(bring(file(content), "auto"))
    assert {card.extra["imported_from"] for _, card in found} == {name.split()[0]}
    assert [(card.modality, card.bands) for _, card in found] == encoders


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("torchgeo-sentinel1-grd-moco",
         "torchgeo-sentinel1-grd-moco, torchgeo-sentinel1-grd-decur, torchgeo-sentinel1-grd-softcon"),
        ("torchvision", "torchgeo-sentinel2-rgb-moco, timm, torchvision"),
    ],
)  # fmt: skip
def test_auto_refuses_what_several_may_have_written_with_their_names(name, candidates, file):
    with pytest.raises(ValueError, match=re.escape(f"it can be {candidates}; name one with --from")):
        list(bring(file(FILES[name][0]), "auto"))


def test_a_published_file_is_known_by_its_sha256(file, monkeypatch):
    path = file(weights("s2", ALL))
    row = LAYOUTS["torchgeo-sentinel2-all-dino"]
    known = type(row)(**{**vars(row), "digests": (sha256(path)[:8],)})
    monkeypatch.setitem(LAYOUTS, row.name, known)
    ((_, card),) = bring(path, "auto")
    assert (card.extra["imported_from"], card.extra["imported_is"]) == (row.name, "the published file")
    ((_, card),) = bring(path, "torchgeo-sentinel2-all-moco")
    assert card.extra["imported_is"] == "not the published file, by its sha256"
    assert card.method == "MoCo (torchgeo), as stated"


def test_names_of_nobody_are_said(file):
    with pytest.raises(ValueError, match=r"it has somewhere\.else"):
        list(bring(file(under("somewhere.else.", weights("s2", ALL))), "ssl4eo-moco"))
    with pytest.raises(ValueError, match=r"\(somewhere\.else\) it can be none of authors-middle"):
        list(bring(file(under("somewhere.else.", weights("s2", ALL))), "auto"))


# --- two sides --------------------------------------------------------------------------------------------------------

TURNED = tuple(reversed(ALL))


@pytest.mark.parametrize(
    ("name", "layout_name", "stated", "said"),
    [
        ("ssl4eo-moco", "ssl4eo-moco", Stated(bands=TURNED),
         "bands (in order) differ: the layout ssl4eo-moco has B1, B2, B3, B4, B5, B6, B7, B8, B8A, B9, B10, B11, B12, --bands "
         "has B12, B11, B10"),
        ("authors-late", "authors-late", Stated(modality="s2", bands=ALL),
         "differ: the layout authors-late has B2, B3, B4, B5, B6, B7, B8, B11, B12, --bands has B1, B2"),
        ("ssl4eo-dino", "ssl4eo-dino", Stated(unit="reflectance"),
         "unit differ: Sentinel-2 L1C has DN, --unit has reflectance"),
        ("authors-middle", "authors-middle", Stated(modality="s1", unit="linear"),
         "unit differ: Sentinel-1 has dB, --unit has linear"),
        ("ssl4eo-dino", "ssl4eo-dino", Stated(scaling=MeanStd()),
         "input scaling differ: the layout ssl4eo-dino has reflectance, --scaling has mean_2std"),
        ("torchvision", "torchvision", Stated(bands=("B2", "B3", "B4")),
         "the layout torchvision has B4, B3, B2, --bands has B2, B3, B4"),
        ("torchgeo-sentinel1-grd-moco", "torchgeo-sentinel2-all-moco", Stated(),
         "its first convolution reads 2 channels; the layout torchgeo-sentinel2-all-moco has 13 for s2"),
        ("ssl4eo-dino", "ssl4eo-dino", Stated(modality="s1"), "the layout ssl4eo-dino has s2, --modality says s1"),
        ("authors-middle", "authors-single", Stated(),
         "is not of the layout authors-single, whose names begin with 'net.encoder.' alone"),
        ("authors-single", "authors-middle", Stated(),
         "whose names begin with 'net.encoder1.' and 'net.encoder.'; it has net.encoder"),
        ("torchgeo-sentinel2-all-moco", "torchvision", Stated(), "reads 13 channels and nothing says which bands they are"),
        ("torchgeo-sentinel2-all-moco", "torchvision", Stated(bands=ALL), "has numbers for B4, B3, B2, none for B1"),
        ("ssl4eo-dino", "ssl4eo-dino", Stated(architecture="resnet34"), "as resnet34 of s2, layout ssl4eo-dino: 120 of 216"),
        ("ssl4eo-dino", "ssl4eo-dimo", Stated(), "--from ssl4eo-dimo: unknown layout; did you mean 'ssl4eo-dino'?"),
    ],
)  # fmt: skip
def test_where_two_sides_differ_both_are_named(name, layout_name, stated, said, file):
    with pytest.raises(ValueError, match=re.escape(said)):
        list(bring(file(FILES[name][0]), layout_name, stated))


def test_networks_of_imagenet_see_the_true_colour_image_as_they_were_trained():
    """B4 = R, B3 = G, B2 = B; black, saturated (reflectance 0.3558) and beyond it."""
    for dn, value in ((0.0, 0.0), (3558.0, 1.0), (20_000.0, 1.0)):
        made = IMAGENET(torch.full((1, 3, 1, 1), dn), SENTINEL2, RGB, "raw").flatten().tolist()
        expected = [(value - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
        assert made == pytest.approx(expected, rel=1e-5)


def test_what_nobody_knows_may_be_stated(file):
    stated = Stated(modality="s2", bands=ALL, scaling=ZScore())
    ((state, card),) = bring(file(weights("s2", ALL)), "torchvision", stated)
    assert (card.bands, card.scaling, card.contract) == (ALL, ZScore(), None)
    assert torch.equal(state["conv1.weight"], weights("s2", ALL)["conv1.weight"])


def test_an_imported_encoder_refuses_data_of_another_contract(worlds, file, tmp_path):
    ((state, card),) = bring(file(FILES["ssl4eo-dino"][0]), "ssl4eo-dino")
    save_encoder(tmp_path / "s2.safetensors", rebuilt(state, card), card)
    encoders = {"s2": tmp_path / "s2.safetensors"}
    downstream = PatchStore.open(worlds[1])
    check_encoders(encoders, downstream)
    other = downstream.contract("s2").model_copy(update={"product": "Sentinel-2 L2A"})
    downstream.contracts = downstream.contracts | {"s2": other}
    with pytest.raises(
        ValueError, match=r"s2 product differ: .* has Sentinel-2 L2A, the encoder .* has Sentinel-2 L1C"
    ):
        check_encoders(encoders, downstream)
    with pytest.raises(ValueError, match="reads reflectance input, which needs raw pixels"):
        check_encoders(encoders, PatchStore.open(worlds[0]))


# --- out and in again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "architecture", "depth"),
    [
        ("torchvision", "resnet18", 5),
        ("timm", "resnet18", 5),
        ("timm", "tu-test_convnext", 3),
        ("timm", "tu-vit_tiny_patch16_224", 5),
        ("smp", "mit_b0", 4),
        ("smp", "tu-test_resnet", 5),
        ("torchgeo", "resnet18", 5),
        ("safetensors", "tu-test_convnext", 4),
        ("huggingface", "tu-test_resnet", 5),
    ],
)
def test_what_was_exported_comes_back_as_it_was(name, architecture, depth, tmp_path):
    published = Published(bands=("B8", "B4"), mean=(1.5, 2.5), std=(3.5, 4.5))
    encoder, card = trained(architecture, bands=("B8", "B4"), depth=depth, scaling=published, extra={"note": "grüße"})
    format_of(name).write(tmp_path, Outgoing(encoder.state_dict(), card))
    path = tmp_path / FORMATS[name].target
    ((state, back),) = bring(path / "model.safetensors" if path.is_dir() else path, "auto")
    assert state.keys() == encoder.state_dict().keys()
    assert all(torch.equal(tensor, encoder.state_dict()[one]) for one, tensor in state.items())
    kept = ("architecture", "depth", "modality", "bands", "scaling", "method", "store", "epoch", "seed")
    assert {key: getattr(back, key) for key in kept} == {key: getattr(card, key) for key in kept}
    assert back.contract == Contract.of("s2", ("B8", "B4"), "raw")
    assert back.extra["note"] == "grüße"


def test_the_header_of_an_export_is_a_side_too(tmp_path):
    encoder, card = trained("resnet18", bands=RGB)
    format_of("torchvision").write(tmp_path, Outgoing(encoder.state_dict(), card))
    path = tmp_path / "torchvision.safetensors"
    for stated, said in (
        (Stated(bands=("B2", "B3", "B4")), "the file's header has B4, B3, B2, --bands has B2, B3, B4"),
        (Stated(scaling=ZScore()), "the file's header has mean_2std, --scaling has zscore"),
        (Stated(unit="dB"), "Sentinel-2 L1C has DN, --unit has dB"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            list(bring(path, "torchvision", stated))


@pytest.mark.parametrize(
    ("key", "value"),
    [("epoch", "soon"), ("scaling_parameters", "{"), ("scaling_parameters", '{"kind": "zscore", "x": 1}'), ("modality", "s9"),
     ("bands", "B4,B3,B99"), ("unit", "dB"), ("architecture", "resnet51")],
)  # fmt: skip
def test_a_header_that_somebody_changed_is_refused_in_a_line(key, value, tmp_path):
    encoder, card = trained("tu-test_resnet", bands=RGB)
    header = Outgoing(encoder.state_dict(), card).header() | {key: value}
    save_file(encoder.state_dict(), tmp_path / "odd.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r".") as refused:
        list(bring(tmp_path / "odd.safetensors", "auto"))
    assert len(str(refused.value).splitlines()) == 1


def test_timms_own_config_beside_the_weights_says_architecture_and_statistics(file):
    path = file(weights("s2", RGB))
    path.with_name("config.json").write_text(
        '{"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.5, 0.25], "std": [0.5, 0.5, 0.5]}}'
    )
    ((_, card),) = bring(path, "timm")
    assert card.scaling.mean == pytest.approx((1779, 1779, 889.5))
    x = fed(card, torch.tensor([3558.0, 0.0, 9999.0]).view(1, 3, 1, 1))
    assert x.flatten().tolist() == pytest.approx([1, -1, 1.5])


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["auto", "ssl4eo-moco", "timm"])
def test_a_checkpoint_never_runs_code(name, file, tmp_path):
    path = file({"state_dict": weights("s2", ALL), "more": Trap(tmp_path / "owned")})
    with pytest.raises(ValueError, match="could run its code"):
        list(bring(path, name))
    assert not (tmp_path / "owned").exists()
