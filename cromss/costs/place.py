"""Where configurations will run, and which of them take the same steps there."""

import os
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from cromss.config import Pretrain, RunConfig
from cromss.costs.hardware import Hardware, here
from cromss.costs.hardware import gpu as data_sheet
from cromss.objective.methods import Plain

TYPICAL_CPU = (3e10, 4e9)  # operations and bytes a second of one thread: where nothing is measured

# What changes neither the kind nor the amount of work of a step.
_IDLE = ("seed", "sweep", "pretraining")
_IDLE_IN = {
    "optim": ("lr", "weight_decay", "schedule", "epochs"),
    "objective": ("alpha", "gamma", "ramp_epochs"),
    "transfer": ("lr", "schedule", "epochs", "repeats", "protocol"),
    "probe": ("every", "lr"),
    "data": ("quarantine", "sentinel", "journal_rows", "seasons", "cache"),
    "scaling": ("checkpoint_epochs", "checkpoints", "max_failures"),
}


@dataclass(frozen=True)
class Place:
    """Where configurations will run: `concurrent` trials side by side, each of `workers` processes with `threads`, and up
    to `together` downstream runs of `task_threads`."""

    on: Hardware
    gpu: bool
    at_hand: bool
    concurrent: int
    workers: int
    threads: int
    together: int
    task_threads: int

    @property
    def device(self) -> str:
        """In words."""
        if self.gpu:
            return f"{self.workers} x {self.on.title}"
        processes = f"{self.workers} processes of " if self.workers > 1 else ""
        return f"CPU, {processes}{self.threads} thread{'s' * (self.threads > 1)}"


def place_of(
    config: RunConfig, *, gpu: str = "auto", concurrent: int = 1, together: int | None = None, devices: float = 1.0
) -> Place:  # fmt: skip
    """Where `config` would run. `devices`: of a trial. Raises ValueError for an unknown GPU, naming the known ones."""
    wants = config.scaling.use_gpu is not False
    if gpu not in ("auto", "cpu"):
        on, on_gpu = data_sheet(gpu), True
    else:
        on_gpu = gpu == "auto" and wants and torch.cuda.is_available()
        on = here() if on_gpu else None
    at_hand = not on_gpu or (torch.cuda.is_available() and on in (None, here()))
    cores = os.cpu_count() or 1
    asked = config.scaling.num_workers
    workers = max(1, asked if asked is not None else (max(1, round(devices)) if on_gpu else min(2, cores)))
    threads = config.scaling.threads or (1 if on_gpu else max(1, cores // workers))
    if on is None:
        speed, rate = TYPICAL_CPU
        memory = float(psutil.virtual_memory().total)
        on = Hardware("cpu", "CPU", speed * threads, rate * threads, memory) if not on_gpu else _unlisted()
    if together is None:
        share = (
            0.4 if cores <= 4 else 1.0
        )  # of a CPU, as trials share theirs out; downstream runs that share a GPU halve it
        together = 1 if asked == 0 else workers if on_gpu else max(1, int(devices / share + 1e-9))
    return Place(on, on_gpu, at_hand, max(1, concurrent), workers, threads, together, config.scaling.threads or 1)


STOOD_IN = (
    "self-supervised pretrainings are estimated as a U-Net's, forward and backward: in place of its decoder they run the "
    "encoder a second time, and DINO more often on small views"
)


def stand_in(config: RunConfig) -> RunConfig:
    """The supervised run that takes about as long: a self-supervised step passes each encoder twice and has no decoder."""
    if config.pretraining.reads_labels or not config.pretraining.trains:
        return config
    objective = config.objective.model_copy(update={"method": Plain()})
    return config.model_copy(update={"pretraining": Pretrain(), "objective": objective})


def same_work(config: RunConfig) -> str:
    """The same for configurations whose steps are the same work."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    tree["pretrains"] = config.pretraining.trains
    for key in _IDLE:
        del tree[key]
    for group, keys in _IDLE_IN.items():
        for key in keys:
            tree[group].pop(key, None)
    return repr(tree)


def _unlisted() -> Hardware:
    """A GPU that is here and in no table."""
    memory = float(torch.cuda.get_device_properties(0).total_memory)
    return Hardware("gpu", torch.cuda.get_device_name(), 1e14, 1e12, memory)
