"""Do the weights find the wrong labels? Where the truth is known (synthetic Earth), measured on training batches."""

import math
from typing import Any

import numpy as np
import torch

from cromss.data.patch import Batch
from cromss.landcover import IGNORE
from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.methods import CrossModal
from cromss.training.metrics import auroc, average_precision

JOURNALLED = ("auroc_F", "auroc_F_enhanced", "auroc_W", "auprc_F_enhanced", "auprc_W")


class NoiseMeter:
    """Collects F (own label confidence), F' (enhanced) and W (label weights) of a sample of pixels beside the truth.

    They are the run's own: its enhancement, its method's weights. Where a method weighs no labels, or knows the truth, W is
    what the paper's selection would have given. At most `pixels` are kept between two readings, a quarter of them of a batch.
    """

    def __init__(self, config: ObjectiveConfig, pixels: int = 200_000):
        # Nothing here may wait for the other workers: each sees its own batches, and the journal is rank 0's.
        measured = {"scope": "batch"} if config.scope == "global" else {}
        if "alpha" not in config.method.reads:
            measured["method"] = CrossModal()
        self._objective = CrossModalObjective(config.model_copy(update=measured))
        self._pixels = pixels
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._count = 0
        self._last: dict[str, Any] | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, logits: dict[str, torch.Tensor], alpha: float, gamma: float) -> None:
        """Add a training batch (augmented, as trained); batches without known truth are passed over.

        Nothing is read back from the device before `read`: what is kept has a size that does not depend on the data.
        """
        room = min(self._pixels - self._count, self._pixels // 4)
        if batch.clean is None or room <= 0:
            return
        seen = self._objective.select(logits, batch.labels, alpha=alpha, gamma=gamma, valid=batch.valid)
        usable = (batch.labels != IGNORE) & (batch.clean != IGNORE)
        if batch.valid is not None:
            usable = usable & batch.valid
        chosen = _sample(usable.numel(), room, usable.device)
        self._keep("usable", usable, chosen)
        self._keep("right", batch.labels == batch.clean, chosen)
        for name in logits:
            maps = {"F": seen.own, "F_enhanced": seen.confidence, "W": seen.label_weights}
            for kind, by_modality in maps.items():
                self._keep(f"{name}/{kind}", by_modality[name].float(), chosen)
        self._count += usable.numel() if chosen is None else len(chosen)

    def _keep(self, key: str, values: torch.Tensor, chosen: torch.Tensor | None) -> None:
        values = values.flatten()
        self._kept.setdefault(key, []).append(values if chosen is None else values[chosen])

    def read(self) -> dict[str, float]:
        """What was seen since the last reading, as metrics: noise/rate, noise/<modality>/auroc_F and the others; what has no
        value (no wrong label was seen) is left out. The next reading begins anew."""
        self._last = self._measured()
        self._kept, self._count = {}, 0
        if self._last is None:
            return {}
        found = {"noise/rate": self._last["rate"]}
        for name, entry in self._last.items():
            if isinstance(entry, dict):
                found |= {f"noise/{name}/{key}": entry[key] for key in JOURNALLED}
        return {key: value for key, value in found.items() if not math.isnan(value)}

    def result(self) -> dict[str, Any] | None:
        """The last reading, or what was seen since, as it is written into pretraining.json; None without truth.

        {"rate": share of wrong labels, "pixels", "<modality>": {"auroc_F", "auroc_F_enhanced", "auroc_W": how often a right
        label has more of it than a wrong one; "auprc_...": precision and recall of 1 - F', 1 - W as finders of wrong labels;
        "histogram" of F' for right and wrong labels}}
        """
        return self._measured() if self._count else self._last

    def _measured(self) -> dict[str, Any] | None:
        if not self._count:
            return None
        kept = {key: torch.cat(values).cpu().numpy() for key, values in self._kept.items()}
        usable = kept.pop("usable")
        kept = {key: values[usable] for key, values in kept.items()}
        right = kept.pop("right")
        if not right.size:
            return None
        result: dict[str, Any] = {"rate": float(1 - right.mean()), "pixels": int(right.size)}
        for key, values in kept.items():
            name, _, kind = key.partition("/")
            entry = result.setdefault(name, {})
            entry[f"auroc_{kind}"] = auroc(values, right)
            entry[f"auprc_{kind}"] = average_precision(-values, ~right)
            if kind == "F_enhanced":  # what the histogram in the report draws
                edges = np.linspace(0, 1, 41)
                drawn = {
                    which: np.histogram(values[rows], edges)[0] for which, rows in (("right", right), ("wrong", ~right))
                }
                entry["histogram"] = {"edges": edges.tolist()} | {which: n.tolist() for which, n in drawn.items()}
        return result


def _sample(size: int, room: int, device: torch.device) -> torch.Tensor | None:
    """`room` of `size` pixels, always the same ones; None: all of them. A stride could fall in step with the columns."""
    if size <= room:
        return None
    return torch.randint(size, (room,), generator=torch.Generator().manual_seed(0)).to(device)
