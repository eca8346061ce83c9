"""Arrays behind the report's panels: what the network saw, trusted and predicted."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cromss.config import RunConfig
from cromss.data.appearance import TRUE_COLOUR, true_colour
from cromss.data.augment import centre_crop
from cromss.data.patch import Batch
from cromss.data.store import PatchStore
from cromss.data.stream import open_rows
from cromss.objective.crossmodal import CrossModalObjective
from cromss.sensors import SENTINEL1, SENTINEL2, Sensor
from cromss.training.state import Inputs


def pretraining_panels(
    path: Path, network: torch.nn.Module, store: PatchStore, config: RunConfig, inputs: Inputs, device: torch.device,
    count: int = 6,
) -> None:  # fmt: skip
    """Write `panels.npz`: true colour, Sentinel-1, noisy label, clean label where known, and per modality the label
    weights, entropy weights and prediction of the final network (alpha and gamma at their ends)."""
    batch = _some(store, count, split="train", size=config.data.augment.crop)
    arrays = {
        **views(batch, store),
        "label": batch.labels.numpy(),
        "ids": np.array(batch.ids),
        "scheme": store.scheme.name,
    }
    if batch.clean is not None:
        arrays["clean"] = batch.clean.numpy()
    network.eval()
    with torch.no_grad():
        moved = batch.with_bands(inputs.bands).to(device)
        logits = {name: z.float() for name, z in network(inputs(moved)).items()}
        outcome = CrossModalObjective(config.objective.model_copy(update={"scope": "batch"}))(
            logits, moved.labels, alpha=config.objective.alpha.end, gamma=config.objective.gamma.end,
            valid=moved.valid, clean=moved.clean,
        )  # fmt: skip
    for name, z in logits.items():
        arrays[f"prediction_{name}"] = z.argmax(1).byte().cpu().numpy()
        arrays[f"label_weights_{name}"] = outcome.label_weights[name].half().cpu().numpy()
        arrays[f"entropy_weights_{name}"] = outcome.entropy_weights[name].half().cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


class Selection:
    """The selection as it comes about: `selection.npz`, a few validation patches with what the network predicts, trusts (F')
    and weighs (W) after `FRAMES` epochs spread evenly over the run, alpha as it then is.

    epochs (k,)   1 = after the first
    label_weights_<m>, confidence_<m>, prediction_<m>   (patches, k, H, W)
    Beside them rgb, s1, label, clean (where known), ids and scheme, as in `panels.npz`. A run that is resumed goes on in the
    same file.
    """

    FRAMES, PATCHES = 6, 4

    def __init__(self, path: Path, store: PatchStore, config: RunConfig, inputs: Inputs, folds: Sequence[int]) -> None:
        self.path, self._config, self._inputs = path, config, inputs
        self._store, self._folds = store, tuple(folds)
        self._batch: Batch | None = None
        last = config.optim.epochs - 1
        self._due = {round(k * last / (self.FRAMES - 1)) for k in range(self.FRAMES)}

    @torch.no_grad()
    def __call__(self, epoch: int, network: torch.nn.Module, device: torch.device) -> None:
        """`epoch` (from 0 on) has ended; the network is left in the mode that it was in."""
        if epoch not in self._due:
            return
        if self._batch is None:
            rows = open_rows(self._store, split="train", folds=self._folds, batch_size=32, clean=self._store.has_clean)
            first = next(iter(rows))
            few = np.linspace(0, len(first) - 1, min(self.PATCHES, len(first))).round().astype(int)
            self._batch = centre_crop(_rows(first, few.tolist()), self._config.data.augment.crop)
        objective, training = self._config.objective, network.training
        moved = self._batch.with_bands(self._inputs.bands).to(device)
        network.eval()
        with torch.compiler.set_stance("force_eager"):  # six small batches are not worth a compilation
            logits = {name: z.float() for name, z in network(self._inputs(moved)).items()}
        network.train(training)
        outcome = CrossModalObjective(objective.model_copy(update={"scope": "batch"}))(
            logits, moved.labels, alpha=objective.alpha_at(epoch, self._config.ramp_epochs),
            gamma=objective.gamma_at(epoch, self._config.ramp_epochs), valid=moved.valid, clean=moved.clean,
        )  # fmt: skip
        frame = {}
        for name, z in logits.items():
            frame[f"prediction_{name}"] = z.argmax(1).byte().cpu().numpy()
            frame[f"label_weights_{name}"] = outcome.label_weights[name].half().cpu().numpy()
            frame[f"confidence_{name}"] = outcome.confidence[name].half().cpu().numpy()
        self._append(epoch + 1, frame)

    def _append(self, epoch: int, frame: dict[str, np.ndarray]) -> None:
        """The frames of the epochs before, and this one; whole or not at all."""
        batch, kept, before = self._batch, 0, {}
        if self.path.exists():
            with np.load(self.path) as archive:
                before = {key: archive[key] for key in ("epochs", *frame)}
            kept = int((before["epochs"] < epoch).sum())
        epochs = [*(before["epochs"][:kept] if kept else ()), epoch]
        arrays = {
            key: np.concatenate([before[key][:, :kept], image[:, None]], axis=1) if kept else image[:, None]
            for key, image in frame.items()
        }
        if batch.clean is not None:
            arrays["clean"] = batch.clean.numpy()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(f".{self.path.stem}-{os.getpid()}.npz")
        np.savez_compressed(
            aside, **views(batch, self._store), label=batch.labels.numpy(), ids=np.array(batch.ids),
            scheme=self._store.scheme.name, epochs=np.array(epochs, np.int64), **arrays,
        )  # fmt: skip
        aside.replace(self.path)


def views(batch: Batch, store: PatchStore) -> dict[str, np.ndarray]:
    """`rgb` (B,H,W,3) and `s1` (B,H,W), uint8, for human eyes, of a batch that holds all the store's bands; `rgb` is the
    first band in grey where the store lacks red, green or blue."""
    pictures = {}
    valid = np.ones(batch.labels.shape, bool) if batch.valid is None else batch.valid.cpu().numpy()
    if "s2" in store.bands:
        bands = store.bands["s2"]
        coloured = set(TRUE_COLOUR) <= set(bands)
        chosen = [bands.index(band) for band in TRUE_COLOUR] if coloured else [0, 0, 0]
        dn = _physical(batch.images["s2"].cpu().numpy(), store, SENTINEL2)[:, chosen].transpose(0, 2, 3, 1)
        rgb = np.stack([true_colour(*pair) for pair in zip(dn, valid, strict=True)])
        pictures["rgb"] = rgb if coloured else rgb[..., :1].repeat(3, axis=-1)
    if "s1" in store.bands:
        db = _physical(batch.images["s1"].cpu().numpy(), store, SENTINEL1)[:, 0]
        pictures["s1"] = (np.clip((db + 25) / 25, 0, 1) * 255).astype(np.uint8)  # -25..0 dB
    return pictures


def _physical(pixels: np.ndarray, store: PatchStore, sensor: Sensor) -> np.ndarray:
    return sensor.decode(pixels, store.bands[sensor.name]) if store.encoding == "uint8" else pixels.astype(np.float32)


def _some(store: PatchStore, count: int, *, split: str, size: int | None) -> Batch:
    """`count` patches spread over the store, with all its bands."""
    total = store.manifest.places[split]
    wanted = {round(i * (total - 1) / max(count - 1, 1)) for i in range(count)}
    batches, seen = [], 0
    for batch in open_rows(store, split=split, batch_size=32, clean=store.has_clean):
        rows = [row for row in range(len(batch)) if seen + row in wanted]
        seen += len(batch)
        if rows:
            batches.append(_rows(batch, rows))
    return centre_crop(_joined(batches), size)


def _rows(batch: Batch, rows: list[int]) -> Batch:
    def pick(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[rows]

    return Batch(
        images={name: image[rows] for name, image in batch.images.items()}, bands=batch.bands, labels=batch.labels[rows],
        ids=[batch.ids[row] for row in rows], epochs=batch.epochs[rows], keys=batch.keys[rows],
        clean=pick(batch.clean), valid=pick(batch.valid),
    )  # fmt: skip


def _joined(batches: list[Batch]) -> Batch:
    def join(name: str) -> torch.Tensor | None:
        parts = [getattr(batch, name) for batch in batches]
        if all(part is None for part in parts):
            return None
        return torch.cat([torch.ones_like(b.labels, dtype=torch.bool) if p is None else p
                          for b, p in zip(batches, parts, strict=True)])  # fmt: skip

    return Batch(
        images={name: torch.cat([b.images[name] for b in batches]) for name in batches[0].images}, bands=batches[0].bands,
        labels=join("labels"), ids=[i for b in batches for i in b.ids], epochs=join("epochs"), keys=join("keys"),
        clean=join("clean"), valid=join("valid"),
    )  # fmt: skip
