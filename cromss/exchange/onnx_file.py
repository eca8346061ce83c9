"""The encoder as one ONNX file: physical values or network input in, every stage's features out; proven with onnxruntime."""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cromss.exchange.libraries import TOLERANCE, Extra, rebuilt, relative
from cromss.networks.encoders import EncoderCard, State, some
from cromss.sensors import sensor

NEEDED = (Extra("onnx", "onnx"), Extra("onnxscript", "onnxscript"), Extra("onnxruntime", "onnxruntime"))
INPUTS = ("physical", "scaled")
_TRACED = (2, 64, 64)  # batch, height, width
_PROVEN = (
    _TRACED,
    (1, 64, 96),
    (3, 96, 64),
)  # multiples of 32 alike; whatever the tracing took for a constant fails here


class Fed(nn.Module):
    """image (B, C, H, W) -> the stages' features, the finest first; `physical` values are scaled in here."""

    def __init__(self, encoder: nn.Module, card: EncoderCard, physical: bool) -> None:
        super().__init__()
        self.encoder, self._card, self._physical = encoder, card, physical

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = pixels
        if self._physical:
            x = self._card.scaling(pixels, sensor(self._card.modality), self._card.bands, "raw")
        return tuple(features for features in self.encoder(x)[1:] if features.shape[1])  # the image, empty stages


def require() -> None:
    """Raises ValueError naming what to install."""
    for one in NEEDED:
        one.require()


def write(path: Path, state: State, card: EncoderCard, metadata: Mapping[str, str], given: str) -> list[str]:
    """Write the file, for batches and images of any size; the names of its outputs. It appears when onnxruntime computes the
    same features from it as torch, within 1e-5 of the largest, for three batches of three sizes, and not at all otherwise.

    given   `physical` (dB, DN: the scaling is in the graph) or `scaled`
    Raises ValueError where the encoder cannot be exported or computes something else.
    """
    require()
    network = Fed(rebuilt(state, card), card, given == "physical").eval()
    samples = [_sample(card, given, *shape) for shape in _PROVEN]
    with torch.no_grad():
        expected = [[one.numpy() for one in network(sample)] for sample in samples]
    names = [f"stride_{_TRACED[-1] // one.shape[-1]}" for one in expected[0]]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as aside:
        file = Path(aside) / path.name
        try:
            _trace(network, samples[0], file, names)
            _describe(file, card, metadata, given, names)
            _prove(file, samples, expected, names)
        except ValueError as error:
            raise ValueError(f"{card.architecture} cannot be exported: {error}") from None
        with file.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(file, path)
    return names


def _sample(card: EncoderCard, given: str, batch: int, height: int, width: int) -> Tensor:
    """Values as the sensor has them, in its unit; or as they come out of the scaling."""
    known, rng = sensor(card.modality), np.random.default_rng(batch)
    # at the middle of a code's step, where rounding cannot take it into the next: 1/255 would be no error of the file's
    codes = rng.integers(0, 256, (batch, len(card.bands), height, width))
    low, span = known.interval(card.bands)
    physical = torch.from_numpy(((codes + 0.5) / 255 * span[:, None, None] + low[:, None, None]).astype(np.float32))
    return physical if given == "physical" else card.scaling(physical, known, card.bands, "raw")


def _trace(network: nn.Module, sample: Tensor, file: Path, names: list[str]) -> None:
    axes = {0: torch.export.Dim("batch"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")  # torch's exporter trips deprecations of torch's own
        try:
            torch.onnx.export(
                network, (sample,), file, dynamo=True, external_data=False, verbose=False, input_names=["pixels"],
                output_names=names, dynamic_shapes=(axes,), opset_version=18,
            )  # fmt: skip
        except OSError:
            raise
        except Exception as error:  # the exporter has dozens of its own, none with a common base
            raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


@contextlib.contextmanager
def _silent() -> Any:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe(file: Path, card: EncoderCard, metadata: Mapping[str, str], given: str, names: list[str]) -> None:
    """The header's keys as metadata properties, and what the input is in words."""
    import onnx

    model = onnx.load(file)
    baked = (
        f"physical values in {metadata['unit']}; scaling {card.scaling.kind} is in the graph"
        if given == "physical"
        else f"network input: first {metadata['scaling_formula']} of physical values in {metadata['unit']}"
    )
    del model.metadata_props[:]
    own = {"input": f"pixels: float32 (batch, {len(card.bands)}, height, width), bands {metadata['bands']}: {baked}",
           "input_kind": given, "outputs": f"features: {', '.join(names)}"}  # fmt: skip
    onnx.helper.set_model_props(model, {**{k: v for k, v in metadata.items() if k != "format"}, **own})
    model.doc_string = own["input"]
    onnx.checker.check_model(model)
    onnx.save(model, file)


def _prove(file: Path, samples: list[Tensor], expected: list[list[np.ndarray]], names: list[str]) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        made = [session.run(names, {"pixels": sample.numpy()}) for sample in samples]
    except Exception as error:  # onnxruntime's errors have no common base
        raise ValueError(f"onnxruntime does not run it: {' '.join(str(error).split())[:200]}") from None
    for ours, theirs in zip(expected, made, strict=True):
        far = [
            f"{name} ({off:.1e})"
            for name, mine, other in zip(names, ours, theirs, strict=True)
            if mine.shape != other.shape
            or (off := relative(torch.from_numpy(mine), torch.from_numpy(other))) > TOLERANCE
        ]
        if far:
            raise ValueError(f"onnxruntime computes other features: {some(far)}")
