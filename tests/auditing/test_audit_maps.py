"""The files: names that stay in their folder, bands that a GIS reads, items that pystac reads."""

import json

import numpy as np
import pytest
import rasterio
from audited import rows
from hypothesis import given
from hypothesis import strategies as st

from cromss.auditing.maps import bands_of, file_name, pixels_of, suggested_of, write_map
from cromss.landcover import DYNAMIC_WORLD

EVIL = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/../b",
    "C:\\x",
    "a\0b",
    "-",
    "x" * 5000,
    "ä/ö",
    "a\nb",
    ".hidden",
]


@pytest.mark.parametrize("patch_id", EVIL)
def test_no_id_leaves_the_folder(patch_id, tmp_path):
    name = file_name(patch_id)
    path = (tmp_path / f"{name}.tif").resolve()
    assert path.parent == tmp_path.resolve()
    assert not name.startswith(".")
    assert name.isascii()
    assert len(name) < 128
    path.write_bytes(b"")


def test_ids_that_look_alike_have_files_of_their_own():
    alike = ["a/b", "a_b", "a\\b", "a b", "a/b ", file_name("a/b"), file_name(file_name("a/b"))]
    assert len({file_name(name) for name in alike}) == len(alike)
    assert file_name("earth-000001.r0c1") == "earth-000001.r0c1"


@given(st.lists(st.text(max_size=12), unique=True, max_size=8))
def test_no_two_ids_share_a_file(ids):
    assert len({file_name(one) for one in ids}) == len(ids)


@pytest.fixture
def seen():
    return rows([0, 1, 255, 3], [0.5, 1.0, 0.0, 0.25], suggested=[4, 1, 2, 3], valid=[True, True, True, False])


def written(seen, folder):
    flagged = np.array([[[True, False, False, False]]])
    weights = np.where(seen.judged, seen.joint, 0)
    pixels = pixels_of(seen, 0, flagged, weights, suggested_of(seen, 0.7))
    return write_map(folder, seen.rows[0], pixels, ("s2",), DYNAMIC_WORLD, {"cromss:flagged": 1})


def test_every_band_by_hand(seen, tmp_path):
    made = written(seen, tmp_path)
    with rasterio.open(tmp_path / f"{made.id}.tif") as file:
        found = dict(zip(file.descriptions, file.read()[:, 0].tolist(), strict=True))
        assert (file.crs.to_epsg(), tuple(file.transform)[:6], file.nodata) == (32632, (10, 0, 5e5, 0, -10, 5e6), 255)
        assert file.colormap(1)[1][:3] == (0x39, 0x7D, 0x49)
        assert file.scales[3] * 254 == pytest.approx(1)
        assert file.tags()["patch_id"] == "a/b"
    assert found == {
        "suggested label": [4, 1, 2, 255],  # an unlabelled pixel has one, one without image data has not
        "given label": [0, 1, 255, 255],
        "flagged": [1, 0, 255, 255],
        "label weight": [127, 254, 255, 255],
        "label confidence": [127, 254, 255, 255],
        "entropy": [127, 127, 127, 255],
        "disagreement": [255] * 4,  # a lone modality
        "label confidence s2": [127, 254, 255, 255],
    }
    assert list(found) == [band.name for band in bands_of(("s2",))]


def test_it_is_a_cog_and_its_item_says_where_and_when(seen, tmp_path):
    cogeo, pystac = pytest.importorskip("rio_cogeo.cogeo"), pytest.importorskip("pystac")
    seen.rows[0]["acquisition"] = "S2A_MSIL1C_20200612T101031"
    made = written(seen, tmp_path)
    valid, errors, warnings = cogeo.cog_validate(tmp_path / f"{made.id}.tif", strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    item = pystac.Item.from_file(str(tmp_path / f"{made.id}.json"))
    assert item.datetime.date().isoformat() == "2020-06-12"
    assert item.assets["audit"].href == f"./{made.id}.tif"
    assert [band["name"] for band in item.assets["audit"].extra_fields["bands"]][2] == "flagged"
    west, south, east, north = item.bbox
    assert (8 < west < east < 10, 44 < south < north < 46) == (True, True)
    assert item.properties["cromss:flagged"] == 1


def test_what_is_there_is_not_written_again(seen, tmp_path):
    made = written(seen, tmp_path)
    (tmp_path / f"{made.id}.tif").write_bytes(b"as it was")
    assert written(seen, tmp_path).id == made.id
    assert (tmp_path / f"{made.id}.tif").read_bytes() == b"as it was"
    (tmp_path / f"{made.id}.json").unlink()  # the mark of a finished map
    written(seen, tmp_path)
    assert (tmp_path / f"{made.id}.tif").read_bytes()[:2] == b"II"
    json.loads((tmp_path / f"{made.id}.json").read_text())


def test_what_is_not_sure_is_not_suggested(seen):
    seen.sure[:] = [[[round(254 * 0.69), round(254 * 0.7), 254, 254]]]
    assert suggested_of(seen, 0.7)[0, 0].tolist() == [255, 1, 2, 255]
