"""Pictures of a store: what is drawn is read back from the artists and compared with the manifest."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle, StepPatch
from PIL import Image

from cromss.contract import physical
from cromss.data.ingestion import ingest
from cromss.data.leakage import leakage
from cromss.data.likeness import turned
from cromss.data.patch import Patch
from cromss.data.store import PatchStore, StoreWriter
from cromss.data.synthetic import SyntheticEarth
from cromss.landcover import DYNAMIC_WORLD, IGNORE
from cromss.plot import data_uri
from cromss.portrait import classes, contact_sheet, figures, histograms, locations, pair_sheet, portrait
from cromss.portrait.histograms import BINS
from cromss.portrait.look import UNLABELLED, split_colours
from cromss.portrait.map import positions
from cromss.portrait.sheets import chosen, composite
from cromss.sensors import SENTINEL1, SENTINEL2

NAMES = ["classes.png", "histograms.png", "map.png", "contact_sheet.png"]


@pytest.fixture(scope="module")
def earth(tmp_path_factory):
    """A store of train and test, two seasons."""
    path = tmp_path_factory.mktemp("earth") / "store"
    world = SyntheticEarth(places=9, seasons=2, size=32, train=4, test=5, downstream=True)
    ingest(world, path)
    return PatchStore.open(path)


@pytest.fixture(scope="module")
def seasons(tmp_path_factory):
    path = tmp_path_factory.mktemp("earth") / "store"
    ingest(SyntheticEarth(places=5, seasons=3, size=32), path)
    return PatchStore.open(path)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def place(name: str, label: np.ndarray, bands=("B4", "B3", "B2"), keep=("s1", "s2"), **more) -> Patch:
    rng = np.random.default_rng(len(name) + label.sum())
    images = {"s1": rng.normal(-14, 3, (2, *label.shape)).astype(np.float32),
              "s2": rng.integers(300, 2500, (len(bands), *label.shape)).astype(np.uint16)}  # fmt: skip
    contracts = {"s1": physical("s1", SENTINEL1.bands), "s2": physical("s2", bands)}
    return Patch(
        patch_id=f"{name}/0", location_id=name, acquisition="0", label=label,
        images={k: images[k] for k in keep}, contracts={k: contracts[k] for k in keep}, **more,
    )  # fmt: skip


def write(path, patches: list[Patch]) -> PatchStore:
    bands = {name: contract.bands for name, contract in patches[0].contracts.items()}
    with StoreWriter(path, scheme="dynamic-world", bands=bands, size=patches[0].size) as writer:
        for patch in patches:
            writer.add([patch], patch.split, 0)
    return PatchStore.open(path)


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["earth", "seasons"])
def test_a_portrait_is_four_pictures_of_sensible_size(which, request, tmp_path):
    written = portrait(request.getfixturevalue(which), tmp_path / "out")
    assert [path.name for path in written] == NAMES
    for path in written:
        height, width = pixels(path).shape[:2]
        assert 800 < width < 2600
        assert 250 < height < 2600
        assert pixels(path).std() > 5


def test_the_same_seed_shows_the_same_patches_and_another_shows_others(seasons):
    same, again, other = ([patch.patch_id for patch in chosen(seasons, 3, seed)] for seed in (3, 3, 4))
    assert same == again != other
    assert len({name.split("/")[0] for name in same}) == 3


def test_every_figure_can_stand_in_a_page(earth):
    drawn = figures(earth)
    assert list(drawn) == [name.removesuffix(".png") for name in NAMES]
    assert [data_uri(figure).split(";")[0] for figure in drawn.values()] == [
        "data:image/svg+xml",
        "data:image/svg+xml",
        "data:image/svg+xml",
        "data:image/png",
    ]


def test_a_folder_that_cannot_be_written_is_refused(seasons, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        portrait(seasons, tmp_path / "file")


# --- classes ----------------------------------------------------------------------------------------------------------


def bars(axes) -> dict[float, dict[str, float]]:
    """Row -> colour -> width, from left to right."""
    found: dict[float, dict[str, float]] = {}
    for bar in sorted((p for p in axes.patches if isinstance(p, Rectangle)), key=lambda p: p.get_x()):
        row = found.setdefault(round(bar.get_y() + bar.get_height() / 2), {})
        assert bar.get_x() == pytest.approx(sum(row.values()))  # each begins where the last one ended
        row[to_hex(bar.get_facecolor()).upper()] = bar.get_width()
    return found


def test_bars_are_the_shares_of_the_manifest_season_by_season(seasons):
    manifest = seasons.manifest
    (axes,) = figures(seasons)["classes"].axes
    drawn = bars(axes)
    for row, counts in enumerate([manifest.histogram["train"], *manifest.seasons["train"]]):
        total = sum(counts.values())
        colour = {**dict(zip(DYNAMIC_WORLD.classes, DYNAMIC_WORLD.colours, strict=True)), "unlabelled": UNLABELLED}
        wanted = {colour[name].upper(): 100 * count / total for name, count in counts.items() if count}
        assert drawn[row] == pytest.approx(wanted)
    assert len(drawn) == 4
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "all · 15 patches",
        "season 1 · 5 patches",
        "season 2 · 5 patches",
        "season 3 · 5 patches",
    ]


def test_shares_are_worked_by_hand_and_train_comes_first():
    counts = {"water": 75, "trees": 25, "unlabelled": 0}
    seasons = {"test": (counts,), "train": (counts, {"trees": 50, "unlabelled": 50})}
    whole = {"test": counts, "train": {"water": 75, "trees": 75, "unlabelled": 50}}
    figure = classes(seasons, whole, DYNAMIC_WORLD, (10, 10))
    train, test = figure.axes
    assert (train.get_title("left"), test.get_title("left")) == ("train", "test")
    assert list(bars(test).values()) == [{"#419BDF": 75, "#397D49": 25}]  # one season: the whole alone
    assert list(bars(train)[0].values()) == [37.5, 37.5, 25]
    assert bars(train)[2] == {"#397D49": 50, "#E6E6E6": 50}
    assert [text.get_text() for text in test.texts] == ["75", "25"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["water", "trees", "unlabelled"]


# --- histograms -------------------------------------------------------------------------------------------------------


def panels(figure) -> dict[str, object]:
    return {axes.get_title("left"): axes for axes in figure.axes if axes.get_title("left")}


def test_histograms_hold_the_counts_of_the_manifest_in_bins_of_codes(earth):
    drawn = panels(figures(earth)["histograms"])
    assert list(drawn) == [*SENTINEL1.bands, *SENTINEL2.bands]
    for split in ("train", "test"):
        for modality in ("s1", "s2"):
            for band in earth.manifest.statistics[split][modality]:
                lines = [p for p in drawn[band.band].patches if isinstance(p, StepPatch) and p.get_label() == split]
                (line,) = lines
                values, edges, _ = line.get_data()
                counts = np.array(band.histogram)
                np.testing.assert_allclose(values, 100 * counts.reshape(BINS, -1).sum(1) / counts.sum())
                assert (edges[0], edges[-1], len(edges)) == (0, 256, BINS + 1)
                assert to_hex(line.get_edgecolor()).upper() == split_colours(["train", "test"])[split]


def test_the_axis_of_units_and_the_dots_lie_where_the_encoding_puts_them(earth):
    """Oracle: the sensor's own encoding of the value."""
    drawn = panels(figures(earth)["histograms"])
    for sensor in (SENTINEL1, SENTINEL2):
        for band in sensor.bands:
            axes = drawn[band]
            values = [float(text.get_text().replace("−", "-").replace(",", "")) for text in axes.get_xticklabels()]
            assert len(values) >= 2
            codes = sensor.encode(np.array(values, np.float32).reshape(1, 1, -1), [band]).ravel()
            np.testing.assert_array_equal(np.floor(np.array(axes.get_xticks()) + 1e-3), codes)
    (train,) = [s for s in earth.manifest.statistics["train"]["s1"] if s.band == "VV"]
    dots = [line for line in drawn["VV"].lines if line.get_marker() == "o"]
    low, width = (float(v[0]) for v in SENTINEL1.interval(["VV"]))
    assert dots[0].get_xdata()[0] == pytest.approx((train.mean - low) / width * 255)


def test_what_is_clipped_is_said_and_does_not_dwarf_the_rest():
    from cromss.data.statistics import BandStatistics

    counts = np.zeros(256, int)
    counts[[0, 100, 101, 255]] = 500, 100, 100, 300
    band = BandStatistics(
        band="B4", pixels=1000, mean=1500, std=900, minimum=0, maximum=9000, patch_std=1, histogram=tuple(counts)
    )
    figure = histograms({"train": {"s2": (band,)}}, {"s2": physical("s2", ("B4",))})
    axes = panels(figure)["B4"]
    assert {text.get_text() for text in axes.texts} == {"50 % beyond", "30 % beyond"}
    assert axes.get_ylim()[1] < 40  # the bin of 100 and 101 holds 20 %


# --- map --------------------------------------------------------------------------------------------------------------


def points(figure) -> dict[str, np.ndarray]:
    """Split -> (N,2) as drawn."""
    return {
        artist.get_label().split(" · ")[0]: np.asarray(artist.get_offsets())
        for artist in figure.axes[0].collections
        if isinstance(artist, PathCollection)
    }


def ticks(figure) -> list[str]:
    low, high = figure.axes[0].get_xlim()
    shown = zip(figure.axes[0].get_xticks(), figure.axes[0].get_xticklabels(), strict=True)
    return [text.get_text() for x, text in shown if low <= x <= high]


def test_every_place_of_a_store_is_on_the_map_in_the_colour_of_its_split(earth):
    lon, lat, split = positions(earth)
    assert len(lon) == 9
    drawn = points(locations(lon, lat, split))
    for name in ("train", "test"):
        mine = split == name
        wanted = np.stack([lon[mine], lat[mine]], 1)
        np.testing.assert_allclose(np.sort(drawn[name], 0), np.sort(wanted, 0), atol=0.02)
    assert {len(drawn[name]) for name in drawn} == {4, 5}


def test_places_on_both_sides_of_the_date_line_are_neighbours_on_the_map():
    figure = locations(np.array([179.0, -179.5, 179.8]), np.array([-17.0, -17.5, -16.0]), np.array(["train"] * 3))
    west, east = figure.axes[0].get_xlim()
    assert east - west < 8
    (drawn,) = points(figure).values()
    assert np.ptp(drawn[:, 0]) == pytest.approx(1.5, abs=0.01)
    assert "180.0°" in ticks(figure)
    assert any(name.endswith("W") for name in ticks(figure))
    assert any(name.endswith("E") for name in ticks(figure))


def test_the_whole_earth_is_cut_at_the_date_line():
    lon = np.linspace(-179, 179, 60)
    figure = locations(lon, np.linspace(-60, 80, 60), np.array(["train"] * 60))
    assert figure.axes[0].get_xlim() == (-180, 180)
    assert "0°" in ticks(figure)
    np.testing.assert_allclose(points(figure)["train"][:, 0], lon, atol=0.1)


@pytest.mark.parametrize("lat", [0.0, 48.1, 84.0, -90.0])
def test_a_single_place_is_shown_with_some_country_around_it(lat):
    figure = locations(np.array([11.57]), np.array([lat]), np.array(["train"]))
    (west, east), (south, north) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert west < 11.57 < east
    assert south <= lat < north
    assert 0.2 < north - south < 2
    assert len(ticks(figure)) >= 2
    assert any(text.get_text().endswith("km") for text in figure.axes[0].texts)
    assert figure.legends[0].get_texts()[0].get_text() == "train · 1 place"


def test_places_without_a_position_are_counted_and_a_map_of_none_says_so():
    nan = float("nan")
    some = locations(np.array([10.0, nan]), np.array([50.0, nan]), np.array(["train", "test"]))
    assert some.legends[0].get_title().get_text() == "1 more places do not say where they lie"
    none = locations(np.array([nan, nan]), np.array([nan, nan]), np.array(["train", "test"]))
    assert none.axes[0].texts[0].get_text() == "none of 2 places says where it lies"


# --- patches ----------------------------------------------------------------------------------------------------------


def test_the_contact_sheet_shows_the_label_in_its_colours_and_the_patches_by_name(seasons):
    patches = seasons.sample(5)
    figure = contact_sheet(patches, seasons.scheme)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert len(shown) == 5 * 4  # optical, radar, label, clean label
    for number, patch in enumerate(patches):
        np.testing.assert_array_equal(shown[4 * number + 2], seasons.scheme.rgb(patch.label))
        np.testing.assert_array_equal(shown[4 * number + 3], seasons.scheme.rgb(patch.clean))
    words = {text.get_text() for text in figure.texts}
    assert {f"{patch.patch_id} · train" for patch in patches} <= words
    assert {"B4, B3, B2", "VV, VH, VV − VH", "label", "clean label"} <= words
    present = {k for patch in patches for k in np.unique([patch.label, patch.clean]) if k != IGNORE}
    assert {seasons.scheme.classes[k] for k in present} <= {text.get_text() for text in figure.legends[0].get_texts()}


def test_every_split_is_on_the_contact_sheet(earth):
    words = [text.get_text() for text in figures(earth)["contact_sheet"].texts]
    assert {word.split(" · ")[1] for word in words if " · " in word} == {"train", "test"}


def test_pixels_without_data_are_grey_in_every_image():
    valid = np.ones((4, 4), bool)
    valid[0] = False
    for modality, bands in (("s2", ("B4", "B3", "B2")), ("s2", ("B8",)), ("s1", ("VV", "VH")), ("s1", ("VH",))):
        image = composite(modality, bands, np.full((len(bands), 4, 4), -14.0, np.float32), valid)
        assert image.shape == (4, 4, 3)
        assert (image[0] == 230).all()
        assert (image[1:] != 230).any()


@pytest.mark.parametrize(("bands", "keep", "title"), [
    (("B8", "B11"), ("s2",), "B8"),
    (("B8", "B11", "B12"), ("s1", "s2"), "B8, B11, B12"),
    (("B2", "B3", "B4"), ("s2",), "B4, B3, B2"),
])  # fmt: skip
def test_what_bands_there_are_is_shown_and_named(bands, keep, title, tmp_path):
    label = np.arange(16, dtype=np.uint8).reshape(4, 4).repeat(4, 0).repeat(4, 1) % 3
    store = write(tmp_path / "store", [place("a", label, bands, keep), place("bb", label, bands, keep)])
    drawn = figures(store)
    assert title in {text.get_text() for text in drawn["contact_sheet"].texts}
    assert len(panels(drawn["histograms"])) == len(bands) + 2 * ("s1" in keep)
    assert len(portrait(store, tmp_path / "out")) == 4


@pytest.mark.parametrize("value", [3, IGNORE], ids=["one class", "unlabelled"])
def test_a_store_of_one_class_and_one_without_labels_have_a_portrait(value, tmp_path):
    label = np.full((16, 16), value, np.uint8)
    store = write(tmp_path / "store", [place(name, label) for name in ("a", "bb", "ccc")])
    drawn = figures(store)
    (row,) = bars(drawn["classes"].axes[0]).values()
    assert row == {(DYNAMIC_WORLD.colours[3] if value == 3 else UNLABELLED).upper(): 100}
    assert [text.get_text() for text in drawn["contact_sheet"].legends[0].get_texts()] == [
        "flooded vegetation" if value == 3 else "unlabelled"
    ]
    assert "none of 3 places" in drawn["map"].axes[0].texts[0].get_text()
    assert all(pixels(path).size for path in portrait(store, tmp_path / "out"))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_the_pair_sheet_lays_the_test_patch_on_its_copy(seasons, tmp_path):
    """Copies that are turned, one of them moved too: on the sheet both look alike and differ nowhere they overlap."""
    copies = []
    for i, patch in enumerate(seasons.sample(3)):
        moved = (3, 1) if i == 2 else (0, 0)
        images = {name: np.roll(turned(pixels, 5), moved, axis=(1, 2)) for name, pixels in patch.images.items()}
        copies.append(replace(patch, images=images, split="test", patch_id=f"copy{i}/0", location_id=f"copy{i}"))
    bands = {name: contract.bands for name, contract in copies[0].contracts.items()}
    with StoreWriter(tmp_path / "copies", scheme="dynamic-world", bands=bands, size=(32, 32), encoding="raw") as writer:
        for copy in copies:
            writer.add([copy], "test", 0)
    other = PatchStore.open(tmp_path / "copies")
    found = leakage(seasons, other)
    assert len(found.duplicates) == 3
    figure = pair_sheet(found, seasons, other)
    images = [axes.images[0].get_array() for axes in figure.axes]
    assert len(images) == 9
    assert sum(pair.shift != (0, 0) for pair in found.duplicates) == 1
    for test, pretraining, difference in zip(images[::3], images[1::3], images[2::3], strict=True):
        inside = (difference != 230).all(-1)
        assert inside.mean() > 0.85
        assert np.abs(test.astype(int) - pretraining)[inside].mean() < 8
        assert difference[inside].max() <= 16  # two codes
    words = [text.get_text() for text in figure.texts]
    assert sum(word.startswith("near-duplicate · r 1.000") for word in words) == 3
    assert f"pretraining  {found.duplicates[0].other.id}" in words
    assert len(pair_sheet(found, seasons, other, most=1).axes) == 3


def test_a_clean_audit_has_a_sheet_that_says_so(earth, seasons):
    found = replace(leakage(seasons, earth), lookalikes=())
    (text,) = pair_sheet(found, seasons, earth).texts
    assert text.get_text() == "no two patches are alike: 5 test patches compared with 15"
