"""Real pixels, end to end: GeoTIFFs in, a ranked sweep with pictures of real land out."""

import contextlib
import io
import json

import numpy as np
import pytest
from rasterio.warp import transform_bounds
from tiny import TINY

from cromss.data.overlap import overlap, warning
from cromss.data.store import PatchStore
from cromss.ingest import main as ingest
from cromss.landcover import TERRAMESH
from cromss.settings import overlay
from cromss.sweep import sweep
from cromss.trials.space import Space, grid

ARMS = Space("arms", "Does it run on real land?", {}, {"arm": grid("random", "CromSS-midF")}, "", 1)
REAL = {
    "optim": {"epochs": 1},
    "transfer": {"epochs": 1, "protocol": {"kind": "two_fold"}, "panels": 9},
    "scaling": {"num_workers": 2},
}
TILES = ["--tile", "64", "--bands", "9"]
JUDGED = ["--include", "terramesh-*", "--label", "reference.tif", "--scheme", "terramesh", "--encoding", "raw",
          "--split", "halves", "--axis", "north-south"]  # fmt: skip


def written(pairs, store, *options):
    """(store, what ingest printed)."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert ingest(["geotiff", str(pairs), str(store), *TILES, *options]) == 0
    return PatchStore.open(store), said.getvalue()


def rows(store, *columns):
    """Every acquisition of every place."""
    blocks = store.blocks
    for block in range(len(blocks)):
        for slot in range(blocks.n[block]):
            table = store.read(int(blocks.shard[block]), int(blocks.first[block]) + slot, list(columns))
            yield from zip(*(table[column].to_pylist() for column in columns), strict=True)


@pytest.fixture(scope="module")
def pairs(shared):
    return shared / "data/real/pairs"


@pytest.fixture(scope="module")
def pretraining(pairs, tmp_path_factory):
    return written(pairs, tmp_path_factory.mktemp("real") / "pretraining", "--exclude", "terramesh-*", "--offset", "0")


@pytest.fixture(scope="module")
def downstream(pairs, tmp_path_factory):
    return written(pairs, tmp_path_factory.mktemp("real") / "downstream", *JUDGED)


@pytest.fixture(scope="module")
def swept(ray_session, pretraining, downstream, tmp_path_factory):
    out = tmp_path_factory.mktemp("real-sweep")
    return out, sweep(ARMS, overlay(TINY, REAL), pretraining[0].path, downstream[0].path, out)


@pytest.fixture(scope="module")
def trained(swept):
    return next(trial for trial in swept[1]["trials"] if trial["arm"] == "CromSS-midF")


def test_every_location_comes_in_and_offsets_are_decided_acquisition_by_acquisition(pretraining, downstream):
    found = {}
    for store, _ in (pretraining, downstream):
        for location, notes in rows(store, "location_id", "notes"):
            found.setdefault(location.split("-")[0] + location[-4:], set()).add(json.loads(notes)["s2_offset"])
    assert found == {
        "terramesh_3_3": {"1000 removed, by B10"},
        "terramesh_3_0": {"1000 removed, by B10"},
        "terramesh_2_3": {"none, by B10"},
        "sen12mscrp839": {"none, by B10"},
        "sen1floods110579": {"none, by B10"},
        "worldcereal_100": {"none, stated"},  # nine bands, B10 not among them
    }
    assert "100 patches of 81 places" in pretraining[1]
    assert "1000 removed, by B10: 2" in downstream[1]


def test_northern_and_southern_halves_hold_the_same_classes(downstream):
    north, south = (
        {name for name, pixels in downstream[0].manifest.histogram[split].items() if pixels and name != "unlabelled"}
        for split in ("train", "test")
    )
    assert north == south
    assert len(north) == 6


def test_no_pretraining_tile_and_no_tile_of_the_other_half_lies_on_a_judged_one(pretraining, downstream):
    """Oracle: bounding boxes in degrees; between halves, the rows of pixels left out."""
    boxes = [
        [_degrees(store, *row) for row in rows(store, "crs", "transform")] for store in (pretraining[0], downstream[0])
    ]
    for west, south, east, north in boxes[0]:
        assert all(e < west or w > east or n < south or s > north for w, s, e, n in boxes[1])
    places = list(rows(downstream[0], "location_id", "split", "transform"))
    for location in {place[0] for place in places}:
        top = {split: [t[5] for name, s, t in places if (name, s) == (location, split)] for split in ("train", "test")}
        assert (min(top["train"]) - 640 - max(top["test"])) / 10 >= 64


def test_an_overlap_is_counted_and_said_in_one_line(pairs, pretraining, downstream, tmp_path):
    assert overlap(pretraining[0], downstream[0], "two_fold") == {"tiles": 18, "shared": 0, "example": []}
    greedy, _ = written(pairs, tmp_path / "greedy", "--include", "terramesh-*")
    for protocol, tiles in (("two_fold", 18), ("holdout", 9)):
        seen = overlap(greedy, downstream[0], protocol)
        assert (seen["tiles"], seen["shared"]) == (tiles, tiles)
        assert seen["example"][0].split("/")[0] == seen["example"][1].split("/")[0]
    assert warning(seen).startswith("warning: 9 of 9 downstream test tiles lie on pretraining tiles (terramesh-")
    assert len(warning(seen).splitlines()) == 1


@pytest.mark.timeout(280)
def test_two_workers_pretrain_and_both_halves_judge(swept, downstream):
    out, outcome = swept
    trials = {trial["arm"]: trial for trial in outcome["trials"]}
    assert {arm: trial["status"] for arm, trial in trials.items()} == {"random": "done", "CromSS-midF": "done"}
    assert trials["CromSS-midF"]["pretraining"]["workers"] == 2
    labelled = sum(
        pixels for counts in downstream[0].manifest.histogram.values() for name, pixels in counts.items()
        if name != "unlabelled"
    )  # fmt: skip
    for trial in outcome["trials"]:
        assert [run["modality"] for run in trial["downstream"]] == ["s1", "s2"]
        for run in trial["downstream"]:
            assert (run["protocol"], run["classes"]) == ("two_fold", list(TERRAMESH.classes))
            assert np.sum(run["confusion"]) == labelled
    assert json.loads((out / "sweep.json").read_text())["overlap"]["shared"] == 0
    page = outcome["report"].read_text()
    assert all(words in page for words in ("Dynamic World", "TerraMesh land cover", "Test patches, S1 frozen"))


@pytest.mark.timeout(280)
def test_the_pictures_show_the_land_that_the_reference_map_tells(trained):
    with np.load(trained["folder"] / "transfer/s2-frozen-0/panels.npz") as archive:
        rgb, reference = archive["rgb"].astype(float), archive["reference"]
        assert archive["prediction"].shape == reference.shape == (18, 64, 64)
    mean = {name: rgb[reference == number].mean(0) for number, name in enumerate(TERRAMESH.classes)
            if (reference == number).any()}  # fmt: skip
    red, green, blue = range(3)
    assert mean["snow and ice"].min() > 180
    assert np.ptp(mean["snow and ice"]) < 30
    assert mean["water"].argmin() == red
    assert mean["trees"].argmax() == green
    assert mean["trees"].max() < 0.6 * mean["crops"].max()
    assert mean["rangeland"].argmax() == red
    assert mean["rangeland"].argmin() == blue


@pytest.mark.timeout(280)
def test_no_picture_of_the_pretraining_tiles_is_black_white_or_flat(trained):
    with np.load(trained["folder"] / "panels.npz") as archive:
        rgb, s1 = archive["rgb"], archive["s1"]
        assert str(archive["scheme"]) == "dynamic-world"
        assert len({str(name).split("/")[0] for name in archive["ids"]}) == 3  # of every location
    for patch in (*rgb, *s1):
        assert patch.std() > 8
        assert 25 < patch.mean() < 200
        assert np.isin(patch, (0, 255)).mean() < 0.3


def _degrees(store, crs, transform):
    a, _, west, _, e, north = transform
    height, width = store.size
    return transform_bounds(crs, "EPSG:4326", west, north + e * height, west + a * width, north)
