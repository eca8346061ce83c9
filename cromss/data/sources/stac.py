"""STAC items of local files: a FeatureCollection, a collection or catalogue with its items, or a folder of item JSONs.

An item is one acquisition. It lies at the location that its property `--location` names, else at its `grid:code`, else
at its centroid to 1e-4 degrees (a collection is no place: its id is not used). Its time is `datetime`, else
`start_datetime`; its split is the property `split`, else train.

Assets are found by key, else by role: `s1`, `s2`, `label`, or other names by option. Several assets of one role are the
bands of one image (`--s2-asset reflectance` of per-band items). Where an S2 item holds no S1, the S1 item of the location
that is nearest in time is taken, within `--max-days`; a label may lie in either.

What the item says of its bands counts: names (`bands`, `eo:bands`: `B02` or common names), nodata, unit (S1 in dB or
linear power), scale and offset. Pixels become DN = 1e4 (scale x + offset); an offset of -0.1 is the +1000 DN of baseline
04.00. Everything that tells about that offset (raster:offset, processing baseline, B10) has to agree, or `--offset` has
to say. Position and projection come from the file itself. Contradictions are named and skipped, never settled.

Only local files below the folder of the JSON are opened, see `stac_items`. Sentinel-2 L2A is refused unless
`--level L2A-as-is`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from cromss import landcover
from cromss.data import radiometry
from cromss.data.raster import Raster, read_raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import ImagerySource, Scene
from cromss.data.sources.layers import stack
from cromss.data.sources.products import LEVEL_HELP, Level, accept_level, baseline_of
from cromss.data.sources.stac_items import Band, Fault, Layer, Record, read_records
from cromss.sensors import SENTINEL1, SENTINEL2, Sensor

_DN = 1e4  # of reflectance 1
_UNITS = {"db": "dB", "decibel": "dB", "decibels": "dB", "linear": "linear", "linear power": "linear",
          "power": "linear", "1": "linear"}  # fmt: skip


@dataclass(frozen=True)
class _Pair:
    s2: Record
    s1: Record | None
    fault: str = ""


class Stac(ImagerySource):
    """STAC item collection of local files"""

    kind: Literal["stac"] = "stac"

    path: Path = pydantic.Field(
        description="an item collection, a collection or catalogue, or a folder of items (JSON)"
    )
    scheme: str = pydantic.Field("dynamic-world", description=f"label scheme: {', '.join(landcover.SCHEMES)}")
    location: str = pydantic.Field("location", description="property of an item that names its location")
    s1_asset: str = pydantic.Field("s1", description="key or role of the Sentinel-1 assets")
    s2_asset: str = pydantic.Field("s2", description="key or role of the Sentinel-2 assets")
    label_asset: str = pydantic.Field("label", description="key or role of the label asset")
    max_days: float = pydantic.Field(31.0, ge=0, description="days by which Sentinel-1 and Sentinel-2 may lie apart")
    level: Level = pydantic.Field("L1C", description=LEVEL_HELP)

    @pydantic.field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        return landcover.scheme(value).name

    @property
    def encoding(self) -> str:
        """raw for L2A: the 8-bit encoding is scaled for L1C and would saturate B9."""
        return "raw" if self.level == "L2A-as-is" else "uint8"

    def locations(self) -> list[Location]:
        """By name; then the items that are unreadable, each as a location of its own that yields its reason."""
        assets = {"s1": self.s1_asset, "s2": self.s2_asset, "label": self.label_asset}
        places: dict[str, list[Record]] = {}
        faults: list[Fault] = []
        for one in read_records(self.path, assets, self.location):
            if isinstance(one, Fault):
                faults.append(one)
            else:
                places.setdefault(one.place, []).append(one)
        found = []
        for place, records in sorted(places.items()):
            records.sort(key=lambda record: (record.time, record.id))
            split = next((record.split for record in records if record.layers["s2"]), "train")
            found.append(Location(place, split, tuple(records)))
        return found + [Location(fault.name, handle=fault) for fault in faults]

    def acquisitions(self, location: Location) -> list[tuple[str, _Pair]]:
        """(datetime, its S2 item and the S1 item that goes with it) in time order."""
        if isinstance(location.handle, Fault):
            raise ValueError(location.handle.reason)
        optical = [record for record in location.handle if record.layers["s2"]]
        radar = [record for record in location.handle if record.layers["s1"]]
        if not optical:
            raise ValueError(f"no item has a Sentinel-2 asset of the key or role {self.s2_asset!r}; see --s2-asset")
        found: dict[str, _Pair] = {}
        for record in optical:
            name = f"{record.time:%Y%m%dT%H%M%S}"
            fault = ""
            if record.split != location.split:
                fault = f"is in split {record.split}, the location's first acquisition in {location.split}"
            if name in found:
                name, fault = f"{name}/{record.id}", f"has the location and time of {found[name].s2.id}"
            found[name] = _Pair(record, self._nearest(record, radar), fault)
        return list(found.items())

    def load(self, location: Location, handle: _Pair) -> Scene:
        """Reads the assets of a pair of items."""
        s2_item, s1_item = handle.s2, handle.s1
        if handle.fault:
            raise ValueError(handle.fault)
        notes = accept_level(s2_item.level, self.level)
        if s1_item is None:
            raise ValueError(f"no item has a Sentinel-1 asset of the key or role {self.s1_asset!r}; see --s1-asset")
        apart = abs(s1_item.time - s2_item.time)
        if apart > timedelta(days=self.max_days):
            raise ValueError(f"the nearest Sentinel-1, {s1_item.id}, lies {_days(apart)} days apart; see --max-days")
        if s1_item is not s2_item:
            notes["s1_item"] = f"{s1_item.id}, {_days(apart)} days apart"
        label = s2_item.layers["label"] or s1_item.layers["label"]
        s1, bands = _read(s1_item.layers["s1"], "s1", SENTINEL1, "" if self.s1_order == "auto" else self.s1_order)
        s1 = self._to_decibel(s1, bands, notes)
        s2, bands = _read(s2_item.layers["s2"], "s2", SENTINEL2, self.s2_order)
        s2, stated = _to_dn(s2, bands, notes)
        settled = (0, "by raster:scale and raster:offset") if "s2_scale" in notes else None
        return Scene(
            s1=s1,
            s2=s2,
            label=_read(label, "label")[0],
            offset=settled or self._offset(s2, s2_item, stated),
            notes=notes,
        )

    def _nearest(self, record: Record, radar: Sequence[Record]) -> Record | None:
        if record.layers["s1"]:
            return record
        return min(radar, key=lambda one: (abs(one.time - record.time), one.time, one.id), default=None)

    def _to_decibel(self, raster: Raster, bands: Sequence[Band], notes: dict[str, str]) -> Raster:
        """Scaled as the item says; linear power to dB where it says so. The user's --s1-unit goes before the item's."""
        if any(band.scale not in (None, 1.0) or band.offset not in (None, 0.0) for band in bands):
            scale, offset = _per_band(bands)
            raster = replace(raster, pixels=_present(raster) * scale + offset, nodata=None)
            notes["s1_scale"] = "by raster:scale and raster:offset"
        units = {_UNITS.get(band.unit.strip().lower(), band.unit) for band in bands if band.unit}
        if self.s1_unit != "auto" or not units:
            return raster
        if len(units) > 1 or not units <= {"dB", "linear"}:
            raise ValueError(
                f"s1 is in {' and '.join(sorted(units))}, neither dB nor linear power; state it with --s1-unit"
            )
        if units == {"dB"}:
            return raster
        notes["s1"] = "linear power to dB"
        return replace(raster, pixels=radiometry.decibel(_present(raster)), nodata=None)

    def _offset(self, raster: Raster, item: Record, stated: int | None) -> tuple[int, str]:
        """(DN to subtract, what told so): everything that tells about the +1000 has to agree."""
        order = radiometry.band_order(SENTINEL2, raster.names, self.s2_order)
        told = {} if stated is None else {"raster:offset": stated}
        if item.offset_removed:
            told["earthsearch:boa_offset_applied"] = 0
        elif (baseline := baseline_of(item.product)) is not None:
            told[f"baseline {baseline / 100:05.2f}"] = radiometry.OFFSET * (baseline >= 400)
        if "B10" in order:
            b10 = raster.pixels[order.index("B10")][radiometry.has_data(raster.pixels, raster.nodata)]
            if b10.size:
                told["B10"] = radiometry.decide_offset(None, b10, None)[0]
        if len(set(told.values())) == 1:
            return next(iter(told.values())), f"by {' and '.join(told)}"
        if self.offset != "auto":
            return int(self.offset), "stated"
        said = " and ".join(f"{what} ({offset})" for what, offset in told.items())
        fault = f"{said} disagree about" if told else "neither raster:offset nor a processing baseline nor B10 tell"
        raise ValueError(f"{fault} the +1000 offset; state it with --offset 0 or --offset 1000")


def _read(
    layers: Sequence[Layer], what: str, sensor: Sensor | None = None, order: str = ""
) -> tuple[Raster, tuple[Band, ...]]:
    """The raster of some assets and what the item says of each of its bands (nothing at all = empty)."""
    if not layers:
        raise ValueError(f"{what}: no asset")
    for layer in layers:
        if layer.fault:
            raise ValueError(f"{what}: {layer.fault}")
    if len(layers) > 1:
        bands = tuple(band for layer in layers for band in layer.bands)
        if not sensor or len(bands) != len(layers):
            raise ValueError(f"{what}: {len(layers)} assets, expected one, or one a band")
        if order:
            raise ValueError(f"{what}: every asset is a band that has its name; leave out --{what}-order")
        return _nodata(stack([layer.file for layer in layers], [band.name for band in bands]), bands, what), bands
    (layer,) = layers
    raster, bands = read_raster(layer.file, counts=None if sensor else [1]), layer.bands
    if len(bands) == 1 and not bands[0].name:  # told once for all
        bands = bands * len(raster.pixels)
    if bands and len(bands) != len(raster.pixels):
        raise ValueError(f"{what}: the item describes {len(bands)} bands, {layer.file.name} has {len(raster.pixels)}")
    names = tuple(band.name for band in bands)
    if sensor and any(names):
        own = raster.names
        if not order and radiometry.names_bands(sensor, own) and radiometry.band_order(sensor, own) != names:
            raise ValueError(
                f"{what}: the item names the bands {_joined(names)}, {layer.file.name} itself {_joined(own)}; "
                f"state the order with --{what}-order"
            )
        raster = replace(raster, names=names)
    return _nodata(raster, bands, what), bands


def _nodata(raster: Raster, bands: Sequence[Band], what: str) -> Raster:
    values = {str(band.nodata): band.nodata for band in bands if band.nodata is not None}
    if raster.nodata is not None:
        values.setdefault(str(raster.nodata), raster.nodata)
    if len(values) > 1:
        raise ValueError(f"{what}: nodata is {' and '.join(sorted(values))} at once, in the item and in the file")
    return replace(raster, nodata=next(iter(values.values()), None))


def _to_dn(raster: Raster, bands: Sequence[Band], notes: dict[str, str]) -> tuple[Raster, int | None]:
    """(DN, the +1000 offset that is still in them as far as the item tells). Where scale and offset are others than
    those of DN they are applied, and noted. Raises ValueError over numbers that are neither reflectance nor DN."""
    scales, offsets = {band.scale for band in bands} - {None}, {band.offset for band in bands} - {None}
    if not scales and not offsets:
        return raster, None
    if any((band.scale is None) != (not scales) or (band.offset is None) != (not offsets) for band in bands):
        raise ValueError("s2: the item tells scale and offset of some bands only")
    unscaled, as_dn = (scales or {1.0}) == {1.0}, scales == {1 / _DN}
    if unscaled or as_dn:
        dn = {round(-offset * (_DN if as_dn else 1), 6) for offset in offsets}
        if dn <= {0.0} or dn == {float(radiometry.OFFSET)}:
            return raster, int(*dn) if dn and (as_dn or dn != {0.0}) else None  # scale 1, offset 0: a mere default
        if unscaled:
            raise ValueError(f"s2: scale 1 and offset {_joined(sorted(offsets))} give neither reflectance nor DN")
    scale, offset = _per_band(bands)
    notes["s2_scale"] = "reflectance by raster:scale and raster:offset, times 10000"
    return replace(raster, pixels=(_present(raster) * scale + offset) * np.float32(_DN), nodata=None), None


def _per_band(bands: Sequence[Band]) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), float32 (C, 1, 1)."""
    scale = np.array([1.0 if band.scale is None else band.scale for band in bands], np.float32)
    offset = np.array([band.offset or 0.0 for band in bands], np.float32)
    return scale[:, None, None], offset[:, None, None]


def _present(raster: Raster) -> np.ndarray:
    """float32, NaN where there is no data: a scaled gap would look like a value."""
    return np.where(
        radiometry.has_data(raster.pixels, raster.nodata), raster.pixels.astype(np.float32), np.float32("nan")
    )


def _days(apart: timedelta) -> str:
    return f"{apart / timedelta(days=1):.1f}"


def _joined(names: Sequence[object]) -> str:
    return ",".join(str(name) or "?" for name in names)
