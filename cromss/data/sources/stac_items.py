"""What STAC items say: where and when, which local files hold their imagery, what the bands and numbers are."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cromss.data import radiometry
from cromss.data.sources.products import level_of
from cromss.data.sources.stac_json import Fault, find_items, local_file, one_line, unreadable
from cromss.sensors import SENSORS, SENTINEL1, SENTINEL2, Sensor

if TYPE_CHECKING:
    import pystac

_COMMON = {
    "coastal": "B1", "blue": "B2", "green": "B3", "red": "B4", "rededge071": "B5", "rededge075": "B6",
    "rededge078": "B7", "rededge1": "B5", "rededge2": "B6", "rededge3": "B7", "nir": "B8", "nir08": "B8A",
    "nir09": "B9", "cirrus": "B10", "swir16": "B11", "swir22": "B12",
}  # fmt: skip
_BASELINE = ("processing:baseline", "s2:processing_baseline", "processing_baseline")
_PRODUCT = ("s2:product_uri", "s2:product_type", "product:type", "title")


@dataclass(frozen=True)
class Band:
    """What an item says about one band; None or "" where it says nothing."""

    name: str = ""
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Layer:
    """One asset. `fault` is why its file may not be opened; `bands` is empty where the item does not describe them."""

    file: Path
    bands: tuple[Band, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Record:
    """What this project needs of an item. `layers` = what to read of s1, s2, label: one asset, or several of one role."""

    id: str
    place: str
    time: datetime
    split: str
    level: str
    product: tuple[str, ...]  # texts that may tell the processing baseline
    offset_removed: bool  # says of itself that the +1000 offset is gone
    layers: dict[str, tuple[Layer, ...]]


def read_records(path: Path, assets: Mapping[str, str], location: str) -> list[Record | Fault]:
    """Every item of `path`: a FeatureCollection, an item, a catalogue or collection, or a folder of them.

    assets    s1, s2, label -> the key or the role of its assets
    location  the property that names an item's location

    Raises ValueError when there is none, or when `path` itself cannot be read.
    """
    found = [
        item if isinstance(item, Fault) else _record(item, base, root, assets, location)
        for item, base, root in find_items(path)
    ]
    if not found:
        raise ValueError(f"{path}: holds no STAC item")
    return found


def _record(found: Any, base: Path, root: Path, assets: Mapping[str, str], location: str) -> Record | Fault:
    import pystac

    name = str(found.get("id", "item without id")) if isinstance(found, dict) else "item"
    try:
        item = pystac.Item.from_dict(found, migrate=False, preserve_dict=False)
        said = item.properties
        texts = [str(said[key]) for key in _PRODUCT if key in said]
        return Record(
            id=item.id,
            place=_place(item, location),
            time=_time(item),
            split=str(said.get("split", "train")),
            level=level_of([str(said.get("processing:level", "")), *texts, item.id, str(item.collection_id or "")]),
            product=(*(_baseline(said[key]) for key in _BASELINE if key in said), *texts, item.id),
            offset_removed=said.get("earthsearch:boa_offset_applied") is True,
            layers={what: _layers(item, what, wanted, base, root) for what, wanted in assets.items()},
        )
    except unreadable() as error:
        return Fault(name, one_line(error, "is no STAC item"))


def _baseline(value: Any) -> str:
    return f"{value:05.2f}" if isinstance(value, int | float) else str(value)


def _time(item: "pystac.Item") -> datetime:
    from pystac.utils import str_to_datetime

    time = item.datetime
    if time is None and isinstance(start := item.properties.get("start_datetime"), str):
        time = str_to_datetime(start)
    if time is None:
        raise ValueError("has no datetime")
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def _place(item: "pystac.Item", location: str) -> str:
    """The property, else the grid code, else the centroid to 1e-4 degrees (about 10 m)."""
    for key in (location, "grid:code"):
        value = item.properties.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return " ".join(str(value).split())
        if value is not None:
            raise ValueError(f"its property {key} is {value!r:.40}, expected the name of a place")
    lon, lat = _centroid(item.geometry)
    return f"{abs(lat):.4f}{'S' if round(lat, 4) < 0 else 'N'}_{abs(lon):.4f}{'W' if round(lon, 4) < 0 else 'E'}"


def _centroid(geometry: Any) -> tuple[float, float]:
    """Of a Point, or of the outer rings of a Polygon or MultiPolygon, by area."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "Point":
        lon, lat = geometry["coordinates"][:2]
        return float(lon), float(lat)
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError("tells no place: neither the property, nor a grid code, nor a polygon")
    polygons = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
    area = x = y = 0.0
    for ring in (polygon[0] for polygon in polygons):
        x0, y0 = ring[0][:2]  # relative to a corner, or small areas drown in rounding
        for (x1, y1, *_), (x2, y2, *_) in pairwise(ring):
            x1, y1, x2, y2 = x1 - x0, y1 - y0, x2 - x0, y2 - y0
            cross = (x1 * y2 - x2 * y1) / 2
            area += cross
            x += cross * ((x1 + x2) / 3 + x0)
            y += cross * ((y1 + y2) / 3 + y0)
    if not (area and math.isfinite(x / area) and math.isfinite(y / area)):
        raise ValueError("tells no place: its polygon is empty")
    return x / area, y / area


def _layers(item: "pystac.Item", what: str, wanted: str, base: Path, root: Path) -> tuple[Layer, ...]:
    """The asset of that key, else all of that role; of several, those that are bands of the sensor."""
    sensor = {"s1": SENTINEL1, "s2": SENTINEL2}.get(what)
    if wanted in item.assets:
        return (_layer(wanted, item.assets[wanted], sensor, base, root),)
    roles = {key: asset.roles if isinstance(asset.roles, list) else [] for key, asset in item.assets.items()}
    found = [_layer(key, item.assets[key], sensor, base, root) for key in item.assets if wanted in roles[key]]
    if len(found) > 1 and sensor:
        found = [layer for layer in found if layer.bands and all(band.name for band in layer.bands)]
    return tuple(found)


def _layer(key: str, asset: "pystac.Asset", sensor: Sensor | None, base: Path, root: Path) -> Layer:
    bands = tuple(_band(said, asset.extra_fields, sensor) for said in _described(asset.extra_fields))
    if sensor and not any(band.name for band in bands) and len(bands) < 2:  # an asset a band, named by its key
        polarisations = asset.extra_fields.get("sar:polarizations")
        alone = polarisations[0] if isinstance(polarisations, list) and len(polarisations) == 1 else ""
        if name := _known(sensor, alone) or _known(sensor, key):
            bands = (Band(**{**vars(bands[0] if bands else Band()), "name": name}),)
    try:
        return Layer(local_file(str(asset.href), base, root), bands)
    except ValueError as error:
        return Layer(Path(), bands, str(error))


def _described(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict a band, of STAC 1.1 `bands`, or of 1.0 `eo:bands` and `raster:bands` together."""
    lists = [fields[key] for key in ("bands", "eo:bands", "raster:bands") if fields.get(key)]
    if any(not isinstance(one, list) or any(not isinstance(band, dict) for band in one) for one in lists):
        raise ValueError("an asset's bands are no list of objects")
    if len({len(one) for one in lists}) > 1:
        raise ValueError(f"an asset describes {' and '.join(str(len(one)) for one in lists)} bands at once")
    described = [
        {key: value for band in together for key, value in band.items()} for together in zip(*lists, strict=True)
    ]
    common = ("nodata", "unit", "raster:scale", "raster:offset")  # STAC 1.1: of all bands, told once
    return described or ([{}] if any(key in fields for key in common) else [])


def _band(said: Mapping[str, Any], asset: Mapping[str, Any], sensor: Sensor | None) -> Band:
    def number(*keys: str) -> float | None:
        for source in (said, asset):
            for key in keys:
                if (value := source.get(key)) is not None:
                    return float(value)  # STAC writes nodata "nan" as a text
        return None

    scale, offset = number("raster:scale", "scale"), number("raster:offset", "offset")
    if any(value is not None and not math.isfinite(value) for value in (scale, offset)) or scale == 0:
        raise ValueError(f"an asset has the scale {scale} and the offset {offset}")
    unit = str(said.get("unit") or asset.get("unit") or "")
    return Band(_name(said, sensor) if sensor else "", scale, offset, number("nodata"), unit)


def _name(said: Mapping[str, Any], sensor: Sensor) -> str:
    """By `name`, else by the common name. Raises ValueError when they contradict each other: `B1` may mean the first."""
    name = str(said.get("name") or "")
    common = str(said.get("eo:common_name") or said.get("common_name") or "")
    own, other = _known(sensor, name), _known(sensor, common)
    if own and other and own != other and {own, other} != {"B8", "B8A"}:  # both are `nir` in older catalogues
        raise ValueError(f"an asset has a band {name!r} of the common name {common!r}, which is {other}")
    return own or other


def _known(sensor: Sensor, name: str) -> str:
    """The sensor's own name of a band that a STAC calls so, else ""."""
    return _looked_up(sensor.name, name) if name else ""


@functools.lru_cache(maxsize=4096)
def _looked_up(modality: str, name: str) -> str:
    card = SENSORS[modality]
    if card is SENTINEL2 and name.lower() in _COMMON:
        return _COMMON[name.lower()]
    return radiometry.band_order(card, [name])[0] if radiometry.names_bands(card, [name]) else ""
