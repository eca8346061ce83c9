"""Whether pixels are what an encoder was trained on: bands by name, the sensor's unit. Refused by name, with the way out."""

from collections.abc import Callable, Sequence

import numpy as np

from cromss.data import radiometry
from cromss.sensors import Sensor, sensor

_ENOUGH = 2**18  # pixels to judge a unit by
_INSIST = "; or check=False, where you know better"


def band_names(modality: str, bands: Sequence[str] | str, count: int) -> tuple[str, ...]:
    """Names, one for each of `count` bands: in the sensor's spelling or as files have them (`B02`, `VV_dB`); a subset's
    name (`9`) stands for its bands. Raises ValueError for unknown names, for one named twice, for another number."""
    card = sensor(modality)
    if isinstance(bands, str):
        bands = card.subsets.get(bands) or bands.split(",")
    given = [str(band).strip() for band in bands]
    known = [
        radiometry.band_order(card, (name,))[0] if radiometry.names_bands(card, (name,)) else name for name in given
    ]
    names = card.select(known)
    if len(names) != count:
        raise ValueError(f"{modality}: {len(names)} bands are named ({', '.join(names)}), the pixels have {count}")
    return names


def order(held: Sequence[str], owner: str, wanted: Sequence[str], reader: str) -> list[int]:
    """Where each of `reader`'s bands lies among those that `owner` holds. Raises ValueError naming both sides."""
    if missing := [band for band in wanted if band not in held]:
        raise ValueError(
            f"{reader} reads {', '.join(wanted)}; missing in {owner}: {', '.join(missing)} (there: {', '.join(held)})"
        )
    return [list(held).index(band) for band in wanted]


def check_unit(pixels: np.ndarray, modality: str, bands: Sequence[str], *, named: bool) -> None:
    """Raises ValueError when values (..., C, H, W), before any scaling, are plainly not in the sensor's unit: reflectance or
    an offset for DN, power for dB, VH before VV where the bands were not `named`. Pixels without data are not judged."""
    card = sensor(modality)
    step = max(1, int((pixels.size / len(bands) / _ENOUGH) ** 0.5))
    values = np.moveaxis(pixels[..., ::step, ::step], -3, 0).reshape(len(bands), -1)
    values = values[:, radiometry.has_data(values, None)]
    if values.size:
        (_backscatter if card.unit == "dB" else _reflectance)(values, tuple(bands), card, named)


def _backscatter(db: np.ndarray, bands: tuple[str, ...], card: Sensor, named: bool) -> None:
    vv, vh = (db[bands.index(band)] if band in bands else db[0] for band in card.bands)
    _unless(
        lambda: radiometry.check_backscatter(vv, vh, order_known=True, unit_known=False),
        f"{card.name} values reach from {db.min():.3g} to {db.max():.3g}, none of them negative: linear power, or scaled "
        f"already, not dB; give 10 * log10(power)",
    )
    _unless(
        lambda: radiometry.check_backscatter(vv, vh, order_known=named, unit_known=True),
        f"{card.name}: the second band is brighter than the first, as if in VH,VV order; say bands=['VH', 'VV']",
    )


def _reflectance(dn: np.ndarray, bands: tuple[str, ...], card: Sensor, named: bool) -> None:
    _unless(
        lambda: radiometry.check_reflectance(dn),
        f"{card.name} values reach from {dn.min():.3g} to {dn.max():.3g}: reflectance, or scaled already, not DN; give "
        f"10000 * reflectance",
    )
    if "B10" in bands and radiometry.decide_offset(None, dn[bands.index("B10")], None)[0]:
        raise ValueError(
            f"{card.name}: B10 is {np.percentile(dn[bands.index('B10')], 1):.0f} DN and more: the offset of processing "
            f"baseline 04.00 is in there; subtract {radiometry.OFFSET}{_INSIST}"
        )


def _unless(check: Callable[[], None], instead: str) -> None:
    """The check in this API's words: ingest's own name its options."""
    try:
        check()
    except ValueError:
        raise ValueError(f"{instead}{_INSIST}") from None
