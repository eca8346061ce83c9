"""One downstream run (the paper's protocol, reference 7): an encoder, one modality, frozen or fine-tuned."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from cromss.config import TransferConfig
from cromss.contract import Contract, drift, require_same
from cromss.data.augment import augment, centre_crop, draw
from cromss.data.patch import Batch
from cromss.data.plan import Plan
from cromss.data.store import PatchStore
from cromss.data.stream import DirectReader, open_batches, open_rows
from cromss.landcover import IGNORE
from cromss.networks.encoders import load_encoder
from cromss.networks.heads import freeze, load_into
from cromss.networks.scaling import Scaling
from cromss.networks.segmenter import Segmenter
from cromss.objective.losses import weighted_cross_entropy, weighted_dice
from cromss.training.features import CachedEncoder, cached_encoder, some
from cromss.training.loop import make_scheduler, step_schedule
from cromss.training.metrics import Confusion, scores
from cromss.training.pictures import views
from cromss.training.sentinel import Sentinel
from cromss.training.state import Inputs, autocast
from cromss.training.watchdog import moving

RESULT = "result.json"


def judge(
    config: TransferConfig,
    store: PatchStore,
    out: Path,
    *,
    modality: str,
    mode: str,
    repeat: int,
    encoder: Path | None,
    architecture: str,
    scaling: Scaling,
    bands: tuple[str, ...] | None = None,
    seed: int = 0,
    sentinel: bool = True,
    device: torch.device | str = "cpu",
    journal: Callable[[int, dict[str, float], float], None] = lambda step, metrics, epoch: None,
) -> dict[str, Any]:
    """Train the head (and, fine-tuned, the encoder) on the training split; score the test split ONCE, at the end.

    encoder   a .safetensors encoder with its card, or None for random weights of `architecture`
    sentinel  stop when the first patches do not look like the store (data.sentinel)
    bands     what a random encoder reads (default: the store's); a pretrained one says so itself
    Returns the scores, the confusion matrix (rows true) and where they came from; `encoder_passes`, the images that the
    encoder was run on in training, and `encoder_passes_saved` by its features' cache. Also written to `out/result.json`.
    Calling it again after it finished returns the written result.
    """
    if finished := done(out):
        return finished
    began, device = time.monotonic(), torch.device(device)
    seed = seed * 1000 + repeat
    state = None
    contract = None
    if encoder is not None:
        state, card = load_encoder(encoder)
        architecture, scaling, bands, contract = card.architecture, card.scaling, card.bands, card.contract
    inputs, ours = fed(store, modality, bands, scaling, contract, str(encoder))
    pairs = [("train", "test")] if config.protocol.kind == "holdout" else [("train", "test"), ("test", "train")]
    confusion = np.zeros((len(store.scheme),) * 2, np.int64)
    pictures: list[dict[str, np.ndarray]] = []
    steps = passes = saved = 0
    for turn, (learn, test) in enumerate(pairs):

        def after(step: int, metrics: dict[str, float], epoch: float, turn: int = turn, before: int = steps) -> None:
            journal(before + step, metrics, turn * config.epochs + epoch)

        network = _network(config, inputs, modality, mode, state, architecture, len(store.scheme), seed).to(device)
        if device.type == "cuda":
            network = network.to(memory_format=torch.channels_last)
        trained = _train(network, config, store, inputs, modality, mode, learn, seed, device, sentinel, after)
        steps, passes, saved = steps + trained.steps, passes + trained.passes, saved + trained.saved
        counts, shown = score(network, config, store, inputs, modality, test, device)
        confusion += counts
        pictures.append(shown)
    result = result_of(confusion, store, config, modality, mode, repeat) | {
        "seconds": time.monotonic() - began,
        "drift": drift(ours, contract) if contract is not None else [],
        "encoder_passes": passes,
        "encoder_passes_saved": saved,
    }
    keep(out, result, config, store, pictures)
    return result


def done(out: Path) -> dict[str, Any] | None:
    """The result of a run that has finished."""
    return json.loads((out / RESULT).read_text()) if (out / RESULT).exists() else None


def keep(
    out: Path, result: dict[str, Any], config: TransferConfig, store: PatchStore, pictures: list[dict[str, np.ndarray]]
) -> None:
    """Write the pictures of every turn, then the result."""
    out.mkdir(parents=True, exist_ok=True)
    if config.panels and pictures[0]:
        joined = {key: np.concatenate([shown[key] for shown in pictures]) for key in pictures[0]}
        np.savez_compressed(out / "panels.npz", scheme=store.scheme.name, **joined)
    aside = out / f".result-{os.getpid()}"
    aside.write_text(json.dumps(result))
    aside.replace(out / RESULT)


def fed(
    store: PatchStore, modality: str, bands: tuple[str, ...] | None, scaling: Scaling, contract: Contract | None, owner: str
) -> tuple[Inputs, Contract]:  # fmt: skip
    """What an encoder is fed with, and what that means in this store. `bands` None = the store's; `contract` = of the data
    that the encoder `owner` was trained on, where that is known. Raises ValueError, listing both sides, where they do not
    fit."""
    bands = bands or store.contract(modality).bands
    if missing := [band for band in bands if band not in store.contract(modality).bands]:
        raise ValueError(
            f"the {modality} encoder reads {', '.join(bands)}; {store.path} lacks {', '.join(missing)} and holds "
            f"{', '.join(store.bands[modality])}: ingest the downstream set with these bands, or pretrain on a subset "
            f"(--set data.bands.{modality}=...)"
        )
    if scaling.needs_raw and store.encoding != "raw":
        raise ValueError(
            f"the {modality} encoder reads {scaling.kind} input, which needs raw pixels; {store.path} is {store.encoding}: "
            f"ingest it with --encoding raw"
        )
    ours = store.contract(modality).select(bands, str(store.path))
    if contract is not None:
        require_same(ours, str(store.path), contract, f"the encoder {owner}", encoding=False)
    return Inputs({modality: tuple(bands)}, store.encoding, scaling), ours


def _network(
    config: TransferConfig, inputs: Inputs, modality: str, mode: str, state: dict[str, torch.Tensor] | None,
    architecture: str, classes: int, seed: int,
) -> Segmenter:  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = config.head.build(architecture, len(inputs.bands[modality]), classes)
    if state is not None:
        load_into(network.encoder, state)
    if mode == "frozen":
        freeze(network.encoder, config.frozen_batchnorm)
    return network


class _Trained(NamedTuple):
    steps: int
    passes: int  # images that the encoder was run on
    saved: int  # images whose features it had computed before


def _train(
    network: Segmenter, config: TransferConfig, store: PatchStore, inputs: Inputs, modality: str, mode: str, split: str,
    seed: int, device: torch.device, sentinel: bool, journal: Callable[[int, dict[str, float], float], None],
) -> _Trained:  # fmt: skip
    patches = store.places(split)
    batch_size = min(config.batch_size, patches)
    if batch_size < 2:
        raise ValueError(f"{store.path}: split {split!r} has {patches} patches; a transfer needs two at least")
    plan = Plan(
        store.blocks, seed=seed, epochs=config.epochs, batch_size=batch_size, lanes=1, window=8, seasons="random",
        split=split, exclude_folds=(),
    )  # fmt: skip
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(weights, config.lr, fused=True)
    scheduler = make_scheduler(optimizer, config.schedule)
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)  # dropout of the head
    network.train()
    cached = cached_encoder(network, config, mode, store.size, len(inputs.bands[modality]))
    total, steps = torch.zeros((), device=device), 0
    batches = open_batches(store, plan, bands=inputs.bands, reader=DirectReader())
    if sentinel:
        contracts = {modality: store.contract(modality).select(inputs.bands[modality], str(store.path))}
        batches = Sentinel(contracts, store.manifest.statistics[split], store.described(split)).watch(batches)
    for step, batch in enumerate(moving(batches)):
        logits, labels = _seen(network, batch, config, inputs, modality, device, cached)
        loss = transfer_loss(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total, steps = total + loss.detach(), steps + 1
        if plan.epoch_of(step + 1) != plan.epoch_of(step) or step + 1 == plan.steps:
            mean = float(total) / steps
            if not np.isfinite(mean):
                raise FloatingPointError(f"transfer, step {step}: the loss is {mean}; lower transfer.lr={config.lr:g}")
            journal(step + 1, {"train/loss": mean}, plan.epoch_of(step) + 1)
            step_schedule(scheduler, mean)
            total, steps = torch.zeros((), device=device), 0
    torch.random.set_rng_state(generator_state)
    if cached is None:
        return _Trained(plan.steps, passes=plan.steps * batch_size, saved=0)
    return _Trained(plan.steps, cached.passes, cached.saved)


def _seen(
    network: Segmenter, batch: Batch, config: TransferConfig, inputs: Inputs, modality: str, device: torch.device,
    cached: CachedEncoder | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(logits, labels) of an augmented batch. Its pixels go no way where the encoder's features of them are at hand."""

    def image(batch: Batch) -> torch.Tensor:
        return inputs(batch)[modality]

    if cached is None:
        batch = augment(batch.to(device), config.augment)
        with autocast(device, "auto"):
            return network(image(batch)).float(), _labels(batch)
    views = draw(batch.keys, config.augment, batch.labels.shape[-2:]).views.tolist()  # the keys are on the CPU still
    with autocast(device, "auto"):
        stages = cached(batch.ids, views, lambda rows: image(augment(some(batch, rows).to(device), config.augment)))
        logits = network.head(network.decoder(stages)).float()
    return logits, _labels(augment(replace(batch, images={}).to(device), config.augment))


def transfer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """CE + Dice of logits (B, C, H, W), every labelled pixel of labels (B, H, W) alike."""
    unit = torch.ones_like(labels, dtype=torch.float32)
    return weighted_cross_entropy(logits, labels, unit) + weighted_dice(logits, labels, unit)


@torch.no_grad()
def score(
    network: nn.Module, config: TransferConfig, store: PatchStore, inputs: Inputs, modality: str, split: str,
    device: torch.device,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
    """(confusion matrix of the store's classes, rows true; some patches as pictures) of a whole split.

    network   image (B, C, H, W) -> logits (B, K, H, W) of the store's classes
    """
    network.eval()
    confusion = Confusion(len(store.scheme), device)
    kept: dict[str, list[np.ndarray]] = {}
    every = max(1, store.places(split) // max(config.panels, 1))
    seen = 0
    for batch in moving(open_rows(store, split=split, batch_size=config.batch_size)):
        whole = centre_crop(batch, config.augment.crop)
        moved = whole.with_bands(inputs.bands).to(device)
        with autocast(device, "auto"):
            logits = network(inputs(moved)[modality]).float()
        labels = _labels(moved)
        confusion.update(logits, labels)
        rows = [row for row in range(len(whole)) if (seen + row) % every == every // 2][: config.panels]
        seen += len(whole)
        if rows and len(kept.get("ids", [])) < config.panels:
            shown = {**views(whole, store), "reference": labels.cpu().numpy(), "ids": np.array(whole.ids),
                     "prediction": logits.argmax(1).byte().cpu().numpy()}  # fmt: skip
            for key, values in shown.items():
                kept.setdefault(key, []).extend(values[row] for row in rows)
    return confusion.counts, {key: np.stack(values)[: config.panels] for key, values in kept.items()}


def _labels(batch: Batch) -> torch.Tensor:
    """Labels with the pixels that have no image data left out."""
    return batch.labels if batch.valid is None else batch.labels.masked_fill(~batch.valid, IGNORE)


def result_of(
    confusion: np.ndarray, store: PatchStore, config: TransferConfig, modality: str, mode: str, repeat: int
) -> dict[str, Any]:
    """The scores of a run, as its record holds them."""
    found = scores(confusion)
    return {
        "modality": modality,
        "mode": mode,
        "repeat": repeat,
        "head": config.head.kind,
        "head_depth": getattr(config.head, "head_depth", None),
        "protocol": config.protocol.kind,
        "oa": found.oa,
        "aa": found.aa,
        "miou": found.miou,
        "iou": [None if np.isnan(value) else value for value in found.iou],
        "confusion": confusion.tolist(),
        "classes": list(store.scheme.classes),
        "scheme": store.scheme.name,
    }
