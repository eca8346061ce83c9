"""A map lies where its scene lies, says what the network says, and is whole or not there."""

import contextlib
import resource
from dataclasses import replace

import numpy as np
import pystac
import pytest
import rasterio
import torch
from handmade import BANDS, UTM, card, values, write
from rio_cogeo.cogeo import cog_validate

from cromss.landcover import DYNAMIC_WORLD, IGNORE
from cromss.maps import job as jobs
from cromss.maps.job import Job, assemble, compute
from cromss.maps.model import Model, mean_log_probabilities
from cromss.maps.scene import Reading, survey
from cromss.maps.tiles import predict_tile
from cromss.maps.windows import Windows
from cromss.networks.scaling import ZScore
from cromss.predict import main as predict
from cromss.sensors import sensor
from cromss.training import segmenter_file

STATED = Reading(offset="0")


def mapped(model, files, window=64, overlap=16, tile=None):
    """(2, H, W) as `predict_tile` makes it, whole or tile by tile."""
    scene = survey(files, model, STATED)
    windows = Windows.on(scene.grid.size, scene.grid.transform, window, overlap)
    out = np.zeros((2, *scene.grid.size), np.uint8)
    with scene.opened() as opened:
        for box in windows.tiles(tile or max(scene.grid.size)):
            out[(slice(None), *box.within(windows.scene))] = predict_tile(model, opened, windows, box, batch_size=3)
    return out


def by_hand(model, images, valid):
    """The same, straight from the definition, pixel by pixel."""
    total, count = np.zeros((9, *next(iter(valid.values())).shape)), 0
    for name, pixels in images.items():
        own = ZScore()(torch.from_numpy(pixels)[None], sensor(name), BANDS[name], "raw")
        weights, bias = (p.detach().numpy() for p in model.network.convolutions[name].parameters())
        logits = 3 * (np.einsum("kc,chw->khw", weights[:, :, 0, 0], own[0].numpy()) + bias[:, None, None])
        softmax = np.exp(logits) / np.exp(logits).sum(0)
        total += np.where(valid[name], softmax, 0)
        count = count + valid[name].astype(int)
    probabilities = total / np.maximum(count, 1)
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(0) / np.log(9)
    classes = np.where(count > 0, probabilities.argmax(0), IGNORE)
    return classes, np.where(count > 0, 100 * entropy, IGNORE)


@pytest.mark.parametrize("given", [("s1",), ("s2",), ("s1", "s2")])
@pytest.mark.parametrize(("window", "overlap"), [(64, 16), (32, 0), (256, 64)])
def test_every_pixel_is_the_mean_of_the_modalities_that_have_data_there(model, scene, given, window, overlap):
    images = {name: values(name, 150, 170, seed) for seed, name in enumerate(("s1", "s2"))}
    images["s1"][:, 30:60, :] = 0
    images["s2"][:, :, 100:120] = 0
    valid = {name: ~(pixels == 0).all(0) for name, pixels in images.items()}
    for name in given:
        write(scene[name], images[name], BANDS[name])
    found = mapped(model, {name: scene[name] for name in given}, window, overlap)
    classes, uncertainty = by_hand(model, {n: images[n] for n in given}, {n: valid[n] for n in given})
    assert (found[0] == classes).mean() > 0.9999
    assert np.abs(found[1].astype(float) - uncertainty).max() <= 0.51
    nothing = ~np.any([valid[name] for name in given], axis=0)
    assert (found[:, nothing] == IGNORE).all()
    assert (found[:, ~nothing] != IGNORE).all()


def test_the_mean_of_probabilities_is_that_of_softmaxes():
    logits = {name: torch.randn(2, 4, 3, 5) for name in ("s1", "s2")}
    expected = torch.stack([own.softmax(1) for own in logits.values()]).mean(0)
    torch.testing.assert_close(mean_log_probabilities(logits).exp(), expected)
    everywhere = {name: torch.ones(2, 3, 5, dtype=torch.bool) for name in logits}
    torch.testing.assert_close(mean_log_probabilities(logits, everywhere).exp(), expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder whose network looks far around each pixel: a real U-Net, untrained."""
    folder = tmp_path_factory.mktemp("run")
    own = card()
    own = own.model_copy(update={"model": own.model.model_copy(update={"encoder": "tu-test_resnet"})})
    torch.manual_seed(3)
    network = own.model.fusion.build(own.model, {name: len(bands) for name, bands in BANDS.items()}, 9)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # or the untrained network gives every pixel one class
            module.running_var.mul_(0.05)
    segmenter_file.save(folder, network, own)
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A scene of 320 x 700 pixels, and its western and eastern parts, which overlap by 100 columns."""
    folder = tmp_path_factory.mktemp("wide")
    made, ground = {}, {name: values(name, 320, 700, smooth=True) for name in BANDS}
    for part, columns in {"whole": slice(0, 700), "west": slice(0, 400), "east": slice(300, 700)}.items():
        transform = (10.0, 0.0, 500_000.0 + 10 * columns.start, *UTM[3:])
        made[part] = {
            name: write(folder / f"{part}-{name}.tif", ground[name][:, :, columns].copy(), BANDS[name], transform)
            for name in BANDS
        }  # fmt: skip
    return made


def test_a_scene_and_its_halves_give_one_map_away_from_the_border(trained, wide):
    model = Model.open(trained)
    whole, west, east = (mapped(model, wide[part], window=128, overlap=32) for part in ("whole", "west", "east"))
    assert len(np.unique(whole[0])) > 2, "a map of one class has no seams"
    # a window reaches 128 pixels: so far from the cut the same windows see the same pixels
    for part, own in ((whole[:, :, : 400 - 128], west[:, :, : 400 - 128]), (whole[:, :, 428:], east[:, :, 128:])):
        assert (part[0] == own[0]).all()
        assert np.abs(part[1].astype(int) - own[1].astype(int)).max() <= 1
    assert not np.array_equal(whole[:, :, 380:400], west[:, :, 380:400]), "at the cut they cannot be the same"


def test_blending_hides_where_windows_meet(trained, wide):
    """Steps of uncertainty across window borders are no larger than elsewhere; without overlap they are."""
    model, stride = Model.open(trained), {32: 96, 0: 128}

    def excess(overlap):
        windows = Windows.on((320, 700), UTM, 128, overlap)
        uncertainty = mapped(model, wide["whole"], 128, overlap)[1].astype(float)
        steps = np.abs(np.diff(uncertainty, axis=1)).mean(0)
        borders = [c for c in range(windows.phase[1], 699, stride[overlap]) if c > 0]
        return steps[[c - 1 for c in borders]].mean() / steps.mean()

    assert excess(32) < 1.5
    assert excess(0) > 2 * excess(32)


def test_a_map_does_not_depend_on_its_tiles(trained, wide):
    model = Model.open(trained)
    whole, tiled = (mapped(model, wide["whole"], 128, 32, tile) for tile in (None, 192))
    assert (whole[0] == tiled[0]).mean() > 0.9999
    assert np.abs(whole[1].astype(int) - tiled[1].astype(int)).max() <= 1


# --- the verb ---------------------------------------------------------------------------------------------------------


def run(trained, files, out, *words):
    scene = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    return predict(
        [
            "--model",
            str(trained),
            *scene,
            "--out",
            str(out),
            "--window",
            "128",
            "--overlap",
            "32",
            "--offset",
            "0",
            *words,
        ]
    )


def test_the_map_opens_in_a_gis_exactly_on_the_scene(trained, wide, tmp_path, capsys):
    assert run(trained, wide["whole"], tmp_path / "map.tif", "--date", "2020-06-12") == 0
    said = capsys.readouterr().out
    assert cog_validate(tmp_path / "map.tif", strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(wide["whole"]["s2"]) as scene:
        assert file.transform == scene.transform
        assert file.crs == scene.crs
        assert file.shape == scene.shape
        assert file.nodata == IGNORE
        assert [tuple(file.colormap(1)[k][:3]) for k in range(9)] == [
            tuple(rgb) for rgb in DYNAMIC_WORLD.rgb(np.arange(9)).tolist()
        ]
        assert file.colorinterp[1] != rasterio.enums.ColorInterp.alpha, "a GIS would draw it as transparency"
        assert file.tags(1)["CLASS_3"] == "flooded vegetation"
        assert file.scales == (1, 0.01)
        classes = file.read(1)
    expected = mapped(Model.open(trained), wide["whole"], 128, 32)
    assert (classes == expected[0]).mean() > 0.9999
    assert f"{np.bincount(classes.ravel()).max() / classes.size:6.1%}" in said
    item = pystac.Item.from_file(tmp_path / "map.json")
    assert item.datetime.isoformat() == "2020-06-12T00:00:00+00:00"
    assert item.properties["proj:transform"] == list(UTM)
    assert item.properties["cromss:pixels"]["water"] == int((classes == 0).sum())
    assert [one["title"] for one in item.assets["map"].extra_fields["classification:classes"]] == list(
        DYNAMIC_WORLD.classes
    )
    assert (tmp_path / item.assets["map"].href).is_file()
    assert "<Category>snow and ice</Category>" in (tmp_path / "map.tif.aux.xml").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.json", "map.png", "map.tif", "map.tif.aux.xml"]
    # the same again changes nothing; another map of that name is refused
    before = (tmp_path / "map.tif").stat().st_mtime_ns
    assert run(trained, wide["whole"], tmp_path / "map.tif") == 0
    assert "there already" in capsys.readouterr().out
    assert (tmp_path / "map.tif").stat().st_mtime_ns == before
    assert run(trained, wide["west"], tmp_path / "map.tif") == 2
    assert "is another map; --overwrite" in capsys.readouterr().err
    assert run(trained, wide["west"], tmp_path / "map.tif", "--overwrite") == 0


def test_one_pixel_is_a_scene(trained, tmp_path):
    one = {name: write(tmp_path / f"{name}.tif", values(name, 1, 1), BANDS[name]) for name in BANDS}
    assert run(trained, one, tmp_path / "map.tif") == 0
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.shape == (1, 1)
        assert file.read(1)[0, 0] < 9


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        ((8.0, 6.0, 500_000.0, 6.0, -8.0, 5_000_000.0), "EPSG:32633"),  # turned by 37 degrees
        ((0.0, 10.0, 500_000.0, 10.0, 0.0, 5_000_000.0), "EPSG:32633"),  # rows to the east
        ((1e-4, 0.0, 15.0, 0.0, -1e-4, 45.0), "EPSG:4326"),
        ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), None),  # nobody says where it lies
    ],
)
def test_any_grid_is_kept(trained, tmp_path, transform, crs):
    files = {
        name: write(tmp_path / f"{name}.tif", values(name, 90, 130), BANDS[name], transform, crs) for name in BANDS
    }
    assert run(trained, files, tmp_path / "map.tif") == 0
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(files["s2"]) as scene:
        assert tuple(file.transform)[:6] == pytest.approx(transform)
        assert file.crs == scene.crs
        assert (file.read(1) == mapped(Model.open(trained), files, 128, 32)[0]).mean() > 0.999
    assert cog_validate(tmp_path / "map.tif", strict=True)[0]
    item = pystac.Item.from_file(tmp_path / "map.json")
    assert (item.bbox is None) == (crs is None)


def test_several_scenes_by_ray_are_those_of_one_process(trained, wide, tmp_path, ray_session, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "ray").mkdir()
    both = [str(wide[part]["s2"]) for part in ("west", "east")]
    for folder, words in (("here", []), ("ray", ["--workers", "2", "--tile", "512"])):
        assert predict(["--model", str(trained), "--s2", *both, "--out", str(tmp_path / folder), "--window", "128",
                        "--overlap", "32", "--offset", "0", "--tile", "1024", *words]) == 0  # fmt: skip
    for name in ("west-s2-map.tif", "east-s2-map.tif"):
        with rasterio.open(tmp_path / "here" / name) as here, rasterio.open(tmp_path / "ray" / name) as there:
            assert (here.read(1) == there.read(1)).mean() > 0.9999
    assert "2/2 tiles" in capsys.readouterr().out


def job_of(trained, files, out):
    scene = survey(files, Model.open(trained), STATED)
    windows = Windows.on(scene.grid.size, scene.grid.transform, 128, 32)
    return Job(scene, windows, trained / segmenter_file.NAME, out, 192)


def test_an_interrupted_map_goes_on_from_its_tiles(trained, wide, tmp_path):
    job = job_of(trained, wide["whole"], tmp_path / "map.tif")
    job.begin()
    for tile in job.tiles[:3]:
        compute(job, tile)
    job.part(job.tiles[1]).write_bytes(job.part(job.tiles[1]).read_bytes()[:-7])  # torn
    np.save(job.part(job.tiles[2]), np.zeros((2, 5, 5), np.uint8))  # of another shape
    assert not job.out.exists()
    again = replace(job)
    assert again.begin() == ""
    assert again.missing() == job.tiles[1:]
    for tile in again.missing():
        compute(again, tile)
    assemble(again, "map", None)
    with rasterio.open(job.out) as file:
        assert (file.read(1) == mapped(Model.open(trained), wide["whole"], 128, 32)[0]).mean() > 0.9999
    assert not job.work.exists()
    # tiles of other inputs are no tiles of this map
    job = replace(job, out=tmp_path / "other.tif")
    job.begin()
    compute(job, job.tiles[0])
    assert (
        replace(job, windows=replace(job.windows, overlap=16)).begin()
        == "tiles of another map with this name were thrown away"
    )
    assert len(job.missing()) == len(job.tiles)


@contextlib.contextmanager
def room_for(most):
    """No file can grow beyond so many bytes: the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("most", [100, 20_000, 60_000])  # what is full then: plain.tif, the picture, the COG
def test_a_full_disk_leaves_no_half_map_and_loses_no_tile(trained, wide, tmp_path, most):
    job = job_of(trained, wide["whole"], tmp_path / "map.tif")
    job.begin()
    with (
        room_for(1000),
        pytest.raises(ValueError, match=r"map.tif: no tile can be kept .* from the 0 of 8 that are there"),
    ):
        compute(job, job.tiles[0])
    assert len(job.missing()) == 8
    for tile in job.tiles:
        compute(job, tile)
    with room_for(most), pytest.raises(ValueError, match=r"cannot be written"):
        assemble(job, "map", None)
    assert not job.out.exists()
    assert job.missing() == []
    assemble(job, "map", None)
    assert cog_validate(job.out, strict=True)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.json", "map.png", "map.tif", "map.tif.aux.xml"]


def test_what_did_not_reach_the_disk_is_noticed_where_gdal_is_silent(trained, wide, tmp_path, monkeypatch):
    job = job_of(trained, wide["west"], tmp_path / "map.tif")
    job.begin()
    for tile in job.tiles:
        compute(job, tile)
    look = jobs._histogram

    def torn(path, tiles):  # as if the last rows had not been written when the file was closed
        with rasterio.open(path, "r+") as file:
            file.write(np.full((2, 8, 400), IGNORE, np.uint8), window=rasterio.windows.Window(0, 312, 400, 8))
        return look(path, tiles)

    monkeypatch.setattr(jobs, "_histogram", torn)
    with pytest.raises(ValueError, match="not all of it reached the disk"):
        assemble(job, "map", None)
    assert not job.out.exists()


def test_a_map_that_would_not_fit_is_refused_before_it_is_begun(trained, wide, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert run(trained, wide["whole"], tmp_path / "map.tif") == 2
    assert "needs 1 MiB while it is made, 0 MiB are free" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--tile", "700"], "--tile 700: must be a multiple of 512"),
        (["--batch", "0"], "--batch 0: must be 1 or more"),
        (["--window", "100", "--overlap", "10"], "--window 100: must be a multiple of 32"),
        (["--overlap", "100"], "overlap=100: must lie in [0, 64]"),
        (["--date", "yesterday"], "--date yesterday: expected YYYY-MM-DD"),
        (["--out", "map.png"], "--out map.png: a map is a .tif"),
    ],
)
def test_mistakes_are_refused_by_name(trained, wide, tmp_path, capsys, words, named):
    assert run(trained, wide["whole"], tmp_path / "map.tif", *words) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_is_no_network_that_knows_classes(tmp_path, wide, capsys):
    from cromss.networks.encoders import EncoderCard, build_encoder, save_encoder

    encoder = EncoderCard(architecture="tu-test_resnet", modality="s2", bands=BANDS["s2"])
    save_encoder(tmp_path / "s2.safetensors", build_encoder("tu-test_resnet", 3), encoder)
    assert run(tmp_path / "s2.safetensors", wide["whole"], tmp_path / "map.tif") == 2
    assert "s2.safetensors: is an encoder, which knows no classes; give the run's folder" in capsys.readouterr().err
    assert not (tmp_path / "map.tif").exists()


def test_the_scene_itself_is_never_overwritten(trained, wide, capsys):
    before = wide["whole"]["s2"].read_bytes()
    assert run(trained, wide["whole"], wide["whole"]["s2"], "--overwrite") == 2
    assert "is one of the scenes" in capsys.readouterr().err
    assert wide["whole"]["s2"].read_bytes() == before
