"""A point of the scaling law computed by several processes under DistributedDataParallel, as the workers of a run are."""

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import tempfile
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

from cromss.benchmarks.scaling_point import Point, Sample, Setting

PATIENCE = 600.0  # seconds for a worker's answer
FAREWELL = 10.0  # seconds for a worker to leave by itself


@dataclass(frozen=True)
class Share:
    """What a worker is told on its first day."""

    setting: Setting
    rank: int
    world: int
    threads: int
    device: str  # cpu | cuda: the GPU of its rank
    rendezvous: str  # a file, at which the workers meet


class Crew:
    """`world` processes on this machine, meeting by loopback. Calling it does one step of them all.

    A context: its processes are built and warm on entry and gone on exit, whatever happened between. `memory_bytes`: of
    the worker that holds most.
    """

    def __init__(self, setting: Setting, world: int, threads: int, device: torch.device) -> None:
        self.setting, self.world, self.threads, self.device = setting, world, threads, device
        self.processes: list[BaseProcess] = []
        self._lines: list[Connection] = []
        self.memory_bytes = 0

    def __enter__(self) -> "Crew":
        try:
            self._start()
            self.memory_bytes = max(self._answers())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def __call__(self) -> Sample:
        """One step: it takes as long as its slowest worker. Raises RuntimeError when a worker has failed."""
        for line in self._lines:
            line.send("step")
        samples = self._answers()
        return Sample(*(max(each) for each in zip(*samples, strict=True)))

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, half of them
        self._folder = tempfile.TemporaryDirectory(prefix="cromss-workers-")
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            share = Share(
                self.setting, rank, self.world, self.threads, self.device.type, str(Path(self._folder.name) / "meet")
            )
            process = context.Process(target=_work, args=(theirs, share), daemon=True, name=f"worker {rank}")
            process.start()
            theirs.close()  # or the end of the worker would go unnoticed
            self.processes.append(process)
            self._lines.append(ours)

    def _answers(self) -> list:
        """What every worker says next, in the order of their ranks."""
        answers: dict[int, object] = {}
        while len(answers) < self.world:
            open_lines = [line for rank, line in enumerate(self._lines) if rank not in answers]
            ready = wait(open_lines, PATIENCE)
            if not ready:
                raise RuntimeError(f"{self.world} workers: no answer for {PATIENCE:.0f} s")
            for line in ready:
                rank = self._lines.index(line)
                answers[rank] = self._heard(rank)
        return [answers[rank] for rank in range(self.world)]

    def _heard(self, rank: int) -> object:
        try:
            answer = self._lines[rank].recv()
        except (EOFError, ConnectionError):
            self.processes[rank].join(FAREWELL)
            raise RuntimeError(
                f"worker {rank} of {self.world} ended with exit code {self.processes[rank].exitcode}: out of memory? "
                f"try a smaller --batch or fewer --workers"
            ) from None
        if isinstance(answer, str):
            raise RuntimeError(f"worker {rank} of {self.world} failed:\n{answer}")
        return answer

    def _end(self) -> None:
        for line in self._lines:
            line.close()  # a worker that waits for its next step sees the end of it, and leaves
        for process in self.processes:
            process.join(FAREWELL)
            for stop in (process.terminate, process.kill):
                if process.is_alive():
                    stop()
                    process.join(FAREWELL)
            process.close()
        self.processes, self._lines = [], []
        self._folder.cleanup()


def _steps(line: Connection, point: Point) -> None:
    line.send(point.memory_bytes)
    while True:
        line.recv()
        dist.barrier()  # the step begins when all are ready to begin
        line.send(tuple(point()))


def _work(line: Connection, share: Share) -> None:
    """A worker's life: build, warm up, tell the memory; then a step at every word until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair: it ends its workers
    try:
        torch.set_num_threads(share.threads)
        device = torch.device(share.device, share.rank) if share.device == "cuda" else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if loopback := next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{share.rendezvous}",
            rank=share.rank,
            world_size=share.world,
        )
        try:
            _steps(line, Point(share.setting, device, share.world))
        finally:
            gc.collect()  # DDP's wrapper, a cycle, holds the group; a thread of gloo's that outlives Python aborts the process
            dist.destroy_process_group()
    except (EOFError, BrokenPipeError):
        return
    except Exception:
        with contextlib.suppress(OSError):  # nobody listens any more
            line.send(traceback.format_exc())
