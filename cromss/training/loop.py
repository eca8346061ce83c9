"""The training loop: `fit` and `evaluate` over any iterable of batches. It knows processes (torch.distributed), no cluster."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from cromss.config import RunConfig, Schedule
from cromss.data.augment import centre_crop
from cromss.data.patch import Batch
from cromss.objective.crossmodal import CrossModalObjective
from cromss.training.metrics import Confusion, scores
from cromss.training.state import Inputs, Training, autocast
from cromss.training.step import Step
from cromss.training.uploads import uploaded


class Schedulable(Protocol):
    """What the loop asks of a plan."""

    steps: int

    def epoch_of(self, step: int) -> int: ...


class Observer(Protocol):
    """Looks at some steps of every epoch, and says at its end what it saw."""

    def __call__(self, batch: Batch, logits: dict[str, torch.Tensor], alpha: float, gamma: float) -> None: ...

    def read(self) -> dict[str, float]: ...


OBSERVED = 4  # steps at the end of every epoch but the last, of which the observer sees them all


@dataclass
class Meter:
    """Running means of an epoch, kept on the device until they are read."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: int = 0
    rows: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, values: dict[str, torch.Tensor], rows: int, waited: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()
        self.steps, self.rows, self.waited = self.steps + 1, self.rows + rows, self.waited + waited

    def state(self) -> dict[str, Any]:
        """What a run that leaves in mid-epoch takes along; JSON."""
        sums = {name: float(total) for name, total in self.sums.items()}
        seconds = time.monotonic() - self.started
        return {"sums": sums, "steps": self.steps, "rows": self.rows, "waited": self.waited, "seconds": seconds}

    @classmethod
    def resumed(cls, state: dict[str, Any], device: torch.device) -> "Meter":
        """The meter of an epoch that goes on. Of several workers, all go on from the first one's."""
        sums = {name: torch.tensor(total, device=device) for name, total in state["sums"].items()}
        return cls(sums, state["steps"], state["rows"], state["waited"], time.monotonic() - state["seconds"])

    def read(self, world: int) -> dict[str, float]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        means = {f"train/{name}": float(total) / self.steps for name, total in self.sums.items()}
        return means | {"perf/patches_per_s": self.rows * world / seconds, "perf/data_wait": self.waited / seconds}


@dataclass(frozen=True)
class Unfinished:
    """`fit` left in mid-epoch, as it was asked to."""

    why: str
    meter: dict[str, Any]


@dataclass(frozen=True)
class EpochEnd:
    """What happened in an epoch: `epoch` counts from 0, `step` = steps done so far."""

    epoch: int
    step: int
    metrics: dict[str, float]
    last: bool


def fit(
    training: Training,
    batches: Iterable[Batch],
    plan: Schedulable,
    config: RunConfig,
    inputs: Inputs,
    *,
    classes: int,
    device: torch.device,
    validate: Callable[[], dict[str, float]],
    at_epoch_end: Callable[[EpochEnd], None],
    say: Callable[[str], None] = lambda line: None,
    observe: Observer | None = None,
    say_every: float = 10.0,
    micro_batch: int | None = None,
    make_step: Callable[..., Step] = Step,
    leave: Callable[[int], str] = lambda step: "",
    meter: Meter | None = None,
) -> Unfinished | None:
    """Train from `training.step` to the end of the plan, `micro_batch` pairs at a time (None: a worker's all).

    `batches` must start at that step. After each epoch: validate, step the schedule on `val/loss`, call `at_epoch_end`.
    `observe(batch, logits, alpha, gamma)` sees the last steps of every epoch and all of the last epoch's; what it then
    reads joins the epoch's metrics. `leave(step)` is asked within an epoch, by every worker after the same steps: a reason
    ends the loop there, and `meter` is what an epoch that goes on has counted before. Raises FloatingPointError, naming the
    step, for a loss that is not finite, before the optimizer moves.
    """
    step = make_step(training, config, inputs, classes, device, micro_batch)
    world = dist.get_world_size() if dist.is_initialized() else 1
    meter, said, began, first = meter or Meter(), time.monotonic(), time.monotonic(), training.step
    last_epoch = plan.epoch_of(plan.steps - 1)
    training.network.train()
    for batch, waited in _timed(uploaded(batches, device, config.scaling.double_buffer)):
        epoch = plan.epoch_of(training.step)
        outcome = step(batch, epoch)
        alpha, gamma = outcome.alpha, outcome.gamma
        meter.add(_parts(outcome.parts), len(batch), waited)
        if observe and (epoch == last_epoch or plan.epoch_of(training.step - 1 + OBSERVED) != epoch):
            observe(outcome.batch, outcome.logits, alpha, gamma)
        done = training.step >= plan.steps
        if time.monotonic() - said > say_every and not done:
            say(_line(training.step, plan, epoch, alpha, gamma, meter.read(world), began, first))
            said = time.monotonic()
        if done or plan.epoch_of(training.step) != epoch:
            metrics = _mean_over_ranks(meter.read(world), device) if world > 1 else meter.read(world)
            metrics |= {
                "train/alpha": alpha,
                "train/gamma": gamma,
                "train/lr": training.optimizer.param_groups[0]["lr"],
            }
            say(_line(training.step, plan, epoch, alpha, gamma, metrics, began, first))
            step.finite.check()
            share_buffers(training.module)
            metrics |= validate()
            if observe:
                metrics |= observe.read()
            training.network.train()
            step_schedule(training.scheduler, metrics["val/loss"])
            at_epoch_end(EpochEnd(epoch, training.step, metrics, done))
            meter, said = Meter(), time.monotonic()
        elif why := leave(training.step):
            step.finite.check()
            return Unfinished(why, meter.state())
    return None


@torch.no_grad()
def evaluate(
    module: nn.Module,
    batches: Iterable[Batch],
    config: RunConfig,
    inputs: Inputs,
    *,
    classes: int,
    device: torch.device,
) -> dict[str, float]:
    """Validation: unit weights, no augmentation, every patch once; counts are summed over the ranks.

    `val/loss` (the objective without selection), `val/<modality>/miou` against the noisy labels and, where the truth is
    known, `val/<modality>/clean_miou`.
    """
    module.eval()
    # Ranks may hold different numbers of validation batches: nothing in the objective may wait for the others.
    objective = CrossModalObjective(config.objective.unweighted())
    noisy = {name: Confusion(classes, device) for name in inputs.bands}
    clean = {name: Confusion(classes, device) for name in inputs.bands}
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        batch = centre_crop(batch.to(device), config.data.augment.crop)
        with autocast(device, config.optim.precision):
            logits = module(inputs(batch))
        outcome = objective(logits, batch.labels, alpha=1.0, gamma=0.0, valid=batch.valid)
        total += torch.tensor([float(outcome.loss) * len(batch), len(batch)], dtype=torch.float64, device=device)
        for name, z in logits.items():
            noisy[name].update(z, batch.labels)
            if batch.clean is not None:
                clean[name].update(z, batch.clean)
    total = sum_over_ranks(total)
    metrics = {"val/loss": float(total[0] / total[1]) if total[1] else float("nan")}
    for kind, meters in (("miou", noisy), ("clean_miou", clean)):
        for name, confusion in meters.items():
            counts = sum_over_ranks(torch.as_tensor(confusion.counts, device=device)).cpu().numpy()
            if counts.sum():
                metrics[f"val/{name}/{kind}"] = scores(counts).miou
    return metrics


def make_scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> Any:
    """The learning-rate schedule, stepped once an epoch."""
    schedulers = torch.optim.lr_scheduler
    match schedule.kind:
        case "plateau":
            return schedulers.ReduceLROnPlateau(optimizer, factor=schedule.factor, patience=schedule.patience)
        case "cosine":
            full, end, last = optimizer.param_groups[0]["lr"], schedule.end, schedule.epochs
            falling = schedulers.CosineAnnealingLR(optimizer, last, eta_min=end)
            flat = schedulers.LambdaLR(optimizer, lambda epoch: end / full)
            return schedulers.SequentialLR(optimizer, [falling, flat], [last])
        case "constant":
            return schedulers.LambdaLR(optimizer, lambda epoch: 1.0)


def step_schedule(scheduler: Any, loss: float) -> None:
    """One epoch further; only the plateau schedule looks at the validation loss."""
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give every rank rank 0's BatchNorm statistics, so that all evaluate and save the same network."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def _parts(outcome: Any) -> dict[str, torch.Tensor]:
    if isinstance(outcome, dict):  # self-supervised: has named them itself
        return outcome
    parts = {"loss": outcome.loss, "segmentation": outcome.segmentation, "consistency": outcome.consistency}
    if outcome.extra is not None:
        parts["extra"] = outcome.extra
    for name in outcome.cross_entropy:
        parts[f"{name}/cross_entropy"] = outcome.cross_entropy[name]
        parts[f"{name}/dice"] = outcome.dice[name]
        parts[f"{name}/label_weight"] = outcome.label_weights[name].mean()
    return parts


def _timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    source = iter(batches)
    while True:
        asked = time.monotonic()
        try:
            batch = next(source)
        except StopIteration:
            return
        yield batch, time.monotonic() - asked


def _line(
    step: int,
    plan: Schedulable,
    epoch: int,
    alpha: float,
    gamma: float,
    metrics: dict[str, float],
    began: float,
    first: int,
) -> str:
    eta = (time.monotonic() - began) / max(step - first, 1) * (plan.steps - step)
    labelled = "train/segmentation" in metrics
    parts = (
        (
            f"(seg {metrics['train/segmentation']:.3f} cons {metrics['train/consistency']:.3f})  "
            f"alpha {alpha:.2f} gamma {gamma:.2f}  "
        )
        if labelled
        else ""
    )
    return (
        f"epoch {epoch + 1}  step {step}/{plan.steps}  loss {metrics['train/loss']:.3f} "
        f"{parts}{metrics['perf/patches_per_s']:.0f} patches/s  "
        f"data wait {100 * metrics['perf/data_wait']:.0f} %  ETA {_clock(eta)}"
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's tensor, in place; one process has its own."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def _mean_over_ranks(metrics: dict[str, float], device: torch.device) -> dict[str, float]:
    names = sorted(metrics)
    values = torch.tensor([metrics[name] for name in names], dtype=torch.float64, device=device)
    return dict(zip(names, (sum_over_ranks(values) / dist.get_world_size()).tolist(), strict=True))
