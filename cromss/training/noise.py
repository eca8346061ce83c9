"""Do the weights find the wrong labels? Where the truth is known (synthetic Earth), measured on training batches."""

from typing import Any

import numpy as np
import torch

from cromss.data.patch import Batch
from cromss.landcover import IGNORE
from cromss.objective.confidence import enhance_all, label_confidence
from cromss.objective.crossmodal import ObjectiveConfig
from cromss.objective.weights import label_weights
from cromss.training.metrics import auroc


class NoiseMeter:
    """Collects F (own label confidence), F' (enhanced) and W (weights) of a sample of pixels beside the truth.

    Runs without selection are measured the same way: W is what would have been computed.
    """

    def __init__(self, config: ObjectiveConfig, pixels: int = 200_000):
        self._config, self._pixels = config, pixels
        self._kept: dict[str, list[np.ndarray]] = {}
        self._count = 0

    @torch.no_grad()
    def __call__(self, batch: Batch, logits: dict[str, torch.Tensor], alpha: float, gamma: float) -> None:
        """Add a training batch (augmented, as trained); batches without known truth are passed over."""
        if batch.clean is None or self._count >= self._pixels:
            return
        own = {name: label_confidence(z.float(), batch.labels) for name, z in logits.items()}
        enhanced = enhance_all(own)
        usable = (batch.labels != IGNORE) & (batch.clean != IGNORE)
        if batch.valid is not None:
            usable &= batch.valid
        self._keep("right", (batch.labels == batch.clean)[usable])
        self._keep("label", batch.labels[usable])
        self._count += int(usable.sum())
        for name in logits:
            weights = label_weights(
                enhanced[name], batch.labels, alpha, scope=self._config.scope if self._config.scope == "image" else "batch",
                per_class=self._config.per_class,
            )  # fmt: skip
            for kind, values in (("F", own[name]), ("F_enhanced", enhanced[name]), ("W", weights)):
                self._keep(f"{name}/{kind}", values[usable])

    def _keep(self, key: str, values: torch.Tensor) -> None:
        self._kept.setdefault(key, []).append(values.cpu().numpy())

    def result(self) -> dict[str, Any] | None:
        """{"rate": share of wrong labels, "<modality>": {"auroc_F", "auroc_F_enhanced", "auroc_W"}}, or None without truth."""
        if not self._count:
            return None
        kept = {key: np.concatenate(values) for key, values in self._kept.items()}
        right = kept["right"]
        result: dict[str, Any] = {"rate": float(1 - right.mean()), "pixels": int(right.size)}
        for key, values in kept.items():
            name, slash, kind = key.partition("/")
            if slash:
                entry = result.setdefault(name, {})
                entry[f"auroc_{kind}"] = auroc(values, right)
                if kind == "F_enhanced":  # what the histogram in the report draws
                    edges = np.linspace(0, 1, 41)
                    drawn = {
                        which: np.histogram(values[rows], edges)[0]
                        for which, rows in (("right", right), ("wrong", ~right))
                    }
                    entry["histogram"] = {"edges": edges.tolist()} | {which: n.tolist() for which, n in drawn.items()}
        return result
