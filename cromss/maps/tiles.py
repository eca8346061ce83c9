"""One tile of a map: every window that touches it through the network, blended."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from cromss.landcover import IGNORE
from cromss.maps.model import Model, mean_log_probabilities
from cromss.maps.scene import OpenScene
from cromss.maps.windows import Box, Windows
from cromss.objective.confidence import entropy_confidence

CLASS, UNCERTAINTY = 0, 1  # bands of a map
_ROWS = 256  # at a time, where every class is looked at: a tile's probabilities are its largest piece of memory


def predict_tile(
    model: Model, scene: OpenScene, windows: Windows, tile: Box, *, batch_size: int = 8, device: str = "cpu"
) -> np.ndarray:
    """(2, h, w) uint8 of the tile: class numbers, and uncertainty in per cent; IGNORE in both where no modality has data.

    A pixel's probabilities are the mean over the modalities that have data there, blended over the windows that hold it.
    Uncertainty is 1 - F_e (eq. 1): their entropy over that of a coin with as many sides as there are classes.
    """
    probabilities = torch.zeros(len(model.scheme), *tile.size)
    there = torch.zeros(tile.size, dtype=torch.bool)
    weights = torch.from_numpy(windows.weights())
    for some in _batches(windows.touching(tile), batch_size):
        read = [(box, *scene.read(box)) for box in some]
        read = [one for one in read if any(valid.any() for valid in one[2].values())]
        if not read:
            continue
        images = {name: torch.from_numpy(np.stack([one[1][name] for one in read])).to(device) for name in scene.files}
        valid = {name: torch.from_numpy(np.stack([one[2][name] for one in read])).to(device) for name in scene.files}
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = {name: model.logits(name, images[name], valid=valid[name]) for name in images}
        blended = mean_log_probabilities(logits, valid).exp().cpu()
        any_data = torch.stack(list(valid.values())).any(0).cpu()
        for (box, *_), own, data in zip(read, blended, any_data, strict=True):
            part = box.cut(tile)
            target, source = part.within(tile), part.within(box)
            probabilities[(slice(None), *target)] += own[(slice(None), *source)] * weights[source]
            there[target] |= data[source]
    out = np.full((2, *tile.size), IGNORE, np.uint8)
    for top in range(0, tile.size[0], _ROWS):
        rows = slice(top, top + _ROWS)
        own, data = probabilities[:, rows], there[rows].numpy()
        uncertain = 1 - entropy_confidence(own.clamp(min=1e-12).log()[None])[0]
        out[CLASS, rows][data] = own.argmax(0).numpy()[data]
        out[UNCERTAINTY, rows][data] = (100 * uncertain).round().clamp(0, 100).numpy()[data]
    return out


def _batches(boxes: Sequence[Box], size: int) -> Iterator[list[Box]]:
    boxes = iter(boxes)
    while some := list(islice(boxes, size)):
        yield some
