"""One patch as a picture for a notebook: what the sensors saw, what the label says, what a network makes of it."""

from collections.abc import Mapping, Sequence

import numpy as np

from cromss import landcover
from cromss.data.appearance import composite, optical_first, shown_bands
from cromss.data.patch import Patch
from cromss.data.radiometry import has_data
from cromss.landcover import IGNORE, SCHEMES, Scheme
from cromss.plot.look import Figure
from cromss.plot.patches import Column, panels
from cromss.sensors import sensor

Maps = np.ndarray | Mapping[str, np.ndarray]  # (H,W), or several by the title that each shall have


def panel(
    patch: Patch | Mapping[str, np.ndarray],
    scheme: Scheme | str | None = None,
    *,
    bands: Mapping[str, Sequence[str] | str] | None = None,
    label: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    prediction: Maps | None = None,
    weights: Maps | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    side: float = 2.2,
) -> Figure:
    """A row of pictures: true colour, Sentinel-1 (VV red, VH green, VV − VH blue), label, and what else there is.

    patch       a Patch, such as `store.sample(1)[0]`; or modality -> (C,H,W) in the sensor's unit (S1 dB, S2 DN)
    scheme      of label, reference and prediction: `store.scheme`, or its name; colours and legend are the scheme's
    bands       of such arrays: modality -> names in the order of their axis; default: all of the sensor's
    label, reference  (H,W) class numbers, 255 = unlabelled; default: those of the Patch (reference: its clean
                labels, where these are known and others)
    prediction  (H,W) class numbers, or several by title: {"S1": a, "S2": b}
    weights     (H,W) in [0, 1], or several by title
    extra       by title: (H,W,3) uint8 as it is, or (H,W) in grey from its least to its greatest value; of any size
    side        of a picture, in inches

    Pixels without data (of arrays: not finite, or 0 in all bands) are light grey. Torch tensors on the CPU are arrays too.
    The figure shows itself at the end of a notebook's cell; `.savefig(path)` keeps it. Raises ValueError, by name, for what
    does not fit the patch or the scheme.

    >>> import cromss
    >>> store = cromss.open_store("store")
    >>> [patch] = store.sample(1)
    >>> figure = cromss.plot.panel(patch, store.scheme, prediction={"all water": 0 * patch.label})
    >>> [axes.get_title() for axes in figure.axes]
    ['Sentinel-2 L1C: B4, B3, B2', 'Sentinel-1: VV, VH, VV − VH', 'label', 'clean label', 'all water']

    Arrays of one's own, bands by name:

    >>> import numpy as np
    >>> red_green_blue = np.random.default_rng(0).integers(300, 3000, (3, 64, 64))
    >>> figure = cromss.plot.panel({"s2": red_green_blue}, bands={"s2": ["B4", "B3", "B2"]})
    >>> [axes.get_title() for axes in figure.axes]
    ['Sentinel-2 L1C: B4, B3, B2']
    """
    if isinstance(patch, Patch):
        columns, label, kind = _of_patch(patch), patch.label if label is None else label, "reference"
        if reference is None and patch.clean is not None and not np.array_equal(patch.clean, label):
            reference, kind = patch.clean, "clean label"
    else:
        columns, kind = _of_arrays(patch, bands or {}), "reference"
    if not columns:
        raise ValueError("panel: no image to show; give a Patch, or modality -> (C, H, W): {'s2': dn, 's1': db}")
    size = columns[0].images.shape[1:3]
    maps = {"label": label, kind: reference, **_titled(prediction, "prediction")}
    maps = {title: np.asarray(values) for title, values in maps.items() if values is not None}
    if maps:
        known = _scheme(scheme)
        columns += [
            Column(title, _classes(title, values, size, known)[None], "classes", known)
            for title, values in maps.items()
        ]
    columns += [
        Column(title, _weights(title, np.asarray(values), size)[None], "weights")
        for title, values in _titled(weights, "weights").items()
    ]
    columns += [Column(title, _rgb(title, np.asarray(values))[None], "rgb") for title, values in (extra or {}).items()]
    return panels(columns, side=side)


def _of_patch(patch: Patch) -> list[Column]:
    valid = np.ones(patch.size, bool) if patch.valid is None else patch.valid
    return [
        _seen(name, patch.contracts[name].bands, patch.images[name], valid, patch.contracts[name].product)
        for name in optical_first(patch.images)
    ]


def _of_arrays(images: Mapping[str, np.ndarray], bands: Mapping[str, Sequence[str] | str]) -> list[Column]:
    columns, first = [], None
    for name in optical_first(images):
        card, pixels = sensor(name), np.asarray(images[name])
        names = card.select(bands.get(name, card.bands))
        if pixels.ndim != 3 or len(pixels) != len(names):
            raise ValueError(
                f"panel: {name} is {pixels.shape}; expected (C, H, W) with C = {len(names)} ({', '.join(names)}): name its "
                f"bands with bands={{{name!r}: [...]}}"
            )
        first = first or pixels.shape[1:]
        if pixels.shape[1:] != first:
            raise ValueError(f"panel: {name} is {_by(pixels.shape[1:])}, the other sensor {_by(first)} pixels")
        columns.append(_seen(name, names, pixels, has_data(pixels, None), card.title))
    return columns


def _seen(name: str, bands: Sequence[str], pixels: np.ndarray, valid: np.ndarray, product: str) -> Column:
    return Column(f"{product}: {shown_bands(name, bands)}", composite(name, bands, pixels, valid)[None], "rgb")


def _titled(values: Maps | None, title: str) -> dict[str, np.ndarray]:
    if values is None:
        return {}
    return dict(values) if isinstance(values, Mapping) else {title: values}


def _scheme(scheme: Scheme | str | None) -> Scheme:
    if scheme is None:
        raise ValueError(
            f"panel: class numbers need their scheme to be drawn: panel(patch, store.scheme), or by name: {', '.join(SCHEMES)}"
        )
    return landcover.scheme(scheme) if isinstance(scheme, str) else scheme


def _classes(title: str, values: np.ndarray, size: tuple[int, int], scheme: Scheme) -> np.ndarray:
    _require_size(title, values, size)
    if values.dtype.kind not in "ui":
        raise ValueError(f"panel: {title} is {values.dtype}; expected class numbers, of logits their argmax")
    if strange := sorted(set(np.unique(values).tolist()) - {*range(len(scheme)), IGNORE}):
        raise ValueError(
            f"panel: {title} holds {', '.join(map(str, strange[:8]))}; {scheme.name} has the classes 0 to {len(scheme) - 1}, "
            f"and {IGNORE} for unlabelled"
        )
    return values.astype(np.uint8)


def _weights(title: str, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    _require_size(title, values, size)
    values = values.astype(np.float32)
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # NaN too
        raise ValueError(f"panel: {title} reach from {values.min():.3g} to {values.max():.3g}; weights lie in [0, 1]")
    return values


def _rgb(title: str, values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        grey = 255 * (values.astype(np.float64) - low) / max(high - low, np.finfo(np.float32).tiny)
        return np.nan_to_num(grey).astype(np.uint8)[..., None].repeat(3, axis=2)
    if values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8:
        return values
    raise ValueError(f"panel: {title} is {values.shape} {values.dtype}; expected (H, W), or (H, W, 3) uint8")


def _require_size(title: str, values: np.ndarray, size: tuple[int, int]) -> None:
    if values.shape != tuple(size):
        raise ValueError(f"panel: {title} is {_by(values.shape)}, the patch {_by(size)} pixels")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
