"""Who may use which CPU and GPU. Everything is budgeted before anything starts, so that nobody waits for a CPU that
will never come.

A trial holds its driver's sliver all the time, and beside it either its Train workers with their readers or its
downstream runs, never both: the downstream runs live on what the workers gave back. Without Train workers the trial's
own process does everything and holds what that takes.
"""

from dataclasses import dataclass

from cromss.config import RunConfig
from cromss.ray_session import Share, share_of

DRIVER_CPUS = 0.1  # a trial's own bundle; Ray refuses 0


@dataclass(frozen=True)
class Budget:
    """`concurrent` trials at a time; each runs up to `together` downstream runs of `transfer_cpus` and `transfer_gpus`."""

    share: Share
    trial: dict[str, float]  # what Tune reserves for the trial itself
    concurrent: int
    together: int
    transfer_cpus: float
    transfer_gpus: float

    @property
    def devices(self) -> float:
        """What a trial holds from its start to its end: GPUs where it has some, else CPU cores."""
        return self.share.gpus * max(self.share.workers, 1) if self.share.gpus else self._cores

    @property
    def _cores(self) -> float:
        return self.share.all_cpus + (self.trial["CPU"] if self.share.workers else 0.0)

    @property
    def unit(self) -> str:
        """What an hour of one of its devices is called."""
        return "GPU-hours" if self.share.gpus else "core-hours"


def budget(config: RunConfig, cpus: float, gpus: float, gpu_memory: float | None = None) -> Budget:
    """What a cluster of `cpus` and `gpus`, of `gpu_memory` bytes each, can run at a time.

    Raises ValueError, by name, when not even one trial fits.
    """
    share = share_of(config, cpus, gpus)
    if not share.workers:
        alone = {"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}
        most = int(min((cpus + 1e-9) // share.all_cpus, gpus // share.gpus if share.gpus else float("inf")))
        return Budget(share, alone, most, 1, share.cpus, share.gpus)
    trial, one = {"CPU": DRIVER_CPUS}, DRIVER_CPUS + share.all_cpus
    if one > cpus + 1e-9:
        raise ValueError(
            f"a trial needs {one:g} CPUs ({share.workers} workers x {share.cpus:g}, their readers {share.reader_cpus:g} "
            f"each, {DRIVER_CPUS} for itself); the cluster has {cpus:g}: lower scaling.num_workers or "
            f"scaling.cpus_per_worker"
        )
    concurrent = int((cpus + 1e-9) // one)
    if share.gpus:
        concurrent = min(concurrent, int(gpus // share.workers))
        from cromss.training.footprint import transfers_per_gpu  # torch: seconds

        sharing = transfers_per_gpu(config, gpu_memory)
        together = sharing * share.workers
        return Budget(share, trial, concurrent, together, share.all_cpus / together, 1 / sharing)
    transfer_cpus = min(0.4 if cpus <= 4 else 1.0, share.all_cpus)
    return Budget(share, trial, concurrent, max(1, int((share.all_cpus + 1e-9) // transfer_cpus)), transfer_cpus, 0.0)
