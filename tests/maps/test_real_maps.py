"""Maps of real Sentinel-1 and -2 tiles: on the tile to the pixel, whatever offset, data type and CRS it has."""

import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from cromss.benchmarks.predict import untrained
from cromss.landcover import IGNORE
from cromss.predict import main as predict

OFFSET = {"terramesh-282D_485L_3_3/0", "terramesh-609U_541L_3_0/0"}  # of processing baseline 04.00


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run"), "tu-test_resnet")


@pytest.mark.parametrize(
    "tile",
    [
        "terramesh-282D_485L_3_3/0",
        "terramesh-38D_378R_2_3/0",
        "terramesh-609U_541L_3_0/0",
        "sen12mscr-ROIs1970_fall_139_p839/0",
        "sen1floods11-Spain_7370579/0",
    ],
)
def test_the_map_of_a_real_tile_lies_exactly_on_it(shared, run, tmp_path, capsys, tile):
    folder = shared / "data/real/pairs" / tile
    assert predict(["--model", str(run), "--s1", str(folder / "s1.tif"), "--s2", str(folder / "s2.tif"), "--out",
                    str(tmp_path / "map.tif"), "--window", "128", "--overlap", "32"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert ("s2 offset: 1000 removed, by B10" in said) == (tile in OFFSET)
    assert "warped" not in said, "one grid: transforms that differ in the tenth digit are no reason to interpolate"
    with rasterio.open(folder / "s2.tif") as scene, rasterio.open(tmp_path / "map.tif") as file:
        assert (file.transform, file.crs, file.shape) == (scene.transform, scene.crs, scene.shape)
        optical = (scene.read() != 0).any(0)
        classes, uncertainty = file.read()
    assert (classes[optical] != IGNORE).all()
    assert uncertainty[classes != IGNORE].max() <= 100
    assert cog_validate(tmp_path / "map.tif", strict=True) == (True, [], [])


def test_nine_bands_are_not_thirteen(shared, run, tmp_path, capsys):
    folder = sorted((shared / "data/real/pairs/worldcereal-wc_belgium_100").iterdir())[0]
    assert predict(["--model", str(run), "--s2", str(folder / "s2.tif"), "--out", str(tmp_path / "map.tif")]) == 2
    assert "lacks s2 B1, B8A, B9, B10; it holds B2" in capsys.readouterr().err
