"""A card as words, as keys of a file's header and as code: what one must feed an encoder, for people without cromss."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

import cromss
from cromss.networks.encoders import EncoderCard, Published
from cromss.networks.scaling import MeanStd, Reflectance, ZScore
from cromss.sensors import Sensor, sensor

UNKNOWN = "unknown"


def product(card: EncoderCard) -> str:
    """The sensor and level that the encoder reads: of its training data where that is known, else the sensor's usual one."""
    return card.contract.product if card.contract else sensor(card.modality).title


def unit(card: EncoderCard) -> str:
    return card.contract.unit if card.contract else sensor(card.modality).unit


@functools.singledispatch
def recipe(scaling: Any, sensor: Sensor, bands: tuple[str, ...]) -> tuple[str, dict[str, list[float]]]:
    """(network input as one expression of torch in `pixels`, numbers per band in the sensor's unit that it names or that a
    reader wants). A new kind of scaling says it here."""
    raise NotImplementedError(scaling.kind)


@recipe.register
def _(scaling: MeanStd, sensor: Sensor, bands: tuple[str, ...]) -> tuple[str, dict[str, list[float]]]:
    low, width = sensor.interval(bands)
    known = _statistics(sensor, bands) | {"low": low.tolist(), "width": width.tolist()}
    return "(255 * (pixels - low) / width).clamp(0, 255).nan_to_num().floor() / 255", known


@recipe.register
def _(scaling: Reflectance, sensor: Sensor, bands: tuple[str, ...]) -> tuple[str, dict[str, list[float]]]:
    return "pixels / 10000", {}


@recipe.register
def _(scaling: ZScore, sensor: Sensor, bands: tuple[str, ...]) -> tuple[str, dict[str, list[float]]]:
    return "(pixels - mean) / std", _statistics(sensor, bands)


@recipe.register
def _(scaling: Published, sensor: Sensor, bands: tuple[str, ...]) -> tuple[str, dict[str, list[float]]]:
    mean, std = scaling.of(bands)
    clipped = "" if scaling.clip is None else f".clamp({scaling.clip[0]:g}, {scaling.clip[1]:g})"
    return f"(pixels{clipped} - mean) / std", {"mean": mean, "std": std}


def _statistics(sensor: Sensor, bands: tuple[str, ...]) -> dict[str, list[float]]:
    index = sensor.indices(bands)
    return {"mean": np.asarray(sensor.mean)[index].tolist(), "std": np.asarray(sensor.std)[index].tolist()}


def formula(card: EncoderCard) -> str:
    """What the network takes, as `recipe` says it."""
    return recipe(card.scaling, sensor(card.modality), card.bands)[0]


def numbers(card: EncoderCard) -> dict[str, list[float]]:
    """What the formula and a table of bands need: one value per band."""
    return recipe(card.scaling, sensor(card.modality), card.bands)[1]


def code(card: EncoderCard) -> str:
    """Python that turns `pixels`, physical values (B, C, H, W), into network input `x`; it needs torch alone."""
    used, expression = numbers(card), formula(card)
    what = " ".join(f"{product(card)} in {unit(card)}".split())
    lines = [
        f"# pixels: float32 (batch, {len(card.bands)}, height, width), {what}, in this order:",
        f"# {' '.join(card.bands)}",
    ]
    for name, values in used.items():
        if name in expression:
            listed = ", ".join(f"{np.float32(value):.9g}" for value in values)
            lines.append(f"{name} = torch.tensor([{listed}])[:, None, None]")
    return "\n".join([*lines, f"x = {expression}"])


def header(card: EncoderCard, metrics: Mapping[str, float], licence: str, names: str = "smp") -> dict[str, str]:
    """Flat keys for a file's header: anybody can read them without our classes. Empty where nobody knows.

    names   whose names the tensors have: a generic layout of `layouts`
    """
    used, contract = numbers(card), card.contract
    said = {
        "format": "pt",
        "library": f"cromss {cromss.__version__}",
        "names": names,
        "architecture": card.architecture,
        "depth": card.depth,
        "modality": card.modality,
        "product": product(card),
        "bands": ",".join(card.bands),
        "unit": unit(card),
        "scaling": card.scaling.kind,
        "scaling_formula": formula(card),
        "scaling_parameters": card.scaling.model_dump_json(),
        "mean": _listed(used.get("mean")),
        "std": _listed(used.get("std")),
        "data_mean": _listed(contract and contract.mean),
        "data_std": _listed(contract and contract.std),
        "store": card.store,
        "method": card.method,
        "epoch": "" if card.epoch is None else card.epoch,
        "seed": "" if card.seed is None else card.seed,
        "licence": licence,
        "metrics": json.dumps(dict(metrics)),
        "extra": json.dumps(card.extra),
    }
    return {key: str(value) for key, value in said.items()}


def _listed(values: Any) -> str:
    return ",".join(f"{value:.9g}" for value in values or ())
