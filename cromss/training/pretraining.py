"""One worker's share of a pretraining, from store to encoders. Runs as it is in one process; under DDP in several.

<out>/checkpoints/step-*/      what a resume needs (scaling.checkpoints: elsewhere, for example in a bucket)
<out>/encoders/<modality>.safetensors, with their cards
<out>/segmenter.safetensors     the whole network, with what rebuilds it
<out>/panels.npz               what the network saw, trusted and predicted on a few patches
<out>/pretraining.json         the end of the story, written last
"""

import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cromss.config import RunConfig
from cromss.contract import Contract, require_same
from cromss.data.patch import Batch
from cromss.data.plan import Plan, select
from cromss.data.store import PatchStore
from cromss.data.stream import open_batches, open_rows
from cromss.files import Folder, fault
from cromss.landcover import class_map
from cromss.leaving import OVERTAKEN
from cromss.networks.encoders import EncoderCard, save_encoder
from cromss.training import checkpoint, segmenter_file, selfsupervised, warmstart
from cromss.training.loop import EpochEnd, Meter, evaluate, fit, make_scheduler
from cromss.training.microbatch import choose
from cromss.training.noise import NoiseMeter
from cromss.training.pictures import Selection, pretraining_panels
from cromss.training.probe import probe
from cromss.training.rows import journalled
from cromss.training.sentinel import Sentinel
from cromss.training.state import Inputs, Training
from cromss.training.step import Step, averaged
from cromss.training.watchdog import Watchdog, moving

FEW = 8  # places: a validation loss of fewer says little

Journal = Callable[[int, dict[str, float], float], None]  # (step, metrics, epoch)
Report = Callable[[dict[str, float]], None]  # called by every rank after every epoch with a probe, and at the end
Leave = Callable[[int], str]  # (step) -> why the run is to leave; asked by every rank after the same steps


def inputs_for(config: RunConfig, store: PatchStore) -> Inputs:
    """The modalities and bands that `config` trains on, checked against what the store holds. Raises ValueError."""
    bands = {name: contract.bands for name, contract in contracts_for(config, store).items()}
    if config.model.scaling.needs_raw and store.encoding != "raw":
        raise ValueError(
            f"model.scaling.kind={config.model.scaling.kind}: needs raw pixels, {store.path} is {store.encoding}; ingest "
            f"with --encoding raw"
        )
    return Inputs(bands=bands, encoding=store.encoding, scaling=config.model.scaling)


def contracts_for(config: RunConfig, store: PatchStore) -> dict[str, Contract]:
    """modality -> what the network is fed with. Raises ValueError where the store cannot give it."""
    from cromss.sensors import sensor

    found = {}
    for modality in config.model.fusion.modalities:
        if modality not in store.contracts:
            raise ValueError(
                f"model.fusion needs modality {modality!r}; {store.path} holds {', '.join(store.contracts)}"
            )
        wanted = config.data.bands.get(modality)
        chosen = sensor(modality).select(wanted) if wanted else store.bands[modality]
        found[modality] = store.contract(modality).select(chosen, f"data.bands.{modality}={wanted}: {store.path}")
    return found


def check_together(config: RunConfig, store: PatchStore, downstream: PatchStore) -> None:
    """Raises ValueError, listing both sides, unless the encoders can be judged on `downstream`: same product, unit, bands."""
    for modality, contract in contracts_for(config, store).items():
        if modality in config.judged_modalities and modality in downstream.contracts:
            theirs = downstream.contract(modality).select(contract.bands, str(downstream.path))
            require_same(contract, str(store.path), theirs, str(downstream.path), encoding=False)
    if "zero_shot" in config.transfer.modes and config.pretraining.reads_labels:
        class_map(store.scheme, downstream.scheme)


def make_plan(config: RunConfig, store: PatchStore) -> tuple[Plan, tuple[int, ...]]:
    """The run's plan and the folds held out for validation. Raises ValueError for a store too small for its batch."""
    folds = store.folds("train")
    if len(folds) <= config.data.val_folds:
        raise ValueError(
            f"data.val_folds={config.data.val_folds}: {store.path} has {len(folds)} fold{'s' * (len(folds) > 1)}, and "
            f"training needs one more: validate on fewer, or ingest more locations (or with more --folds)"
        )
    held = tuple(folds[: config.data.val_folds])
    rows = int(store.blocks.rows[select(store.blocks, "train", exclude_folds=held)].sum())
    if rows < config.optim.batch_size:
        raise ValueError(
            f"optim.batch_size={config.optim.batch_size}: an epoch of {store.path} has only {rows} patches; "
            f"choose at most {rows // config.data.lanes * config.data.lanes} (a multiple of "
            f"data.lanes={config.data.lanes})"
        )
    plan = Plan(
        store.blocks,
        seed=config.seed,
        epochs=config.optim.epochs,
        batch_size=config.optim.batch_size,
        lanes=config.data.lanes,
        window=config.data.window,
        seasons=config.data.seasons,
        split="train",
        exclude_folds=held,
    )
    return plan, held


def build(config: RunConfig, inputs: Inputs, classes: int, places: int = 2**31) -> torch.nn.Module:
    """The run's network with its seeded initial weights; `places` of an epoch, which bound a queue of patches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        channels = {name: len(bands) for name, bands in inputs.bands.items()}
        if config.pretraining.reads_labels:
            return config.model.fusion.build(config.model, channels, classes)
        return config.pretraining.build(config.model, channels, places)


def check_network(config: RunConfig, store: PatchStore) -> None:
    """What the network needs beside the data: a library, encoders to begin from, the whole batch. Raises ValueError."""
    if config.pretraining.reads_labels:
        warmstart.check(config, contracts_for(config, store))
        return
    config.pretraining.require()
    if isinstance(config.scaling.micro_batch, int):
        raise ValueError(
            f"scaling.micro_batch={config.scaling.micro_batch}: pretraining.kind={config.pretraining.kind} needs the company "
            f"of the whole batch; set it to null, or lower optim.batch_size"
        )


def run(
    config: RunConfig,
    store: PatchStore,
    out: Path,
    *,
    downstream: PatchStore | None = None,
    device: torch.device | str = "cpu",
    journal: Journal = lambda step, metrics, epoch: None,
    report: Report = lambda metrics: None,
    say: Callable[[str], None] = lambda line: None,
    leave: Leave = lambda step: "",
) -> dict[str, Any]:
    """Pretrain, or go on from the newest valid checkpoint; the content of `pretraining.json`.

    Calling it again after the end changes nothing and returns the same. A run that was asked to leave writes a checkpoint, in
    mid-epoch too, and returns `{"left": why, "step": step}`, without a step where it wrote none. Raises ValueError when `out`
    belongs to another configuration or store, FloatingPointError for a loss that is not finite.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device(device)
    inputs, classes = inputs_for(config, store), len(store.scheme)
    plan, held = make_plan(config, store)
    labelled = config.pretraining.reads_labels
    check_network(config, store)
    network = build(config, inputs, classes, plan.rows)
    warmstart.begin(network, config)
    network = network.to(device)
    micro_batch = choose(
        config, network, {name: len(bands) for name, bands in inputs.bands.items()}, config.optim.batch_size // world,
        (config.data.augment.crop,) * 2 if config.data.augment.crop else store.size, device,
        say if rank == 0 else lambda line: None,
    ) if labelled else None  # fmt: skip
    training = start(config, network, world)
    past = _resume(training, config, store, out, say if rank == 0 else lambda line: None)
    if training.step >= plan.steps and (out / "pretraining.json").exists():
        return json.loads((out / "pretraining.json").read_text())

    if rank == 0:
        say(_plan_line(plan, held, store))
    noise = NoiseMeter(config.objective) if labelled else None
    probes = _probe_data(config, store, downstream, inputs) if rank == 0 else None
    selection = Selection(out / "selection.npz", store, config, inputs, held) if rank == 0 and labelled else None
    seen = dict(past.get("metrics", {}))
    began = time.monotonic() - past.get("seconds", 0.0)
    dog = Watchdog(config.scaling.stall_minutes, out, rank)
    unfinished = None

    def validate() -> dict[str, float]:
        rows = open_rows(store, split="train", folds=held, batch_size=min(32, config.optim.batch_size),
                         bands=inputs.bands, rank=rank, world=world, clean=store.has_clean)  # fmt: skip
        rows = moving(rows)
        if not labelled:
            return selfsupervised.evaluate(training.module, rows, config, inputs, device=device)
        return evaluate(training.module, rows, config, inputs, classes=classes, device=device)

    def at_epoch_end(end: EpochEnd) -> None:
        metrics = dict(end.metrics)
        due = (end.epoch + 1) % config.probe.every == 0 or end.last
        if probes and due:
            metrics |= _probe(training, probes, config, device)
        seen.update(metrics)
        if rank == 0:
            if (end.epoch + 1) % config.scaling.checkpoint_epochs == 0 or end.last:
                past = {"metrics": seen, "seconds": time.monotonic() - began}
                if missed := _saved_or_missed(training, config, store, out, past, say, last=end.last):
                    metrics["checkpoint/missed"] = missed
            dog.beat()
            journal(end.step, metrics, end.epoch + 1)
            if selection:
                selection(end.epoch, training.module, device)
        if due:  # on every rank alike: reporting is a barrier
            report({**metrics, "epoch": end.epoch + 1})

    if training.step < plan.steps:
        batches = open_batches(
            store, plan, rank=rank, world=world, start_step=training.step, bands=inputs.bands, reader=config.data.reader,
            clean=store.has_clean, seasons=labelled and config.objective.smoothing.kind != "none",
        )  # fmt: skip
        if config.data.sentinel:
            sentinel = Sentinel(
                contracts_for(config, store), store.manifest.statistics["train"], store.described("train")
            )
            batches = sentinel.watch(batches)
        if config.data.journal_rows:
            batches = journalled(batches, out / "rows", rank, world, training.step, _attempt(world))
        with dog:
            unfinished = fit(
                training, moving(batches), plan, config, inputs, classes=classes, device=device, validate=validate,
                at_epoch_end=at_epoch_end, say=say if rank == 0 else lambda line: None, observe=noise,
                micro_batch=micro_batch, leave=leave, meter=Meter.resumed(past["meter"], device) if "meter" in past else None,
                make_step=Step if labelled else partial(selfsupervised.SelfSupervisedStep, steps=plan.steps),
            )  # fmt: skip
    if unfinished:
        kept = False
        if rank == 0 and unfinished.why != OVERTAKEN:
            past = {"metrics": seen, "seconds": time.monotonic() - began, "meter": unfinished.meter}
            kept = not _saved_or_missed(training, config, store, out, past, say)
        return {"left": unfinished.why, "step": training.step if kept else None}
    result = {
        "steps": plan.steps,
        "dropped_rows": plan.dropped,
        "seconds": time.monotonic() - began,
        "final": seen,
        "noise": noise.result() if noise else None,
        "device": str(device.type),
        "workers": world,
        "quarantined": [asdict(lost) for lost in store.without],
    }
    if rank == 0:
        _finish(training, config, store, inputs, out, result, device)
    return result


def _plan_line(plan: Plan, held: tuple[int, ...], store: PatchStore) -> str:
    """Who trains, who validates, what the last step leaves over."""
    validating = int(store.blocks.rows[select(store.blocks, "train", folds=held)].sum())
    few = "; too few to steer a schedule by: more data.val_folds, or fewer --folds" if validating < FEW else ""
    left = f"; the last {plan.dropped:,} rows of the run fill no step" if plan.dropped else ""
    return (
        f"{plan.rows:,} places train, {plan.steps:,} steps of {plan.batch_size}{left}; {validating:,} validate "
        f"(fold {', '.join(map(str, held))} of {len(store.folds('train'))}){few}"
    )


def _attempt(world: int) -> str:
    """A name that the ranks of this attempt share."""
    name = [uuid.uuid4().hex[:12]]
    if world > 1:
        dist.broadcast_object_list(name)
    return name[0]


def start(config: RunConfig, network: torch.nn.Module, world: int) -> Training:
    """The network, its optimizer and its schedule at step 0."""
    scaling, device = config.scaling, next(network.parameters()).device
    if scaling.channels_last:  # convolutions run 15 to 35 % faster, on CPU too
        network = network.to(memory_format=torch.channels_last)
    network.side_by_side = scaling.branches == "streams"
    average = averaged(config, network) if config.pretraining.reads_labels else None
    if scaling.compiles("networks", device) and config.pretraining.reads_labels:  # lightly's queue does not compile
        torch._dynamo.config.suppress_errors = True  # where no compiler is found the eager network runs, with a warning
        network.compile()
    # Buffers are shared before evaluation and saving only (loop.share_buffers): each worker's BatchNorm sees its own batch.
    wrapped = network
    if world > 1:  # a bucket of gradients travels while the next is computed, and the gradients are the buckets' memory
        wrapped = DistributedDataParallel(
            network, broadcast_buffers=False, bucket_cap_mb=scaling.bucket_mb, gradient_as_bucket_view=True
        )
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(
        trained, config.optim.lr, weight_decay=config.optim.weight_decay, fused=scaling.fused_adam
    )
    return Training(wrapped, optimizer, make_scheduler(optimizer, config.optim.schedule), average=average)


# --- resume -----------------------------------------------------------------------------------------------------------


def checkpoints_of(config: RunConfig, out: Path) -> Folder:
    """Where a run's checkpoints lie."""
    return Folder.of(config.scaling.checkpoints or out / "checkpoints")


def _resume(
    training: Training, config: RunConfig, store: PatchStore, out: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    found, skipped = checkpoint.newest_valid(checkpoints_of(config, out))
    for line in skipped:
        say(line)
    if found is None:
        return {}
    for name, contract in contracts_for(config, store).items():
        theirs = found.state.get("contracts", {}).get(name)
        if theirs is not None:
            require_same(contract, str(store.path), Contract(**theirs), f"the checkpoint {found.path}")
    _same_run(found.state["identity"], _identity(config, store), config, out)
    training.module.load_state_dict(found.tensors["model"])
    if training.average is not None:
        training.average.load_state_dict(found.tensors["average"])
    checkpoint.restore_optimizer(training.optimizer, found.tensors["optimizer"])
    training.scheduler.load_state_dict(found.state["scheduler"])
    for group, lr in zip(training.optimizer.param_groups, found.state["lr"], strict=True):
        group["lr"] = lr
    training.step = found.step
    say(f"resuming at step {found.step} from {found.folder.name}")
    return found.state["past"]


def _save(training: Training, config: RunConfig, store: PatchStore, out: Path, past: dict[str, Any]) -> None:
    scheduler = {k: v for k, v in training.scheduler.state_dict().items() if _is_json(v)}
    checkpoint.save(
        checkpoints_of(config, out),
        training.step,
        {
            "model": training.module.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(training.optimizer),
            **({"average": training.average.state_dict()} if training.average is not None else {}),
        },
        {
            "identity": _identity(config, store),
            "contracts": {name: one.model_dump(mode="json") for name, one in contracts_for(config, store).items()},
            "scheduler": scheduler,
            "lr": [group["lr"] for group in training.optimizer.param_groups],
            "past": past,
        },
    )


def _saved_or_missed(
    training: Training, config: RunConfig, store: PatchStore, out: Path, past: dict[str, Any], say: Callable[[str], None],
    last: bool = False,
) -> int:  # fmt: skip
    """Save a checkpoint; 1 where there was no room for it, or its bucket did not answer. The one before stays, and training
    goes on: the next may find room. Raises ValueError for the last one of a run, which nothing comes after."""
    try:
        _save(training, config, store, out, past)
    except OSError as error:
        where = checkpoints_of(config, out)
        if last:
            raise ValueError(
                f"{where}: the last checkpoint cannot be written ({fault(error)}); make room, and the same command goes on"
            ) from None
        say(f"step {training.step}: no checkpoint, {where} cannot be written ({fault(error)}); the one before it stays")
        return 1
    return 0


def _is_json(value: Any) -> bool:
    return isinstance(value, (int, float, str, bool, list, dict, type(None)))


def _identity(config: RunConfig, store: PatchStore) -> dict[str, Any]:
    begun = {f"warm_start.{modality}": digest for modality, digest in warmstart.digests(config).items()}
    return config.identity() | {"store": store.digest} | begun


def _same_run(theirs: dict[str, Any], ours: dict[str, Any], config: RunConfig, out: Path) -> None:
    changed = [key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)]
    if changed:
        lines = ", ".join(f"{key} {theirs.get(key)} -> {ours.get(key)}" for key in changed[:4])
        where, option = (config.scaling.checkpoints, "--checkpoints") if config.scaling.checkpoints else (out, "--out")
        raise ValueError(
            f"{where}: holds a run of another configuration ({lines}); choose another {option} or undo the change"
        )


# --- probe ------------------------------------------------------------------------------------------------------------


def _probe_data(
    config: RunConfig, store: PatchStore, downstream: PatchStore | None, inputs: Inputs
) -> tuple[PatchStore, Inputs, dict[str, tuple[list[Batch], list[Batch]]]] | None:
    """Per modality: batches to fit on and, from other folds, batches to score on."""
    if downstream is None:
        return None
    check_together(config, store, downstream)
    folds = downstream.folds("train")
    if len(folds) < 2:
        return None
    held = [fold for number, fold in enumerate(folds) if number % config.probe.folds == 0]
    kept = [fold for fold in folds if fold not in held]
    own = Inputs(inputs.bands, downstream.encoding, inputs.scaling)
    share = config.probe.patches // config.probe.folds
    data = {}
    for modality, bands in inputs.bands.items():
        if modality in downstream.bands and set(bands) <= set(downstream.bands[modality]):
            fitting, scoring = (
                open_rows(downstream, split="train", folds=folds, batch_size=16, bands={modality: bands})
                for folds in (kept, held)
            )
            data[modality] = (
                list(islice(fitting, max(1, (config.probe.patches - share) // 16))),
                list(islice(scoring, max(1, share // 16))),
            )
    return (downstream, own, data) if data else None


def _probe(training: Training, probes: Any, config: RunConfig, device: torch.device) -> dict[str, float]:
    store, inputs, data = probes
    metrics = {}
    for modality, (fitting, scoring) in data.items():
        metrics[f"probe/{modality}/miou"] = probe(
            training.module.encoder(modality), modality, fitting, scoring,
            Inputs({modality: inputs.bands[modality]}, inputs.encoding, inputs.scaling), config.probe,
            classes=len(store.scheme), device=device, seed=config.seed,
        )  # fmt: skip
    metrics["probe/mean/miou"] = sum(metrics.values()) / len(metrics)
    return metrics


# --- the end ----------------------------------------------------------------------------------------------------------


def _finish(
    training: Training, config: RunConfig, store: PatchStore, inputs: Inputs, out: Path, result: dict[str, Any],
    device: torch.device,
) -> None:  # fmt: skip
    for modality, contract in contracts_for(config, store).items():
        card = EncoderCard(
            architecture=config.model.encoder,
            depth=config.model.depth,
            modality=modality,
            bands=contract.bands,
            scaling=inputs.scaling,
            contract=contract,
            method=config.pretraining.title or f"{config.objective.method.kind}-{config.model.fusion.kind}",
            store=store.digest,
            epoch=config.optim.epochs,
            seed=config.seed,
        )
        save_encoder(out / "encoders" / f"{modality}.safetensors", training.module.encoder(modality), card)
    if config.pretraining.reads_labels:
        segmenter_file.save(out, training.module, segmenter_file.card(config, contracts_for(config, store), store))
        pretraining_panels(out / "panels.npz", training.module, store, config, inputs, device)
    aside = out / f".pretraining-{os.getpid()}"
    aside.write_text(json.dumps(result))
    aside.replace(out / "pretraining.json")
