"""The objective alone, forward and backward to the logits: the recipe's, ours as it stands, ours compiled."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cromss.benchmarks.meters import Clock
from cromss.benchmarks.sides import Loss, Seen, Side, our_loss
from cromss.costs.traffic import Traffic, compiled_bytes

CALLS = 3  # of each in a round

RECIPE, EAGER, COMPILED = "recipe", "ours, eager", "ours, compiled"


@dataclass(frozen=True)
class Cost:
    """What one objective takes, and how far it is from the recipe's on equal logits (relative; gradients: of the largest).

    `why_not` is set, and all else empty, for one that could not be compiled.
    """

    seconds: float = 0.0
    bytes: int = 0  # read and written by its kernels; eager: by its operators
    operators: int | None = None  # None: fused, uncounted
    elements: int = 0  # of every operator's largest tensor: the arithmetic, as far as it is counted
    loss_error: float = 0.0
    gradient_error: float = 0.0
    compile_seconds: float | None = None
    why_not: str | None = None


class Objectives:
    """All of them at the logits of one step, each in its side's memory layout, ready to be timed in turns."""

    def __init__(self, sides: dict[str, Side], seen: dict[str, Seen], device: torch.device) -> None:
        """Counts and compares; compiles ours, unless the configuration says `scaling.compile=none`."""
        self._clock_of, self._seconds = lambda: Clock(device), {}
        ours, batch = sides["ours"], seen["recipe"].batch
        values = seen["recipe"].logits
        alike = {  # the recipe's values as ours lies in memory
            name: torch.empty_like(z).copy_(values[name]) for name, z in seen["ours"].logits.items()
        }
        self._work: dict[str, Callable[[], tuple[Tensor, list[Tensor]]]] = {
            RECIPE: _work(sides["recipe"].loss, values, batch),
            EAGER: _work(our_loss(ours.config, device, "none"), alike, batch),
        }
        self.costs = {name: _counted(work) for name, work in self._work.items()}
        self._compile(_work(our_loss(ours.config, device, "objective"), alike, batch), ours.config.scaling.compile)
        plain, expected = self._work[RECIPE]()
        for name, work in self._work.items():
            loss, gradients = work()
            self.costs[name] = replace(
                self.costs[name],
                loss_error=float((loss - plain).abs() / plain.abs()),
                gradient_error=max(
                    float((g - e).abs().max() / e.abs().max()) for g, e in zip(gradients, expected, strict=True)
                ),
            )

    def _compile(self, work: Callable[[], tuple[Tensor, list[Tensor]]], switch: str) -> None:
        if switch == "none":
            self.costs[COMPILED] = Cost(why_not="switched off: scaling.compile=none")
            return
        began = time.perf_counter()
        try:
            with torch._dynamo.config.patch(suppress_errors=False):
                moved = compiled_bytes(work)
        except Exception as error:  # whatever keeps a compiler from working: none installed, one too old, no Triton
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            self.costs[COMPILED] = Cost(why_not=f"torch.compile cannot: {reason.strip()}")
            return
        self._work[COMPILED] = work
        self.costs[COMPILED] = Cost(
            bytes=moved, elements=self.costs[EAGER].elements, compile_seconds=time.perf_counter() - began
        )

    def time(self) -> None:
        """One round: each of them a few times, in turns."""
        for _ in range(CALLS):
            for name, work in self._work.items():
                clock = self._clock_of()
                with clock.part(name):
                    work()
                self._seconds.setdefault(name, []).append(clock.seconds[name])

    def done(self) -> dict[str, Cost]:
        """The costs, with the times of the fastest calls."""
        times = {name: min(seconds) for name, seconds in self._seconds.items()}
        return {name: replace(cost, seconds=times.get(name, 0.0)) for name, cost in self.costs.items()}


def _work(loss: Loss, logits: dict[str, Tensor], batch: object) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    """A call that takes the loss and its gradients at `logits`."""

    def work() -> tuple[Tensor, list[Tensor]]:
        leaves = {name: z.detach().requires_grad_() for name, z in logits.items()}
        value = loss(leaves, batch)
        value.backward()
        return value.detach(), [leaf.grad.float() for leaf in leaves.values()]

    return work


def _counted(work: Callable[[], object]) -> Cost:
    with Traffic() as traffic:
        work()
    return Cost(bytes=traffic.bytes, operators=traffic.operators, elements=traffic.elements)
