"""The small pieces of a run, one by one, with a clock beside them; and what a measurement needs to be small."""

import copy
import os
import time
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cromss.config import Holdout, RunConfig, TransferConfig
from cromss.data.augment import centre_crop
from cromss.data.patch import Batch
from cromss.data.plan import select
from cromss.data.store import PatchStore
from cromss.data.stream import DirectReader, open_rows
from cromss.networks.encoders import EncoderCard, save_encoder
from cromss.training import checkpoint
from cromss.training.loop import Inputs, Training, evaluate
from cromss.training.noise import NoiseMeter
from cromss.training.pictures import pretraining_panels
from cromss.training.pretraining import contracts_for
from cromss.training.probe import probe

SCHEDULER = Path("/proc/thread-self/schedstat")  # Linux: time on a CPU, time waiting for one, turns
LOOKED = 200_000  # pixels: NoiseMeter stops there
BIG = 64e6  # bytes of a checkpoint beyond which a part of it is written, and the time scaled

_others_left_out = False


def validation_pieces(
    config: RunConfig, training: Training, inputs: Inputs, store: PatchStore, held: tuple[int, ...], classes: int,
    device: torch.device, seconds: float, pairs: int,
) -> dict[str, float]:  # fmt: skip
    """`passes`: a validation of a single place, less that place; `place`: one more."""
    size = min(32, config.optim.batch_size, max(1, pairs))

    def validate(batches: int | None) -> tuple[float, int]:
        rows = 0
        began = now(device)
        with closing(open_rows(store, split="train", folds=held, batch_size=size, bands=inputs.bands,
                               clean=store.has_clean)) as opened:  # fmt: skip
            taken = list(islice(opened, batches))
            rows = sum(len(batch) for batch in taken)
            evaluate(training.module, taken, config, inputs, classes=classes, device=device)
        return now(device) - began, rows

    before, _ = validate(1)
    took, rows = validate(1)
    late = {"late": max(0.0, before - took)}
    places = int(store.blocks.rows[select(store.blocks, "train", folds=held)].sum())
    if rows >= places:  # nothing more to validate: however many passes there are, each takes this
        again = [took, *(validate(1)[0] for _ in range(4 if took < seconds / 5 else 0))]
        took = sum(again) / len(again)
        return {"passes": took, "place": 0.0} | late
    return {"passes": 0.0, "place": took / rows} | late


def probe_pieces(
    config: RunConfig, training: Training, inputs: Inputs, store: PatchStore, device: torch.device, seconds: float,
    fast: bool,
) -> dict[str, float]:  # fmt: skip
    """`probe`: one, of all modalities; `probe_data`: reading what it is fitted and scored on, once."""
    share = config.probe.patches // config.probe.folds
    fitting, scoring = max(1, (config.probe.patches - share) // 16), max(1, share // 16)
    folds = store.folds("train")
    total, reading = 0.0, 0.0
    for modality, bands in inputs.bands.items():
        if modality not in store.bands or not set(bands) <= set(store.bands[modality]) or len(folds) < 2:
            continue
        began = now(device)
        with closing(open_rows(store, split="train", batch_size=16, bands={modality: bands})) as opened:
            batch = next(opened)
        reading += (now(device) - began) * (fitting + scoring)
        images = len(batch) if fast else 2
        batch = first_rows(batch, images)
        own = Inputs({modality: bands}, store.encoding, inputs.scaling)
        encoder = training.module.encoder(modality)

        def timed(
            steps: int, batch: Batch = batch, own: Inputs = own, encoder: Any = encoder, name: str = modality
        ) -> float:
            began = now(device)
            several = config.probe.model_copy(update={"steps": steps})
            probe(encoder, name, [batch] * fitting, [batch] * scoring, own, several, classes=len(store.scheme),
                  device=device, seed=config.seed)  # fmt: skip
            return now(device) - began

        few = min(config.probe.steps, 4)
        timed(1)
        once = timed(few)
        more = few + max(1, min(config.probe.steps - few, int(seconds / 2 / max(once / few, 1e-4))))
        long = timed(more)
        each = max(0.0, long - once) / (more - few)
        total += (once + (config.probe.steps - few) * each) * 16 / images
    return {"probe": total, "probe_data": reading}


def noise_seconds(
    config: RunConfig, training: Training, inputs: Inputs, store: PatchStore, held: tuple[int, ...], device: torch.device
) -> float:  # fmt: skip
    """What looking for wrong labels takes, once, where the truth is known."""
    meter, size = NoiseMeter(config.objective), min(16, config.optim.batch_size)
    rows = open_rows(store, split="train", folds=held, batch_size=size, bands=inputs.bands, clean=True)
    with closing(rows):
        batch = next(rows).to(device)
    batch = cropped(batch, config)
    training.module.eval()
    with torch.no_grad():
        logits = training.module(inputs(batch))
    began, looked = now(device), 0
    while looked < LOOKED:
        meter(batch, logits, 0.5, 0.5)
        looked += batch.labels.numel()
    meter.result()
    return now(device) - began


def written_pieces(
    config: RunConfig, training: Training, inputs: Inputs, store: PatchStore, folder: Path, device: torch.device, fast: bool
) -> dict[str, float]:  # fmt: skip
    """`checkpoint`: one, written to this machine's temporary folder; `finish`: encoders and pictures."""
    model = training.module.state_dict()
    size = 3 * sum(tensor.nbytes for tensor in model.values())  # Adam keeps two more of each
    kept, bytes_kept = {}, 0
    for name, tensor in model.items():
        if kept and 3 * bytes_kept > BIG:
            break
        kept[name], bytes_kept = tensor, bytes_kept + tensor.nbytes
    tensors = {"model": kept, "optimizer": {f"{name}.{moment}": t for name, t in kept.items() for moment in "mv"}}
    took = []
    for step in (1, 2, 3):
        began = now(device)
        checkpoint.save(folder / "checkpoints", step, tensors, {})
        took.append(now(device) - began)
    found = {"checkpoint": sorted(took)[1] * max(1.0, size / (3 * bytes_kept))}
    began = now(device)
    for modality, contract in contracts_for(config, store).items():
        card = EncoderCard(architecture=config.model.encoder, depth=config.model.depth, modality=modality,
                           bands=contract.bands, contract=contract)  # fmt: skip
        save_encoder(folder / f"{modality}.safetensors", training.module.encoder(modality), card)
    if fast:
        pretraining_panels(folder / "panels.npz", training.module, store, config, inputs, device)
    return found | {"finish": now(device) - began}


def encoding_seconds(config: RunConfig, bands: tuple[str, ...], size: int, device: torch.device) -> float:
    """An image through a frozen encoder, where its features are kept."""
    if config.transfer.frozen_batchnorm != "fixed" or not config.transfer.feature_cache_gb:
        return 0.0
    network = config.transfer.head.build(config.model.encoder, len(bands), 2).to(device).eval()
    image = torch.zeros(2, len(bands), size, size, device=device)
    with torch.no_grad():
        network.encoder(image)
        began = now(device)
        network.encoder(image)
    return (now(device) - began) / 2


def storage_rate(store: PatchStore, seconds: float) -> float:
    """Bytes a second of a shard that the system was asked to forget; of a bucket, as it comes."""
    shard = max(store.manifest.shards, key=lambda one: one.bytes)
    path = store.folder.local and Path(store.folder.local) / shard.path
    if store.manifest.kind == "live" or (path is not None and not path.is_file()):
        return 0.0
    if path is not None and hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began, done = time.perf_counter(), 0
    for block in store.folder.chunks(shard.path):
        done += len(block)
        if time.perf_counter() - began > seconds:
            break
    return done / max(time.perf_counter() - began, 1e-9)


# --- small things -------------------------------------------------------------------------------------------------------


def direct_reader(config: RunConfig) -> DirectReader:
    """The reader that is measured: a Ray reader is as many threads as it has tasks."""
    reader = config.data.reader
    return reader if reader.kind == "direct" else DirectReader(threads=reader.readers)


def micro_batch(config: RunConfig, pairs: int) -> int | None:
    """Pairs computed at a time; `auto` is left out: what does not fit is not measured whole."""
    asked = config.scaling.micro_batch
    return min(asked, pairs) if isinstance(asked, int) else None


def first_rows(batch: Batch, rows: int) -> Batch:
    """The first rows of a batch."""
    tensors = {name: getattr(batch, name) for name in ("labels", "epochs", "keys", "clean", "valid", "seasons")}
    cut = {name: None if tensor is None else tensor[:rows] for name, tensor in tensors.items()}
    return replace(
        batch, images={name: image[:rows] for name, image in batch.images.items()}, ids=batch.ids[:rows], **cut
    )


def cropped(batch: Batch, config: RunConfig) -> Batch:
    return centre_crop(batch, config.data.augment.crop)


def smaller(store: PatchStore, places: dict[str, int]) -> PatchStore:
    """The store with no more blocks of each split than hold so many places."""
    kept = []
    for split, wanted in places.items():
        held = 0
        for block in select(store.blocks, split):
            if held >= wanted:
                break
            kept.append(int(block))
            held += int(store.blocks.rows[block])
    small = copy.copy(store)
    small.blocks = store.blocks.where(sorted(kept))
    return small


def holdout(config: TransferConfig) -> TransferConfig:
    return config.model_copy(update={"protocol": Holdout()})


def now(device: torch.device) -> float:
    """Seconds of a clock; where `leave_out_others` was called, it stands still while this thread waits for a CPU."""
    if device.type == "cuda":  # what was asked for must have happened
        torch.cuda.synchronize(device)
    return time.perf_counter() - (cpu_wait() if _others_left_out else 0.0)


def cpu_wait() -> float:
    """Seconds that this thread could have run and did not, because others had the CPUs; 0 where the system does not say."""
    try:
        return int(SCHEDULER.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def leave_out_others(fits: bool) -> None:
    """Measure as on a machine of our own: right where all that measure together have a CPU each (`fits`), and only there."""
    global _others_left_out
    _others_left_out = fits
