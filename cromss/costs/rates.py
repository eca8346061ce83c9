"""What a piece of a run takes, in seconds, and how that is known: the link between measurement, data sheet and arithmetic."""

from dataclasses import dataclass, field
from typing import Literal

from cromss.costs.hardware import Hardware
from cromss.costs.work import Work

How = Literal["measured", "computed"]


@dataclass(frozen=True)
class Cost:
    """Seconds of something. `limit`: what bounds it (compute, memory, decode, storage), where that is known."""

    seconds: float
    how: How
    limit: str = ""

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other: measured only if both are; bounded by what bounds the longer one."""
        how: How = "measured" if self.how == other.how == "measured" else "computed"
        longer = max(self, other, key=lambda cost: cost.seconds)
        return Cost(self.seconds + other.seconds, how, longer.limit or self.limit or other.limit)

    def times(self, number: float) -> "Cost":
        """So many of it."""
        return Cost(self.seconds * number, self.how, self.limit)


NOTHING = Cost(0.0, "measured")


@dataclass(frozen=True)
class TransferRates:
    """Pieces of a downstream run: its start, a training step, an image through the encoder, a scored place."""

    begin: Cost
    step: Cost
    encode: Cost
    place: Cost


@dataclass(frozen=True)
class Rates:
    """What the pieces of a run take on one kind of device.

    device    in words, e.g. "NVIDIA H200 141 GB (SXM)" or "CPU, 1 thread"
    gpu       whether devices are GPUs (hours are GPU-hours) or CPU cores
    workers   processes that share a batch; together   downstream runs at a time
    devices   GPUs or cores that a pretraining holds; judges   that its downstream runs hold
    start     of a process: from its first instruction to its first batch, without Ray
    first     the first step beyond a usual one: the network is built, kernels are chosen or compiled
    step      a training step, reading included
    place     a validated place; passes   what a validation takes whatever its size
    """

    device: str
    gpu: bool
    workers: int
    together: int
    devices: float
    judges: float
    start: Cost
    first: Cost
    step: Cost
    passes: Cost
    place: Cost
    probe: Cost  # of all modalities
    checkpoint: Cost
    finish: Cost  # wrong labels looked for where the truth is known, encoders, pictures
    transfers: dict[tuple[str, str], TransferRates] = field(default_factory=dict)
    reader: float = 0.0  # places a second that one worker's reader delivers; 0: not known
    storage: float = 0.0  # bytes a second that the store's disk or bucket delivers; 0: not known
    reader_how: How = "computed"
    storage_how: How = "computed"
    counted: Work | None = None  # of a worker's step
    on: Hardware | None = None  # peaks of what a worker computes on
    notes: tuple[str, ...] = ()
