"""What notebooks call: open_store, load_encoder, plot.panel."""

import doctest
import importlib
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import cromss
from cromss import plot
from cromss.contract import physical
from cromss.data.store import Lost, PatchStore
from cromss.data.synthetic import SyntheticEarth
from cromss.landcover import DYNAMIC_WORLD, IGNORE, SCHEMES
from cromss.networks.encoders import EncoderCard, build_encoder, load_encoder, save_encoder
from cromss.networks.scaling import ZScore
from cromss.sensors import SENTINEL2
from cromss.training.state import Inputs

S2 = SENTINEL2.bands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the docstrings name: a `store`, and a `run` with an encoder for each of its modalities."""
    from cromss.ingest import ingest

    folder = tmp_path_factory.mktemp("api")
    ingest(SyntheticEarth(places=4, seasons=2), folder / "store")
    store = PatchStore.open(folder / "store")
    for name, bands in store.bands.items():
        write(folder / "run" / "encoders" / f"{name}.safetensors", name, bands, contract=store.contract(name))
    return folder


def write(path, modality, bands, *, architecture="tu-test_resnet", **told):
    torch.manual_seed(7)
    card = EncoderCard(
        architecture=architecture, modality=modality, bands=bands, method="cromss-middle", epoch=3, seed=0, **told
    )
    save_encoder(path, build_encoder(architecture, len(bands)), card)
    return path


@pytest.fixture
def store(folder):
    return cromss.open_store(folder / "store")


@pytest.fixture(scope="module")
def s1(folder):
    return cromss.load_encoder(folder / "run", "s1")


@pytest.fixture(scope="module")
def s2(folder):
    return cromss.load_encoder(folder / "run", "s2")


@pytest.fixture
def dn():
    values = np.random.default_rng(0).integers(300, 3000, (2, 13, 32, 64)).astype(np.uint16)
    values[:, S2.index("B10")] //= 100
    return values


def db(*size):
    rng = np.random.default_rng(1)
    return np.stack([rng.normal(-11, 3, size), rng.normal(-18, 3, size)], axis=-3).astype(np.float32)


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- importing --------------------------------------------------------------------------------------------------------


def imported(code):
    """Which heavy packages a fresh interpreter has imported after `code`."""
    heavy = ("torch", "ray", "mlflow", "numpy", "pyarrow", "matplotlib", "timm", "segmentation_models_pytorch")
    code += f"\nimport sys, json; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_cromss_imports_nothing_heavy():
    assert imported("import cromss; dir(cromss); cromss.__version__") == set()


def test_opening_a_store_and_drawing_a_patch_need_no_torch(folder):
    code = (
        f"import cromss; store = cromss.open_store({str(folder / 'store')!r})\n"
        "cromss.plot.panel(store.sample(1)[0], store.scheme)._repr_png_()"
    )
    assert imported(code) == {"numpy", "pyarrow", "matplotlib"}


def test_what_is_lazy_is_listed_and_found_and_nothing_else_is():
    assert {"load_encoder", "open_store", "plot", "__version__"} <= set(dir(cromss))
    assert cromss.plot is plot
    with pytest.raises(AttributeError, match="module 'cromss' has no attribute 'load_encoders'"):
        _ = cromss.load_encoders


@pytest.mark.parametrize("module", ["cromss.api.encoder", "cromss.api.store", "cromss.plot.one_patch"])
def test_the_docstrings_are_true(module, folder, monkeypatch):
    monkeypatch.chdir(folder)
    outcome = doctest.testmod(importlib.import_module(module))
    assert outcome.attempted >= 5
    assert outcome.failed == 0


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_store_has_as_many_patches_as_can_be_read(store):
    assert len(store) == 8 == sum(store.manifest.patches.values())
    assert {patch.patch_id for seed in range(30) for patch in store.sample(4, seed=seed)} == {
        f"earth-{place:06d}/2021-{month}" for place in range(4) for month in ("01", "07")
    }


def test_a_shard_that_is_left_out_does_not_count(tmp_path):
    from cromss.data.chunks import Ingest
    from cromss.data.ingestion import ingest

    ingest(SyntheticEarth(places=20, seasons=2, size=32), tmp_path / "store", Ingest(chunk=16))
    whole = cromss.open_store(tmp_path / "store")
    first, second = whole.manifest.shards
    rest = PatchStore.open(tmp_path / "store", without=[Lost(first.path, "is torn", first.rows)])
    assert len(whole) == 40
    assert len(rest) == second.rows < 40


def test_a_store_shows_itself_in_a_line_and_as_a_table_in_the_colours_of_its_classes(store):
    assert "8 patches of 4 places, 64 x 64; bands s1 2, s2 13; uint8; dynamic-world" in repr(store)
    html = store._repr_html_()
    counts = store.manifest.histogram["train"]
    for name, colour in zip(DYNAMIC_WORLD.classes, DYNAMIC_WORLD.colours, strict=True):
        share = counts.get(name, 0) / sum(counts.values())
        assert (f'title="{name} {share:.1%}"' in html) == (share > 0) == (f"background:{colour}" in html)


def test_what_a_manifest_says_is_text_on_a_page_never_markup(store):
    store.scheme = replace(store.scheme, title="<script>alert(1)</script>")
    assert "<script>" not in store._repr_html_()


# --- an encoder's file ------------------------------------------------------------------------------------------------


def test_a_file_a_run_and_a_trial_of_a_sweep_give_the_same_encoder(folder, s2, dn, tmp_path):
    trial = tmp_path / "trials" / "0123"
    trial.mkdir(parents=True)
    (trial / "encoders").symlink_to(folder / "run" / "encoders")
    for where, modality in ((folder / "run" / "encoders" / "s2.safetensors", None), (str(trial), "s2")):
        assert same(cromss.load_encoder(where, modality)(dn), s2(dn))
    with pytest.raises(ValueError, match=r"it is a sweep: name a trial of it, such as .*trials/0123"):
        cromss.load_encoder(tmp_path, "s2")


def test_a_lone_encoder_of_a_run_needs_no_name(tmp_path):
    write(tmp_path / "encoders" / "s1.safetensors", "s1", ("VV", "VH"))
    assert cromss.load_encoder(tmp_path).modality == "s1"
    with pytest.raises(ValueError, match="has no encoder of s2; there: s1"):
        cromss.load_encoder(tmp_path, "s2")


@pytest.mark.parametrize(
    ("where", "modality", "said"),
    [
        ("run", None, r"holds encoders of s1, s2; say which: load_encoder\('.*run', 's2'\)"),
        ("run/encoders/s1.safetensors", "s2", "is an encoder of s1, not of s2"),
        ("store", None, "no encoders/.*; was the pretraining finished"),
        ("nowhere", None, "no such file"),
        ("moco.pth", None, r"moco.pth: no \.safetensors encoder of ours; .* --from auto --to safetensors"),
        ("torn.safetensors", None, "cannot be read as safetensors"),
    ],
)
def test_what_is_no_encoder_is_refused_by_name(folder, where, modality, said):
    for name in ("moco.pth", "torn.safetensors"):
        (folder / name).write_bytes(b"\x80\x04]")
    with pytest.raises(ValueError, match=said):
        cromss.load_encoder(folder / where, modality)


def test_loading_draws_no_random_number_of_the_caller_and_evaluates(folder):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    encoder = cromss.load_encoder(folder / "run", "s2")
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(module.training for module in encoder.modules())
    assert all(weight.requires_grad for weight in encoder.parameters())


def test_the_encoder_tells_what_it_is(s2):
    assert (s2.bands, s2.scaling.kind, s2.card.epoch) == (S2, "mean_2std", 3)
    assert "tu-test_resnet (cromss-middle, epoch 3, seed 0)" in repr(s2)
    assert " ".join(S2) in repr(s2)


@pytest.mark.parametrize("architecture", ["tu-test_resnet", "tu-test_vit", "tu-test_convnext", "resnet18"])
def test_channels_and_strides_are_those_of_the_maps_that_come_out(architecture, tmp_path):
    path = write(tmp_path / "s1.safetensors", "s1", ("VV", "VH"), architecture=architecture)
    encoder = cromss.load_encoder(path)
    with torch.inference_mode():
        stages = encoder(db(1, 64, 96))
    assert [stage.shape for stage in stages] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert min(encoder.channels) > 0
    assert list(encoder.strides) == sorted(encoder.strides)


# --- pixels in --------------------------------------------------------------------------------------------------------


def test_a_patch_gives_the_features_that_training_computed_from_the_stored_codes(folder, store, s2):
    """Stored codes through training's own path, and the decoded patch through the notebook's: bit for bit."""
    from cromss.data.stream import open_rows

    [batch] = open_rows(store, split="train", batch_size=8)
    patches = {patch.patch_id: patch for seed in range(30) for patch in store.sample(4, seed=seed)}
    rows = [row for row, name in enumerate(batch.ids) if name in patches]
    assert len(rows) >= 4
    state, card = load_encoder(folder / "run" / "encoders" / "s2.safetensors")
    network = build_encoder(card.architecture, len(card.bands)).eval()
    network.load_state_dict(state)
    image = Inputs({"s2": card.bands}, store.encoding, card.scaling)(batch)["s2"].contiguous()[rows]
    with torch.no_grad():
        wanted = network(image)[1:]
        assert torch.equal(s2.prepare([patches[batch.ids[row]] for row in rows]), image)
        assert torch.equal(s2.prepare(batch.images["s2"][rows], encoding="uint8"), image)
        assert same(s2([patches[batch.ids[row]] for row in rows]), wanted)


def test_bands_go_by_name(s2, dn):
    wanted = s2.prepare(dn)
    order = np.random.default_rng(3).permutation(13)
    names = [S2[k] for k in order]
    assert torch.equal(s2.prepare(dn[:, order], bands=names), wanted)
    assert torch.equal(s2.prepare(dn[:, ::-1], bands=",".join(S2[::-1])), wanted)
    assert torch.equal(s2.prepare(dn, bands=[f"B{name[1:]:0>2}" for name in S2]), wanted)  # B01, B02, ... B8A
    assert not torch.equal(s2.prepare(dn[:, order]), wanted)


def test_bands_that_are_not_read_may_be_there(tmp_path, dn):
    encoder = cromss.load_encoder(write(tmp_path / "s2.safetensors", "s2", ("B4", "B3", "B2")))
    chosen = [S2.index(name) for name in ("B4", "B3", "B2")]
    assert torch.equal(encoder.prepare(dn, bands=S2), encoder.prepare(dn[:, chosen]))


@pytest.mark.parametrize(
    ("bands", "said"),
    [
        ((*S2[:-1], "B11"), "name at least one band, each once"),
        (S2[:-1], r"12 bands are named .* the pixels have 13"),
        ((*S2[:-1], "B13"), "has no band 'B13'"),
        ("9", "9 bands are named"),
    ],
)
def test_names_that_do_not_fit_the_pixels_are_refused(s2, dn, bands, said):
    with pytest.raises(ValueError, match=said):
        s2(dn, bands=bands)


def test_missing_bands_are_named_with_both_sides(s2, dn, store):
    twelve = [k for k, name in enumerate(S2) if name != "B10"]
    said = r"the s2 encoder .*s2.safetensors reads B1, .*B12; missing in the pixels: B10 \(there: B1, .*B9, B11, B12\)"
    with pytest.raises(ValueError, match=said):
        s2(dn[:, twelve], bands="12")
    with pytest.raises(ValueError, match="reads 13 bands .* the pixels have 12: name yours"):
        s2(dn[:, twelve])
    with pytest.raises(ValueError, match=r"the pixels have 32: put the bands first: numpy.moveaxis\(pixels, -1, -3\)"):
        s2(np.moveaxis(dn, 1, -1))
    [patch] = store.sample(1)
    with pytest.raises(ValueError, match=rf"the s2 encoder .* reads s2; patch {patch.patch_id} has s1"):
        s2(replace(patch, images={"s1": patch.images["s1"]}))
    few = replace(patch, images={"s2": patch.images["s2"][twelve]},
                  contracts={"s2": physical("s2", SENTINEL2.select("12"))})  # fmt: skip
    with pytest.raises(ValueError, match=rf"missing in patch {patch.patch_id}: B10"):
        s2(few)


def test_a_patch_of_another_product_is_refused_with_both_sides_named(s2, store):
    [patch] = store.sample(1)
    surface = replace(patch, contracts={"s2": physical("s2", S2, "Sentinel-2 L2A")})
    with pytest.raises(
        ValueError, match=r"product differ: patch .* has Sentinel-2 L2A, the s2 encoder .* Sentinel-2 L1C"
    ):
        s2(surface)


def test_the_kind_of_array_does_not_matter(s2, dn):
    wanted = s2(dn)
    frozen = dn.copy()
    frozen.flags.writeable = False
    for pixels in (
        dn.astype(np.float64), dn.astype(">u2"), dn.astype(np.int64), frozen, torch.from_numpy(dn.astype(np.float32)),
        np.ascontiguousarray(dn[..., ::-1])[..., ::-1], np.ma.masked_equal(dn, 0),
    ):  # fmt: skip
        assert same(s2(pixels), wanted)
    alone = s2(dn[1])
    assert [stage.ndim for stage in alone] == [3] * len(wanted)
    for one, both in zip(alone, wanted, strict=True):
        torch.testing.assert_close(one, both[1])


@pytest.mark.parametrize("pixels", [np.zeros((64, 64)), np.zeros((1, 1, 13, 32, 32)), np.array([["x"]]), [], "B2"])
def test_what_is_no_image_is_refused(s2, pixels):
    with pytest.raises(ValueError, match=r"expected \(C, H, W\) or \(B, C, H, W\)|expected numbers, or a Patch"):
        s2(pixels)


def test_a_size_that_the_stride_does_not_divide_is_refused_with_the_nearest(s2, dn):
    with pytest.raises(
        ValueError, match="image size 32x50: must be divisible .* stride 32; the nearest valid size is 32x64"
    ):
        s2(dn[..., :50])


def test_patches_of_different_sizes_are_refused(s2, store):
    [patch] = store.sample(1)
    small = replace(patch, images={"s2": patch.images["s2"][:, :32, :32]})
    with pytest.raises(ValueError, match="patches of 64x64 and of 32x32 pixels make no batch"):
        s2([patch, small])


# --- units ------------------------------------------------------------------------------------------------------------

OFFSET = np.full((13, 32, 32), 1500, np.uint16)
CHECKED = [
    ("s2", np.full((13, 32, 32), 0.2), r"s2 values reach from 0\.2 to 0\.2: reflectance, .* give 10000 \* reflectance"),
    ("s2", torch.full((1, 13, 32, 32), 0.2), "reflectance"),
    ("s2", OFFSET, "B10 is 1500 DN and more: the offset of processing baseline 04.00 is in there; subtract 1000"),
    ("s1", 10 ** (db(32, 32) / 10), r"none of them negative: linear power, .* give 10 \* log10\(power\)"),
    ("s1", db(32, 32)[::-1], r"VH,VV order; say bands=\['VH', 'VV'\]"),
]


@pytest.mark.parametrize(("modality", "pixels", "said"), CHECKED)
def test_another_unit_is_refused_with_the_way_out_and_passes_where_it_is_insisted_on(modality, pixels, said, s1, s2):
    encoder = {"s1": s1, "s2": s2}[modality]
    with pytest.raises(ValueError, match=said):
        encoder(pixels)
    encoder(pixels, check=False)


def test_the_remedies_are_taken(s1, s2):
    reflectance = CHECKED[0][1].copy()
    reflectance[S2.index("B10")] = 0.001
    with pytest.raises(ValueError, match="reflectance"):
        s2(reflectance)
    s2(10_000 * reflectance)
    s2(OFFSET - 1000)
    power, swapped = 10 ** (db(32, 32) / 10), db(32, 32)[::-1]
    s1(10 * np.log10(power))
    assert same(s1(swapped, bands=["VH", "VV"]), s1(swapped[::-1]))


@pytest.mark.parametrize("value", [0, np.nan])
def test_pixels_without_data_are_not_judged(s1, s2, value):
    s2(np.full((13, 32, 32), value))
    s1(np.full((2, 32, 32), value))


def test_a_unit_is_judged_on_large_images_too(s1):
    power = 10 ** (db(1024, 1024) / 10)
    with pytest.raises(ValueError, match="linear power"):
        s1.prepare(power)


def test_codes_and_values_are_not_mistaken_for_each_other(s2, dn):
    with pytest.raises(ValueError, match=r'uint8 and encoding=.raw.: say encoding="uint8"'):
        s2(dn.astype(np.uint8))
    with pytest.raises(ValueError, match='leave out encoding="uint8"'):
        s2(dn, encoding="uint8")
    with pytest.raises(ValueError, match="valid: raw"):
        s2(dn, encoding="dB")
    codes = torch.randint(0, 256, (1, 13, 32, 32), dtype=torch.uint8)
    assert torch.equal(s2.prepare(codes, encoding="uint8"), codes / 255)


def test_an_encoder_that_needs_raw_values_refuses_codes(tmp_path):
    encoder = cromss.load_encoder(write(tmp_path / "s2.safetensors", "s2", S2, scaling=ZScore()))
    with pytest.raises(ValueError, match="zscore needs raw values"):
        encoder(torch.zeros(13, 32, 32, dtype=torch.uint8), encoding="uint8")


@pytest.mark.parametrize("scaling", ["mean_2std", "zscore"])
def test_no_data_enters_as_a_store_holds_it(scaling, tmp_path):
    """NaN, infinity and what a mask hides become mean - 2 std: code 0, or -2 of a z-score; zeros stay zeros."""
    encoder = cromss.load_encoder(write(tmp_path / "s1.safetensors", "s1", ("VV", "VH"), scaling={"kind": scaling}))
    pixels = db(32, 32)
    pixels[:, 0, 0], pixels[1, 0, 1], pixels[:, 0, 2] = np.nan, np.inf, 0
    hidden = np.ma.masked_array(pixels, mask=np.zeros(pixels.shape, bool))
    hidden[:, 1, 1] = np.ma.masked
    lowest = torch.tensor(0.0 if scaling == "mean_2std" else -2.0)
    image = encoder.prepare(hidden)
    assert torch.isfinite(image).all()
    for spot in (image[:, 0, 0], image[1, 0, 1], image[:, 1, 1]):
        torch.testing.assert_close(spot, lowest.expand_as(spot), atol=1e-5, rtol=0)
    assert torch.equal(image[:, 0, 2], encoder.prepare(np.zeros((2, 32, 32)))[:, 0, 0])
    assert (image[:, 0, 2] > lowest).all()


# --- the panel --------------------------------------------------------------------------------------------------------


def pixels_of(figure):
    return np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"))


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def shown(figure, title):
    [axes] = [axes for axes in figure.axes if axes.get_title() == title]
    return np.asarray(axes.images[0].get_array())


def test_a_panel_shows_what_there_is_in_order(store):
    [patch] = store.sample(1)
    weights = np.linspace(0, 1, patch.label.size, dtype=np.float16).reshape(patch.size)
    figure = plot.panel(
        patch, store.scheme, prediction={"S2": patch.clean, "S1": torch.tensor(patch.label)}, weights=weights,
        extra={"grey": np.arange(16.0).reshape(4, 4), "colour": np.zeros((8, 8, 3), np.uint8)},
    )  # fmt: skip
    assert titles(figure)[2:] == ["label", "clean label", "S2", "S1", "weights", "grey", "colour"]
    assert (shown(figure, "S2") == store.scheme.rgb(patch.clean)).all()
    assert (shown(figure, "label") == store.scheme.rgb(patch.label)).all()
    assert shown(figure, "grey")[0, 0].tolist() == [0, 0, 0]
    assert shown(figure, "grey")[3, 3].tolist() == [255, 255, 255]
    assert titles(plot.panel(replace(patch, clean=patch.label), "dynamic-world"))[2:] == ["label"]
    named = plot.panel(patch, "dynamic-world", reference=patch.clean)
    assert titles(named)[2:] == ["label", "reference"]


def test_arrays_are_drawn_as_the_patch_that_holds_them(store):
    [patch] = store.sample(1)
    order = [S2.index(band) for band in ("B2", "B4", "B3", "B12")]
    for chosen, bands in ((slice(None), None), (order, {"s2": ("B2", "B4", "B3", "B12")})):
        figure = plot.panel({"s1": patch.images["s1"], "s2": patch.images["s2"][chosen]}, bands=bands)
        whole = plot.panel(patch, store.scheme)
        assert titles(figure) == titles(whole)[:2] == ["Sentinel-2 L1C: B4, B3, B2", "Sentinel-1: VV, VH, VV − VH"]
        for title in titles(figure):
            assert (shown(figure, title) == shown(whole, title)).all()


def test_no_data_of_arrays_is_light_grey(store):
    radar = store.sample(1)[0].images["s1"].copy()
    radar[:, :8], radar[:, 8:16] = np.nan, 0
    picture = shown(plot.panel({"s1": radar}), "Sentinel-1: VV, VH, VV − VH")
    assert (picture[:16] == 230).all()
    assert (picture[16:] != 230).any(2).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scheme": None}, r"class numbers need their scheme .*panel\(patch, store.scheme\), .*dynamic-world"),
        ({"scheme": "dw"}, "label scheme 'dw': unknown"),
        ({"prediction": np.full((64, 64), 9, np.uint8)}, "prediction holds 9; dynamic-world has the classes 0 to 8"),
        ({"prediction": np.zeros((64, 64))}, "prediction is float64; expected class numbers, of logits their argmax"),
        ({"label": np.zeros((32, 64), np.uint8)}, "label is 32 x 64, the patch 64 x 64 pixels"),
        ({"weights": {"W": np.full((64, 64), 1.5)}}, r"W reach from 1.5 to 1.5; weights lie in \[0, 1\]"),
        ({"weights": np.full((64, 64), np.nan)}, r"weights lie in \[0, 1\]"),
        ({"extra": {"x": np.zeros((8, 8, 3))}}, r"x is \(8, 8, 3\) float64; expected"),
    ],
)
def test_what_does_not_fit_the_patch_is_refused_by_name(store, given, said):
    with pytest.raises(ValueError, match=said):
        plot.panel(store.sample(1)[0], **({"scheme": store.scheme} | given))


def test_arrays_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match=r"s2 is \(3, 8, 8\); .* C = 13 .* bands=\{'s2': \[...\]\}"):
        plot.panel({"s2": np.ones((3, 8, 8))})
    with pytest.raises(ValueError, match="s2 is 8 x 8, the other sensor 8 x 9|s1 is 8 x 9, the other sensor 8 x 8"):
        plot.panel({"s2": np.ones((13, 8, 8)), "s1": np.ones((2, 8, 9))})
    with pytest.raises(ValueError, match="no image to show"):
        plot.panel({})
    with pytest.raises(ValueError, match="modality 's3': unknown"):
        plot.panel({"s3": np.ones((2, 8, 9))})


def test_the_legend_names_every_class_shown_in_its_colour_and_the_unlabelled():
    label = np.array([[0, 1], [8, IGNORE]], np.uint8).repeat(8, 0).repeat(8, 1)
    figure = plot.panel({"s1": db(16, 16)}, "dynamic-world", label=label)
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["water", "trees", "snow and ice", "unlabelled"]
    picture = {tuple(colour) for colour in pixels_of(figure).reshape(-1, 3).tolist()}
    assert {tuple(DYNAMIC_WORLD.rgb(label)[row, column].tolist()) for row in (0, 15) for column in (0, 15)} <= picture


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("maps", [1, 5])
def test_no_legend_is_wider_or_taller_than_its_room(name, maps):
    scheme = SCHEMES[name]
    label = (np.arange(64 * 64).reshape(64, 64) % len(scheme)).astype(np.uint8)
    figure = plot.panel({"s1": db(64, 64)}, name, prediction={f"map {k}": label for k in range(maps)})
    figure.canvas.draw()
    [legend] = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == len(scheme)
    assert figure.bbox.x0 - 1 <= box.x0
    assert box.x1 <= figure.bbox.x1 + 1 or legend._ncols == 1
    assert box.y0 >= figure.bbox.y0 - 1
    assert box.y1 <= figure.axes[0].get_window_extent().y0 + 1


def test_a_figure_shows_itself_without_pyplot():
    figure = plot.panel({"s1": db(16, 16)})
    assert pixels_of(figure).shape[0] > 100
    assert imported("import cromss; cromss.plot.panel; import sys; assert 'matplotlib.pyplot' not in sys.modules")
