"""Physical values as pictures for human eyes: true colour of Sentinel-2, Sentinel-1 as VV, VH and their difference."""

from collections.abc import Iterable, Sequence

import numpy as np

from cromss.data.patch import Patch
from cromss.sensors import SENTINEL1, sensor

TRUE_COLOUR = ("B4", "B3", "B2")
_CLEAR_AIR = (330.0, 480.0, 750.0)  # DN that a clear sky adds to them at the top of the atmosphere
_WHITE = 2300.0  # DN, the least that is shown white: what 8-bit codes hold in every one of them, clear air removed
_KNEE = 1800.0  # DN where the tone curve has flattened to a half: dark forest and bright fields fit in one picture
NO_DATA = 230  # light grey
_RADAR = ((-22.0, -2.0), (-28.0, -8.0), (2.0, 16.0))  # dB from black to full red (VV), green (VH), blue (VV - VH)


def pictures(patch: Patch) -> dict[str, np.ndarray]:
    """modality -> (H,W,3) uint8 for human eyes, optical first; light grey where there is no data."""
    valid = np.ones(patch.size, bool) if patch.valid is None else patch.valid
    return {
        name: composite(name, patch.contracts[name].bands, patch.images[name], valid)
        for name in optical_first(patch.images)
    }


def optical_first(modalities: Iterable[str]) -> list[str]:
    """The order in which the modalities of a patch are shown."""
    return sorted(modalities, key=lambda name: (name != "s2", name))


def composite(modality: str, bands: Sequence[str], pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Physical values (C,H,W) as red, green, blue (H,W,3) uint8: true colour, or the first bands there are on the scale of
    the 8-bit codes; Sentinel-1 as VV, VH and their difference. `valid` (H,W) bool is True where there is data."""
    bands = tuple(bands)
    if modality == "s2" and set(TRUE_COLOUR) <= set(bands):
        shown = true_colour(
            pixels[[bands.index(band) for band in TRUE_COLOUR]].transpose(1, 2, 0).astype(np.float32), valid
        )
    elif sensor(modality).bands == SENTINEL1.bands and set(SENTINEL1.bands) <= set(bands):
        vv, vh = (pixels[bands.index(band)].astype(np.float32) for band in SENTINEL1.bands)
        channels = [(part - low) / (high - low) for part, (low, high) in zip((vv, vh, vv - vh), _RADAR, strict=True)]
        shown = (np.clip(np.nan_to_num(np.stack(channels, -1)), 0, 1) * 255).astype(np.uint8)
    else:
        few = _three(bands)
        codes = sensor(modality).encode(pixels[: len(few)], few).transpose(1, 2, 0)
        shown = codes if len(few) == 3 else codes.repeat(3, axis=2)
    return np.where(valid[..., None], shown, np.uint8(NO_DATA))


def shown_bands(modality: str, bands: Sequence[str]) -> str:
    """What is red, green and blue in the `composite` of these bands."""
    if sensor(modality).bands == SENTINEL1.bands:
        return "VV, VH, VV − VH" if set(SENTINEL1.bands) <= set(bands) else bands[0]
    return ", ".join(TRUE_COLOUR if set(TRUE_COLOUR) <= set(bands) else _three(bands))


def _three(bands: Sequence[str]) -> Sequence[str]:
    return bands[:3] if len(bands) >= 3 else bands[:1]


def true_colour(dn: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Red, green, blue DN (H,W,3) as uint8 for human eyes; `valid` (H,W) bool is True where there is data.

    The same land gets the same colour in every patch: forest stays dark, snow white, and a patch of nothing but water
    is not stretched into noise. Only the haze (at most that of clear air; surface reflectance has less) and the white
    of patches brighter than most land are taken from the patch itself.
    """
    known = dn[valid] if valid.any() else dn.reshape(-1, 3)
    surface = np.maximum(dn - np.clip(np.percentile(known, 1, axis=0), 0, _CLEAR_AIR), 0)
    white = max(np.percentile(surface[valid], 99) if valid.any() else 0.0, _WHITE)
    shown = surface / (surface + _KNEE) * (white + _KNEE) / white
    return (np.clip(shown, 0, 1) * 255).astype(np.uint8)
