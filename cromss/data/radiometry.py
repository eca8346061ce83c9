"""What the numbers in a file mean: which band is which, which pixels hold data, dB or linear, offset or none."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from cromss.sensors import Sensor

OFFSET = 1000  # DN added by processing baseline 04.00 and later
_LOCAL = 9999  # N9999: a run of the processor outside the ground segment, which tells no baseline
_B10_WITH_OFFSET = 900  # 1st percentile of the cirrus band: at most 55 without the offset, at least 1005 with it


# --- bands ------------------------------------------------------------------------------------------------------------


def band_order(sensor: Sensor, names: Sequence[str], stated: str = "") -> tuple[str, ...]:
    """Which band each layer of a file is ("" = none of this sensor's): from the stated order, else from the names in
    the file (`B02`, `b2`, `VV_dB` are understood), else the sensor's own order where the count fits.

    Raises ValueError when none of the three decides.
    """
    found = tuple(_band(sensor, name) for name in names)
    if stated:
        order = sensor.select(stated)
        if len(order) != len(names):
            raise ValueError(f"{sensor.name}: the stated order {stated} has {len(order)} bands, the file {len(names)}")
        if all(found) and found != order:
            raise ValueError(f"{sensor.name}: the stated order is {stated}, the file names its bands {','.join(found)}")
        return order
    named = [band for band in found if band]
    if len(set(named)) != len(named):
        raise ValueError(f"{sensor.name}: the file names a band twice ({', '.join(named)})")
    if named:
        return found
    if len(names) == len(sensor.bands):
        return sensor.bands
    raise ValueError(
        f"{sensor.name}: {len(names)} unnamed bands, {len(sensor.bands)} expected ({','.join(sensor.bands)}); "
        f"state their order with --{sensor.name}-order"
    )


def names_bands(sensor: Sensor, names: Sequence[str]) -> bool:
    """Whether a file's band descriptions name bands of this sensor."""
    return any(_band(sensor, name) for name in names)


def _band(sensor: Sensor, description: str) -> str:
    for word in re.split(r"[^0-9A-Za-z]+", description.upper()):
        word = re.sub(r"^B0+(?=\d)", "B", word)
        if word in sensor.bands:
            return word
    return ""


def pick(pixels: np.ndarray, order: Sequence[str], wanted: Iterable[str]) -> np.ndarray:
    """The wanted bands of (C, H, W), in the wanted order. Raises ValueError naming the missing ones."""
    wanted = tuple(wanted)
    if missing := [band for band in wanted if band not in order]:
        raise ValueError(f"lacks {', '.join(missing)} of the store's bands; --bands names the bands to keep")
    return pixels[[list(order).index(band) for band in wanted]]


def has_data(pixels: np.ndarray, nodata: float | None) -> np.ndarray:
    """(H, W) bool: every band finite and not nodata, and not all bands 0 (how gaps are filled).

    A nodata value of 0 counts only where all bands are 0: a dark pixel may be 0 in one of them.
    """
    present = ~(pixels == 0).all(axis=0)
    if pixels.dtype.kind == "f":
        present &= np.isfinite(pixels).all(axis=0)
    if nodata is not None and np.isfinite(nodata) and nodata != 0:
        present &= (pixels != nodata).all(axis=0)
    return present


# --- Sentinel-2: the +1000 offset -------------------------------------------------------------------------------------


def processing_baseline(text: str) -> int | None:
    """400 from a product name that holds `_N0400_`, or from `04.00`; None where the text says nothing."""
    if found := re.search(r"(?:^|_)N(\d{4})(?:_|$)", text) or re.fullmatch(r"N?(\d\d\.\d\d)", text.strip()):
        number = int(found[1].replace(".", ""))
        return None if number == _LOCAL else number
    return None


def decide_offset(baseline: int | None, b10: np.ndarray | None, stated: int | None) -> tuple[int, str]:
    """(DN to subtract, what told so). `b10` = values of the cirrus band where there is data, `stated` = the user's word
    where the acquisition itself cannot tell.

    The processing baseline decides, else the 1st percentile of B10. Raises ValueError when there is neither and nothing
    is stated, or when the two contradict each other (a product whose offset was already removed) and nothing is stated.
    """
    by_baseline = None if baseline is None else OFFSET * (baseline >= 400)
    by_b10 = None if b10 is None or not b10.size else OFFSET * bool(np.percentile(b10, 1) >= _B10_WITH_OFFSET)
    told = {value for value in (by_baseline, by_b10) if value is not None}
    if len(told) == 1:
        return told.pop(), "by B10" if by_baseline is None else f"by baseline {baseline / 100:05.2f}"
    if stated is not None:
        return stated, "stated"
    if told:
        raise ValueError(
            f"processing baseline {baseline / 100:05.2f} and the values of B10 disagree about the +1000 offset; "
            "state it with --offset 0 or --offset 1000"
        )
    raise ValueError(
        "no B10 and no processing baseline to tell the +1000 offset by; state it with --offset 0 or --offset 1000"
    )


def remove_offset(pixels: np.ndarray, offset: int) -> np.ndarray:
    """DN without the offset, clipped at 0, same dtype."""
    if not offset:
        return pixels
    wide = pixels if pixels.dtype.kind == "f" else pixels.astype(np.int64)
    return np.maximum(wide - offset, 0).astype(pixels.dtype)


def check_reflectance(pixels: np.ndarray) -> None:
    """Raises ValueError when Sentinel-2 values (any shape, where there is data) are no DN of reflectance x 1e4."""
    if pixels.dtype.kind == "f" and pixels.size and np.abs(pixels).max() < 30:
        raise ValueError(
            f"s2 values reach only {pixels.max():.3g}: reflectance, not DN; multiply by 10000 and store as uint16"
        )


# --- Sentinel-1: order and unit ---------------------------------------------------------------------------------------


def check_backscatter(vv: np.ndarray, vh: np.ndarray, *, order_known: bool, unit_known: bool) -> None:
    """Recognise linear power and swapped bands by their statistics (values where there is data, any shape).

    Natural surfaces scatter most of a wave back in its own polarisation: VV exceeds VH by 5 to 9 dB in the median, and
    by more than 0 even over calm water. Decibels of a whole image are never all positive; power always is.
    Raises ValueError with the remedy.
    """
    if not unit_known and np.percentile(vh, 1) >= 0 and np.percentile(vv, 1) >= 0:
        raise ValueError(
            "s1 holds no negative value: linear power, not dB; state it with --s1-unit linear (or --s1-unit dB)"
        )
    if not order_known and np.median(vv.astype(np.float64) - vh) < -1:
        raise ValueError(
            "s1: the second band is brighter than the first, as if in VH,VV order; "
            "state it with --s1-order VH,VV (or --s1-order VV,VH)"
        )


def check_power(pixels: np.ndarray) -> None:
    """Raises ValueError when values (where there is data) that are said to be linear power cannot be: power is positive."""
    if pixels.size and (pixels < 0).mean() > 0.5:
        raise ValueError("s1 is mostly negative: dB, not linear power; leave --s1-unit out")


def decibel(power: np.ndarray) -> np.ndarray:
    """Linear power to dB, float32; 0 and below become NaN: no data."""
    power = power.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(power > 0, 10 * np.log10(power), np.float32(np.nan))


def from_codes(codes: np.ndarray, sensor: Sensor, bands: Iterable[str]) -> np.ndarray:
    """uint8 codes of the 8-bit releases to physical values, float32, in the middle of each code's step, so that
    encoding them again gives the same codes (the lower edge would not: encoding truncates)."""
    return sensor.decode(codes.astype(np.float32) + 0.5, bands)
