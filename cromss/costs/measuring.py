"""What a process of the calibration does: it runs a few steps of the real thing and says what they took.

    python -m cromss.costs.measuring      JSON commands in, a line each; answers out, on lines that begin with `ANSWER`

Several of these side by side are what a machine with several trials or workers looks like.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import torch

from cromss.config import RunConfig, resolve
from cromss.costs import hardware
from cromss.costs.pieces import (
    cpu_wait,
    direct_reader,
    encoding_seconds,
    first_rows,
    holdout,
    leave_out_others,
    micro_batch,
    noise_seconds,
    now,
    probe_pieces,
    smaller,
    storage_rate,
    validation_pieces,
    written_pieces,
)
from cromss.data.patch import Batch
from cromss.data.store import Lost, PatchStore
from cromss.data.stream import open_batches
from cromss.training.downstream import judge
from cromss.training.loop import fit
from cromss.training.pretraining import build, inputs_for, make_plan, start

ANSWER = "@cromss "
WARM_UP = 2  # steps before the clock counts
LEAST = 3  # steps that it counts, however long they take


class Clocked:
    """Batches for `seconds` after a warm-up. The time from one request to the next is a step, reading included."""

    def __init__(self, batches: Iterable[Batch], seconds: float, device: torch.device) -> None:
        self._batches, self._seconds, self._device = batches, seconds, device
        self.first = self.elapsed = self.waited = 0.0
        self.steps = 0

    def __iter__(self) -> Iterator[Batch]:
        number, source, opened = 0, iter(self._batches), now(self._device)
        began, waited = opened, 0.0
        until = float("inf")
        while number < WARM_UP + LEAST or time.perf_counter() < until:
            if number == 1:
                self.first = now(self._device) - opened
            if number == WARM_UP:
                began, waited, until = now(self._device), 0.0, time.perf_counter() + self._seconds
            asked = time.perf_counter()
            batch = next(source, None)
            if batch is None:
                break
            waited += time.perf_counter() - asked
            number += 1
            yield batch
        enough = number > WARM_UP  # else the steps to warm up are all there are
        self.steps = max(1, number - WARM_UP) if enough else max(1, number)
        self.elapsed = now(self._device) - (began if enough else opened)
        self.waited = waited / max(self.elapsed, 1e-9)


class _Endless:
    """A plan without end and without a second epoch."""

    steps = 2**31

    def epoch_of(self, step: int) -> int:
        return 0


def pretraining(
    config: RunConfig, store: PatchStore, downstream: PatchStore | None, *, device: torch.device, rank: int, world: int,
    pairs: int, seconds: float, fast: bool,
) -> dict[str, float]:  # fmt: skip
    """Pieces of a pretraining in seconds, on one of `world` workers: real batches, `pairs` of each (all, or what can be
    afforded: then `step` is scaled up). `fast`: the small pieces (validation, probe, pictures) are run whole."""
    inputs, classes = inputs_for(config, store), len(store.scheme)
    plan, held = make_plan(config, store)
    own = config.optim.batch_size // world
    began = now(device)
    training = start(config, build(config, inputs, classes).to(device), 1)
    built = now(device) - began
    batches = open_batches(
        store, plan, rank=rank, world=world, bands=inputs.bands, reader=direct_reader(config), clean=store.has_clean,
        seasons=config.objective.smoothing.kind != "none",
    )  # fmt: skip
    with closing(batches):
        stream: Iterable[Batch] = batches
        if pairs < own:
            some = first_rows(next(batches), pairs)
            stream = iter(lambda: some, None)
        clock = Clocked(stream, 0.6 * seconds, device)
        fit(
            training, clock, _Endless(), config, inputs, classes=classes, device=device,
            validate=lambda: {"val/loss": 0.0}, at_epoch_end=lambda end: None, micro_batch=micro_batch(config, pairs),
        )  # fmt: skip
    step = clock.elapsed / clock.steps
    found = {
        "step": step * own / pairs,
        "first": built + max(0.0, clock.first - step),
        "waited": clock.waited,
        "steps": clock.steps,
        "noise": 0.0,
    }
    if store.has_clean and fast:
        found["noise"] = noise_seconds(config, training, inputs, store, held, device)
    found |= validation_pieces(config, training, inputs, store, held, classes, device, 0.1 * seconds, pairs)
    found["first"] += found.pop("late")  # what the first validation imports or compiles
    if downstream is not None:
        found |= probe_pieces(config, training, inputs, downstream, device, 0.2 * seconds, fast)
    with tempfile.TemporaryDirectory(prefix="cromss-estimate-") as folder:
        found |= written_pieces(config, training, inputs, store, Path(folder), device, fast)
    return found


def transfer(
    config: RunConfig, store: PatchStore, *, modality: str, mode: str, bands: tuple[str, ...], device: torch.device,
    epochs: int, images: int, learn: int, scored: int,
) -> dict[str, float]:  # fmt: skip
    """Pieces of a downstream run in seconds: so many epochs on about `learn` places, in steps of `images` (fewer than the
    true batch: `step` is scaled up), then `scored` places."""
    small = smaller(store, {"train": learn, "test": scored})
    whole = len(small.blocks) == len(store.blocks)
    once = holdout(config.transfer).model_copy(
        update={"epochs": epochs, "batch_size": images, "feature_cache_gb": 0.0}
        | ({} if whole else {"panels": 0})
    )  # fmt: skip
    stamps: list[tuple[int, float]] = []

    def journal(step: int, metrics: dict[str, float], epoch: float) -> None:
        stamps.append((step, now(device)))

    scaling = getattr(config.pretraining, "scalings", {}).get(modality, config.model.scaling)
    with tempfile.TemporaryDirectory(prefix="cromss-estimate-") as folder:
        began = now(device)
        judge(once, small, Path(folder) / "run", modality=modality, mode=mode, repeat=0, encoder=None,
              architecture=config.model.encoder, scaling=scaling, bands=bands, seed=config.seed, sentinel=False,
              device=device, journal=journal)  # fmt: skip
        ended = now(device)
    (first, early), (last, late) = stamps[0], stamps[-1]
    step = (late - early) / (last - first) if last > first else (early - began) / first
    batch = min(config.transfer.batch_size, store.places("train"))
    return {
        "begin": max(0.0, early - began - first * step) + (0.0 if whole else 0.1),
        "step": step * batch / min(images, small.places("train")),
        "place": (ended - late) / small.places("test"),
        "encode": encoding_seconds(config, bands, min(store.size), device),
    }


def reading(config: RunConfig, store: PatchStore, seconds: float) -> dict[str, float]:
    """Places a second that the reader delivers when nobody computes; bytes a second from the disk or the bucket."""
    inputs = inputs_for(config, store)
    plan, _ = make_plan(config, store)
    rows, began = 0, 0.0
    batches = open_batches(store, plan, bands=inputs.bands, reader=direct_reader(config), clean=store.has_clean)
    with closing(batches):
        for number, batch in enumerate(batches):
            if number == 1:
                began = time.perf_counter()
            elif number > 1:
                rows += len(batch)
                if time.perf_counter() - began > seconds:
                    break
    rate = rows / (time.perf_counter() - began) if rows else 0.0
    return {"reader": rate, "storage": storage_rate(store, seconds)}


# --- the process --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer commands until there are no more. Ready is a process that has imported what training needs."""
    import segmentation_models_pytorch  # noqa: F401

    age = time.time() - psutil.Process().create_time() - cpu_wait()
    print(ANSWER + json.dumps({"age": age}), flush=True)
    for line in sys.stdin:
        try:
            answer = _obeyed(json.loads(line))
        except Exception as error:  # whatever went wrong is said, and computed instead
            answer = {"error": " ".join(str(error).split())[:300] or type(error).__name__, "kind": type(error).__name__}
        print(ANSWER + json.dumps(answer), flush=True)


def _obeyed(command: dict[str, Any]) -> dict[str, Any]:
    does: dict[str, Callable[..., dict[str, Any]]] = {
        "pretraining": pretraining, "transfer": transfer, "reading": reading, "peaks": _peaks
    }  # fmt: skip
    what, options = command["do"], dict(command["with"])
    torch.set_num_threads(command["threads"])
    leave_out_others(command["fits"])
    if what == "peaks":
        return _peaks(torch.device(options["device"]))
    config = resolve(command["config"])
    stores = [_opened(one, config) for one in command["stores"]]
    if "device" in options:
        options["device"] = torch.device(options["device"])
    if "bands" in options:
        options["bands"] = tuple(options["bands"])
    return does[what](config, *stores, **options)


def _opened(said: dict[str, Any] | None, config: RunConfig) -> PatchStore | None:
    if said is None:
        return None
    without = [Lost(**lost) for lost in said["without"]]
    return PatchStore.open(said["path"], check=False, without=without, cache=config.data.cache)


def _peaks(device: torch.device) -> dict[str, Any]:
    found = hardware.measured(device, seconds=0.2)
    return {"title": found.title, "flops": found.flops, "bandwidth": found.bandwidth, "memory": found.memory}


if __name__ == "__main__":
    main()
