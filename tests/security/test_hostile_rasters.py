"""A GeoTIFF that somebody else made leads nowhere: not as a VRT, not by side-cars, not by its own metadata."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from trees import acquisition, dfc2020_tree, geotiff_tree, optical, ssl4eo_tree, write_tif

from cromss.data.ingestion import ingest
from cromss.data.raster import read_raster
from cromss.data.sources.layouts import LAYOUTS
from cromss.settings import validate

_NUMBERS = itertools.count()  # GDAL remembers an address that answered 404 and does not ask again


def remote(listener) -> str:
    return f"/vsicurl/{listener.url}/{next(_NUMBERS)}.tif"


def vrt(source: str, size: int = 32, bands: int = 1) -> str:
    band = (
        '<VRTRasterBand dataType="UInt16" band="{}"><SimpleSource><SourceFilename>{}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )
    lines = "".join(band.format(number + 1, source) for number in range(bands))
    return f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}">{lines}</VRTDataset>'


def test_the_trap_would_be_heard(listener, tmp_path):
    """GDAL as it comes follows it: the silence below means something."""
    (tmp_path / "a.tif").write_text(vrt(remote(listener)))
    with pytest.raises(rasterio.errors.RasterioError), rasterio.open(tmp_path / "a.tif") as file:
        file.read()
    assert listener.calls


@pytest.mark.parametrize("size", [None, (16, 16), (64, 64)])
@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".aux.xml", ".vrt"])
def test_side_cars_are_not_looked_at(listener, tmp_path, suffix, size):
    path = write_tif(tmp_path / "a.tif", optical(bands=["B2"]))
    address = remote(listener)
    if suffix == ".aux.xml":
        content = (
            f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{address}</MDI></Metadata></PAMDataset>'
        )
    else:
        content = vrt(address)
    path.with_name(path.name + suffix).write_text(content)
    read_raster(path, size=size)
    read_raster(path, size=size, smooth=True)
    assert listener.calls == []


@pytest.mark.parametrize(("key", "domain"), [("OVERVIEW_FILE", "OVERVIEWS"), ("overview_file", "overviews")])
def test_metadata_that_name_another_file_for_overviews_are_refused(listener, tmp_path, key, domain):
    """GDAL opens it, by any driver, as soon as the image is read at a coarser size."""

    def trap(name):
        path = write_tif(tmp_path / name, np.full((64, 64), 7, np.uint8))
        with rasterio.open(path, "r+") as file:
            file.update_tags(ns=domain, **{key: remote(listener)})
        return path

    for name, size in (("a.tif", None), ("b.tif", (16, 16))):
        with pytest.raises(ValueError, match="name another file for its overviews"):
            read_raster(trap(name), size=size)
    assert listener.calls == []
    with rasterio.open(trap("c.tif"), driver="GTiff") as file:
        file.read(out_shape=(1, 16, 16))
    assert listener.calls  # as GDAL would have


def stac_tree(root: Path) -> Path:
    from test_source_stac import collected, stac_item

    collected(root, stac_item(root, "x"), stac_item(root, "y"))
    return root


TREES = {"geotiff": geotiff_tree, "ssl4eo": ssl4eo_tree, "dfc2020": dfc2020_tree, "stac": stac_tree}


@pytest.mark.parametrize("layout", TREES)
def test_no_layout_follows_a_vrt_under_the_name_of_a_tif(listener, tmp_path, layout):
    """One location's images are VRTs: it is skipped by name, the others are ingested, and nobody is called."""
    tree = TREES[layout](tmp_path / "tree")
    files = sorted(tree.rglob("*.tif"))
    assert len(files) > 4
    spoiled = files[: len(files) // 2]
    for file in spoiled:
        file.write_text(vrt(remote(listener), bands=13))
    summary = ingest(validate(LAYOUTS[layout], {"path": str(tree)}), tmp_path / "store")
    assert listener.calls == []
    assert summary.skipped
    assert "not a readable GeoTIFF" in str(summary)


def test_a_link_that_leads_to_a_vrt_is_a_vrt(listener, tmp_path):
    acquisition(tmp_path / "tree" / "a" / "1")
    (tmp_path / "real.vrt").write_text(vrt(remote(listener), bands=13))
    image = tmp_path / "tree" / "a" / "1" / "s2.tif"
    image.unlink()
    image.symlink_to(tmp_path / "real.vrt")
    with pytest.raises(ValueError, match="not a readable GeoTIFF"):
        read_raster(image)
    shutil.copy(tmp_path / "real.vrt", tmp_path / "b.tif")
    with pytest.raises(ValueError, match="not a readable GeoTIFF"):
        read_raster(tmp_path / "b.tif")
    assert listener.calls == []
