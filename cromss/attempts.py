"""A pretraining on Ray Train workers, from start to end: attempt after attempt, on as many workers as there are.

Ray Train restarts a group in its old size and waits for it for ever; its elastic groups count whole devices and would take
three workers where eight lanes need a divisor of eight. So an attempt here is one TorchTrainer that fails at once, and what
comes next is decided in between: a crash goes on from the newest checkpoint, a node that is taken back is left with a
checkpoint in time, and fewer workers than wanted are joined by more as soon as there is room.
"""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cromss.config import RunConfig
from cromss.journal import read_json
from cromss.leaving import OVERTAKEN, Left, ask, asked, overtaken, withdraw
from cromss.ray_session import Share, among_themselves, beside, unique_name
from cromss.training.checkpoint import newest_name
from cromss.training.pretraining import checkpoints_of

DRAINED = "a node of this run is being taken back"
GROWN = "there is room for more workers"
LOOK = 2.0  # seconds, about: how often the workers look whether they are to leave
REFUSED = ".refused.json"  # what one worker of several had to say before it ended them all

# What every Ray Train worker runs; the first one's answer is the run's.
Worker = Callable[[dict[str, Any]], dict[str, Any]]


def fitted(
    worker: Worker, job: dict[str, Any], config: RunConfig, out: Path, share: Share, callbacks: list[Any],
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """What `worker(job)` returns in the end.

    Raises RuntimeError after more than `scaling.max_failures` crashes in a row without a new checkpoint between them.
    """
    from ray.train import TrainingFailedError

    checkpoints = checkpoints_of(config, out)
    failures, before = 0, newest_name(checkpoints)
    while True:
        workers = gathered(share, sizes(config, share), config.scaling.patience, say)
        begun = out / f".begun-{uuid.uuid4().hex}"
        try:
            with growing(workers, config, share, out, begun):
                outcome = _attempt(partial(_beginning, worker, str(begun)), job, out, share, workers, callbacks)
        except TrainingFailedError as error:
            if (answer := read_json(out / REFUSED)) is not None:
                return answer
            now = newest_name(checkpoints)
            failures, before = (1 if now != before else failures + 1), now
            if failures > config.scaling.max_failures:
                raise RuntimeError(
                    f"the workers failed {failures} times without a new checkpoint; the last time: {_reason(error)}"
                ) from error
            say(f"{_reason(error)}; going on from {now or 'the beginning'}")
            continue
        if outcome.get("left") in (DRAINED, GROWN):
            say(Left(outcome["left"], outcome["step"]).told)
            continue
        return outcome


def sizes(config: RunConfig, share: Share) -> list[int]:
    """How many workers may compute this run, the most first: divisors of the lanes, from `share.workers` down to
    `scaling.min_workers`."""
    least = min(config.scaling.min_workers or share.workers, share.workers)
    return [count for count in range(share.workers, least - 1, -1) if config.data.lanes % count == 0]


def gathered(share: Share, wanted: list[int], patience: float, say: Callable[[str], None]) -> int:
    """How many workers to start: the most that find room, after `patience` minutes also fewer. Waits for as long as there
    is no room for the fewest; the demand stands meanwhile, for an autoscaler to see."""
    began, told = time.monotonic(), 60.0
    most = _Room(share, wanted[0])
    try:
        while not most.found(2.0):
            waited = time.monotonic() - began
            for fewer in wanted[1:] if waited >= 60 * patience else ():
                most.release()
                with contextlib.closing(_Room(share, fewer)) as room:
                    if room.found(5.0):
                        say(f"no room for {wanted[0]} workers after {waited / 60:.0f} min; {fewer} begin")
                        return fewer
                most = _Room(share, wanted[0])
            if waited > told:
                say(f"waiting for {wanted[0]} workers of {share.demand}: no room for {waited / 60:.0f} min")
                told += 300.0
        return wanted[0]
    finally:
        most.release()


@contextlib.contextmanager
def growing(workers: int, config: RunConfig, share: Share, out: Path, begun: Path) -> Iterator[None]:
    """While fewer workers compute than wanted: ask for the missing ones, and have the run leave when there is room for them.

    Not before `begun` is there, which the workers of this attempt write: until they are placed, the room would be theirs.
    """
    larger = [count for count in sizes(config, share) if count > workers]

    def watch(stop: threading.Event) -> None:
        while not begun.exists():
            if stop.wait(1.0):
                return
        with contextlib.closing(_Room(share, larger[-1] - workers)) as missing:
            while not stop.is_set():
                if missing.found(5.0):
                    ask(out, GROWN)
                    stop.wait()  # the room is kept for them until this attempt has ended

    try:
        with beside(watch) if larger else contextlib.nullcontext():
            yield
    finally:
        begun.unlink(missing_ok=True)
        if asked([out]) == GROWN:  # whoever else has asked is still to be heard
            withdraw(out)


class _Room:
    """Room for some workers, held by a placement group until it is released: Ray's own scheduler is asked, which knows what
    others hold and which nodes are being drained."""

    def __init__(self, share: Share, workers: int) -> None:
        from ray.util import placement_group

        self._group: Any = placement_group([share.demand] * workers)

    def found(self, seconds: float) -> bool:
        """Whether there is room, within so many seconds."""
        return bool(self._group.wait(seconds))

    def release(self) -> None:
        from ray.util import remove_placement_group

        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    close = release


# --- in the workers -----------------------------------------------------------------------------------------------------


def _beginning(worker: Worker, begun: str, job: dict[str, Any]) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        Path(begun).touch()
    return worker(job)


def together_asked(job: dict[str, Any], rank: int) -> Callable[[int], str]:
    """Whether to leave, found out by all workers after the same steps, about every LOOK seconds: the first one looks, and
    says when the next look is due."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    drains = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "1"
    due = 0
    last: tuple[int, float] | None = None  # step and time of the look before

    def leave(step: int) -> str:
        nonlocal due, last
        if step < due:
            return ""
        taken = ray.train.get_preemption_info() if drains else None
        found: dict[str, Any] | None = None
        if rank == 0:
            now = time.monotonic()
            seconds = (now - last[1]) / (step - last[0]) if last else LOOK
            found = {"why": DRAINED if taken else _looked(job), "due": step + max(1, int(LOOK / max(seconds, 1e-6)))}
            last = step, now
        found = broadcast_from_rank_zero(found)
        due = found["due"]
        return found["why"]

    return leave


def alone_asked(job: dict[str, Any]) -> Callable[[int], str]:
    """Whether to leave, for a run in one process."""
    looked = float("-inf")

    def leave(step: int) -> str:
        nonlocal looked
        if (now := time.monotonic()) - looked < LOOK:
            return ""
        looked = now
        return _looked(job)

    return leave


def _looked(job: dict[str, Any]) -> str:
    return OVERTAKEN if overtaken(Path(job["out"]), job["holder"]) else asked(map(Path, job["leave"]))


# --- an attempt ---------------------------------------------------------------------------------------------------------


def _attempt(
    worker: Worker, job: dict[str, Any], out: Path, share: Share, workers: int, callbacks: list[Any]
) -> dict[str, Any]:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRun
    from ray.train.torch import TorchTrainer

    from cromss.rendezvous import Rendezvous

    trainer = TorchTrainer(
        worker,
        train_loop_config=job,
        torch_config=Rendezvous(),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=share.gpus > 0, resources_per_worker=share.demand
        ),
        run_config=TrainRun(
            name=unique_name(job["key"]),
            storage_path=str((out / "ray").absolute()),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            callbacks=callbacks,
        ),
    )  # fmt: skip
    with among_themselves():
        return trainer.fit().return_value


def _reason(error: BaseException) -> str:
    """What Ray's error says, in one line: the first worker's own words where it has some."""
    failures = getattr(error, "worker_failures", None) or {}
    told = next(iter(failures.values()), error)
    if "worker process has died" in str(told):
        return f"worker {next(iter(failures), '?')}: its process has died"
    lines = [line.strip() for line in str(told).splitlines() if line.strip()]
    rank = f"worker {next(iter(failures))}: " if failures else ""
    return f"{rank}{(lines or [type(told).__name__])[-1][:300]}"
