"""STAC items and collections for what this project maps: where, when, which classes, from what."""

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rasterio
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.projection import ProjectionExtension
from rasterio.warp import transform_geom

from cromss.landcover import Scheme
from cromss.maps.cog import Grid
from cromss.whole import written_whole

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_FIRST_SENTINEL2 = datetime.datetime(2015, 6, 23, tzinfo=datetime.UTC)  # launch of Sentinel-2A
_WORLD = (-180.0, -90.0, 180.0, 90.0)


def item(
    name: str, grid: Grid, when: datetime.datetime | None, properties: Mapping[str, Any] | None = None
) -> pystac.Item:
    """An item without assets. `when` None: nobody said it, so it spans from the first Sentinel-2 image to now. A grid
    without CRS has no geometry, as STAC provides."""
    geometry, box = _footprint(grid)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    span = {} if when else {"start_datetime": _FIRST_SENTINEL2, "end_datetime": now}
    made = pystac.Item(id=name, geometry=geometry, bbox=box, datetime=when, properties={}, **span)
    made.properties |= {"created": f"{now:%Y-%m-%dT%H:%M:%SZ}", **(properties or {})}
    if grid.crs:
        projection = ProjectionExtension.ext(made, add_if_missing=True)
        crs = rasterio.CRS.from_string(grid.crs)
        projection.apply(
            code=f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else None,
            wkt2=None if crs.to_epsg() else crs.to_wkt(),
            shape=list(grid.size),
            transform=list(grid.transform[:6]),
        )
    return made


def asset(
    href: str, title: str, roles: Iterable[str] = ("data",), scheme: Scheme | None = None, kind: str = COG
) -> pystac.Asset:
    """A file beside the item; with a `scheme`, its classes by the classification extension."""
    made = pystac.Asset(href=href, title=title, media_type=kind, roles=list(roles))
    if scheme is not None:
        made.extra_fields["classification:classes"] = [
            {"value": number, "name": re.sub(r"\W+", "_", name).strip("_"), "title": name, "color_hint": colour[1:]}
            for number, (name, colour) in enumerate(zip(scheme.classes, scheme.colours, strict=True))
        ]
    return made


def finish(made: pystac.Item, path: Path) -> None:
    """Write an item beside its assets, as JSON. The file appears whole or not at all."""
    if any("classification:classes" in one.extra_fields for one in made.assets.values()):
        ClassificationExtension.add_to(made)
    _write(path, made.to_dict(include_self_link=False))


def write_collection(
    path: Path, name: str, description: str, items: Mapping[str, pystac.Item], licence: str = "other"
) -> None:
    """A collection over items that were written: href relative to `path` -> item. The file appears whole or not at all."""
    boxes = [one.bbox for one in items.values() if one.bbox] or [list(_WORLD)]
    starts = [one.datetime or one.common_metadata.start_datetime for one in items.values()]
    ends = [one.datetime or one.common_metadata.end_datetime for one in items.values()]
    low, high = np.min([box[:2] for box in boxes], axis=0), np.max([box[2:] for box in boxes], axis=0)
    made = pystac.Collection(
        id=name,
        description=description,
        license=licence,
        extent=pystac.Extent(
            pystac.SpatialExtent([[*low.tolist(), *high.tolist()]]),
            pystac.TemporalExtent([[min(starts), max(ends)] if items else [None, None]]),
        ),
    )
    for href, one in items.items():
        made.add_link(pystac.Link(pystac.RelType.ITEM, href, "application/geo+json", title=one.id))
    _write(path, made.to_dict(include_self_link=False, transform_hrefs=False))


def date_in(texts: Iterable[str]) -> datetime.datetime | None:
    """The first time of acquisition in product names (`S2A_MSIL1C_20200612T101031_...`) or tags (`2020-06-12...`)."""
    for text in texts:
        if found := re.search(r"(?<!\d)(20[1-9]\d)-?([01]\d)-?([0-3]\d)(?:T([0-2]\d):?([0-5]\d):?([0-5]\d))?", text):
            try:
                return datetime.datetime(*(int(part or 0) for part in found.groups()), tzinfo=datetime.UTC)
            except ValueError:
                continue
    return None


def _footprint(grid: Grid) -> tuple[dict[str, Any] | None, list[float] | None]:
    """GeoJSON polygon and box in WGS 84; None twice where the grid has no CRS or cannot be projected."""
    if not grid.crs:
        return None, None
    height, width = grid.size
    a, b, c, d, e, f = grid.transform[:6]
    corners = [(0, 0), (0, height), (width, height), (width, 0), (0, 0)]
    ring = [(a * col + b * row + c, d * col + e * row + f) for col, row in corners]
    try:
        geometry = transform_geom(grid.crs, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]}, precision=7)
    except rasterio.errors.RasterioError:
        return None, None
    points = np.array(geometry["coordinates"][0], float)
    if not np.isfinite(points).all():
        return None, None
    plain = {"type": "Polygon", "coordinates": [points.tolist()]}
    return plain, [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        with written_whole(path) as aside:
            aside.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
