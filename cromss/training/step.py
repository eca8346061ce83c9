"""One optimizer step over a worker's batch. The device is given work and asked for nothing: whether the loss was finite is
read by the host one step later (`Finite`), while the next step is being computed."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cromss.config import RunConfig
from cromss.data.augment import augment
from cromss.data.patch import Batch
from cromss.objective.crossmodal import CrossModalObjective, ObjectiveParts
from cromss.objective.fused import FusedObjective
from cromss.training.state import Inputs, Training, autocast


@dataclass(frozen=True)
class Outcome:
    """What a step made: the batch as the network saw it, its logits and the parts of its loss, all detached."""

    batch: Batch
    logits: dict[str, Tensor]
    parts: ObjectiveParts
    alpha: float
    gamma: float


class Step:
    """The step of a run. `micro_batch`: pairs computed at a time (None: all of the worker's)."""

    def __init__(
        self, training: Training, config: RunConfig, inputs: Inputs, classes: int, device: torch.device,
        micro_batch: int | None = None,
    ) -> None:  # fmt: skip
        self.training, self.config, self.inputs, self.classes, self.device = training, config, inputs, classes, device
        self.micro_batch = micro_batch
        self.objective = objective_of(config, device)
        self.decay = config.objective.method.averages
        assert self.decay is None or training.average is not None, "pretraining.start makes what the method asks for"
        self.finite = Finite(training.optimizer, device)
        self._shares: dict[int, tuple[Tensor, Tensor]] = {}
        self._layout_checked = False

    def __call__(self, batch: Batch, epoch: int) -> Outcome:
        """Train on `batch`, which lies on the device. Raises FloatingPointError for an EARLIER step's loss (see `Finite`)."""
        alpha, gamma = self.shares(epoch)
        batch = augment(batch, self.config.data.augment)
        self.training.optimizer.zero_grad(set_to_none=True)
        whole = self.micro_batch is None or self.micro_batch >= len(batch)
        logits, parts = (self._whole if whole else self._in_pieces)(batch, *self._tensors(epoch, alpha, gamma))
        self._check_layout()
        self.finite.admit(parts.loss, self.training.step, batch.ids)
        self.training.optimizer.step()
        self.training.step += 1
        self._average()
        return Outcome(batch, {name: z.detach() for name, z in logits.items()}, parts, alpha, gamma)

    def shares(self, epoch: int) -> tuple[float, float]:
        """(alpha, gamma) of an epoch."""
        objective, ramp = self.config.objective, self.config.ramp_epochs
        return objective.alpha_at(epoch, ramp), objective.gamma_at(epoch, ramp)

    def _tensors(self, epoch: int, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
        """On the device, made once an epoch: as numbers, a compiled objective would be compiled again for each."""
        if epoch not in self._shares:
            self._shares = {
                epoch: tuple(torch.full((), x, dtype=torch.float64, device=self.device) for x in (alpha, gamma))
            }
        return self._shares[epoch]

    @torch.no_grad()
    def _average(self) -> None:
        """The running mean of the weights, one step further. The first steps forget their random beginning sooner."""
        if self.decay is not None:
            kept = min(self.decay, 1 - 1 / (self.training.step + 1))
            means, weights = self.training.average.parameters(), self.training.module.parameters()
            torch._foreach_lerp_(list(means), list(weights), 1 - kept)

    def _check_layout(self) -> None:
        """A fused optimizer walks weight and gradient in memory order: laid out unlike, they would be silently mixed up."""
        if not self._layout_checked and self.finite.fused:
            for name, weight in self.training.module.named_parameters():
                assert weight.grad is None or weight.grad.stride() == weight.stride(), (
                    f"{name}: gradient in another layout"
                )
        self._layout_checked = True

    def _judged(
        self, logits: dict[str, Tensor], batch: Batch, alpha: Tensor, gamma: Tensor, pieces: list[Batch]
    ) -> ObjectiveParts:
        targets = self.config.objective.smoothing(batch.labels, batch.seasons, self.classes)
        average = {} if self.decay is None else {"average": self._averaged(pieces)}
        return self.objective(
            logits, batch.labels, alpha=alpha, gamma=gamma, targets=targets, valid=batch.valid, clean=batch.clean,
            **average,
        )  # fmt: skip

    @torch.no_grad()
    def _averaged(self, pieces: list[Batch]) -> dict[str, Tensor]:
        """What the network of averaged weights says of the same images."""
        said = [self._forward(self.training.average, piece) for piece in pieces]
        return {name: torch.cat([logits[name] for logits in said]) for name in said[0]}

    def _forward(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images = self.inputs(batch)
        if not self.config.scaling.channels_last:
            images = {name: image.contiguous() for name, image in images.items()}
        with autocast(self.device, self.config.optim.precision):
            return network(images)

    def _whole(self, batch: Batch, alpha: Tensor, gamma: Tensor) -> tuple[dict[str, Tensor], ObjectiveParts]:
        logits = self._forward(self.training.network, batch)
        parts = self._judged(logits, batch, alpha, gamma, [batch])
        parts.loss.backward()
        return logits, parts

    def _in_pieces(self, batch: Batch, alpha: Tensor, gamma: Tensor) -> tuple[dict[str, Tensor], ObjectiveParts]:
        """Gradient accumulation that leaves the objective whole (Gao et al. 2021, arXiv 2101.06983, section 3).

        Thresholds and Dice belong to the worker's batch, not to whatever part of it fits into memory. So: logits of all
        pieces without a graph, the objective on them together, then each piece again, with a graph, from the gradient of
        its logits. A third more computation; a BatchNorm sees a piece at a time.
        """
        network, pieces = self.training.network, list(_pieces(batch, self.micro_batch))
        found, states = [], []
        with torch.no_grad():
            for piece in pieces:
                states.append(_random_state(self.device))
                found.append(self._forward(self.training.module, piece))
        logits = {name: torch.cat([z[name] for z in found]).requires_grad_() for name in found[0]}
        parts = self._judged(logits, batch, alpha, gamma, pieces)
        parts.loss.backward()
        rows = [len(piece) for piece in pieces]
        gradients = {name: z.grad.split(rows) for name, z in logits.items()}
        after = _random_state(self.device)
        with _statistics_held(network):
            for number, piece in enumerate(pieces):
                _restore(states[number], self.device)
                last = number == len(pieces) - 1  # DDP exchanges gradients once, when they are complete
                with nullcontext() if last or not hasattr(network, "no_sync") else network.no_sync():
                    again = self._forward(network, piece)
                    torch.autograd.backward(list(again.values()), [gradients[name][number] for name in again])
        _restore(after, self.device)
        return logits, parts


class Finite:
    """Stops a training whose loss is not finite before its weights are not, and without stopping the device to look.

    On the device a flag keeps the optimizer from moving, in that step and in every later one; the host reads the flag of
    the step before. Every rank has the same flag, or the others would wait for ever in their next exchange.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer, self.device = optimizer, device
        self.fused = bool(optimizer.param_groups[0].get("fused"))
        self.flag = torch.zeros((), device=device)
        self._asked: tuple[Tensor, Any, Tensor, int, list[str]] | None = None

    def admit(self, loss: Tensor, step: int, ids: list[str]) -> None:
        """Before the optimizer moves. Raises FloatingPointError for the step before this one."""
        self.check()
        bad = (~torch.isfinite(loss.detach())).to(torch.float32)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self.flag = torch.maximum(self.flag, bad)
        self._asked = (*self._on_its_way(self.flag), loss.detach(), step, ids)
        if self.fused:
            self.optimizer.found_inf = (
                self.flag
            )  # what a gradient scaler tells a fused optimizer: where 1, nothing moves
        else:
            self.check()

    def check(self) -> None:
        """Raises FloatingPointError if the last admitted step had no finite loss; waits for that step, if need be."""
        if self._asked is None:
            return
        flag, arrived, loss, step, ids = self._asked
        self._asked = None
        if arrived is not None:
            arrived.synchronize()
        if flag:
            raise FloatingPointError(
                f"step {step}: the loss is not finite ({float(loss)} on this worker); lower optim.lr="
                f"{self.optimizer.param_groups[0]['lr']:g} or look at the patches of this step: {', '.join(ids[:4])}, ..."
            )

    def _on_its_way(self, flag: Tensor) -> tuple[Tensor, Any]:
        """A copy that the host may read once the event has happened."""
        if self.device.type != "cuda":
            return flag, None
        host = torch.empty((), pin_memory=True).copy_(flag, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return host, arrived


def objective_of(config: RunConfig, device: torch.device) -> Callable[..., ObjectiveParts]:
    """The run's objective: as the paper reads or, where `scaling.compile` says so and the method's gradient is written
    down, as a compiler likes it."""
    if config.scaling.compiles("objective", device) and config.objective.method.closed_form:
        torch._dynamo.config.suppress_errors = True  # without a compiler the stages run as they are, with a warning
        return FusedObjective(config.objective)
    return CrossModalObjective(config.objective)


def averaged(config: RunConfig, network: nn.Module) -> nn.Module | None:
    """What begins as `network` and follows its weights, where the method asks for one (`Training.average`).

    Dropout is off, as in evaluation, but BatchNorms take the statistics of the batch, as in training: a shared decoder's
    running ones are a blend of the modalities, which fits neither. Nothing of it is ever trained.
    """
    if config.objective.method.averages is None:
        return None
    average = copy.deepcopy(network).requires_grad_(False).eval()
    for norm in average.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.train()
            norm.momentum = 0.0  # what was counted before stays as it is, read by nobody
    return average


def _pieces(batch: Batch, rows: int) -> Iterator[Batch]:
    for start in range(0, len(batch), rows):
        rest = slice(start, start + rows)
        yield replace(batch.apply(lambda tensor, rest=rest: tensor[rest]), ids=batch.ids[rest])


@contextmanager
def _statistics_held(network: nn.Module) -> Iterator[None]:
    """The running statistics were updated by the first of the two passes; the second leaves them alone."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is not None]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Both passes over a piece must drop the same paths."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
