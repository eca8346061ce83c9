"""Joining or starting Ray, and how the parts of a run share a machine."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cromss.config import RunConfig

# Set before Ray is imported anywhere. Reports are consumed five times a second, so that short epochs do not wait for them.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command; the same command with --resume goes on
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a configuration keep their meaning in the workers
    "RAY_worker_maximum_startup_concurrency": "8",  # fractional CPUs start more processes than cores; no warning for that
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that leaves before its first probe has no score
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
MAX_RESOURCES = "CROMSS_MAX_RESOURCES"
# On a cluster nodes may be taken back: Ray Train watches for it, and workers learn of it within seconds.
WATCHFUL = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2"}


def connect(num_cpus: int | None = None, num_gpus: int | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job's own), else start Ray on this machine.

    A local Ray listens on loopback only, without tokens. On a cluster, RAY_AUTH_MODE is the cluster's own.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    if ray.is_initialized():
        return
    if address != "local":
        os.environ.update(WATCHFUL)
        with on_loopback() if only_on_loopback(address) else contextlib.nullcontext():
            ray.init(address=address, runtime_env={"env_vars": QUIET | WATCHFUL}, log_to_driver=False)
        return
    with on_loopback():
        ray.init(
            address="local",  # without it Ray would try to join whatever else runs on this machine
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=True,  # without it every stopped trial keeps its placement group for ever
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level="warning",
        )


def only_on_loopback(address: str) -> bool:
    """Whether the cluster at host:port answers on loopback and nowhere else. Ray would look for it at the machine's own
    address, whatever it is told, and not find it."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit():
        return False
    from ray.util import get_node_ip_address

    try:
        socket.create_connection((get_node_ip_address(), int(port)), timeout=2).close()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started or joined in this block listens on loopback alone, with all its processes.

    By default the GCS, the raylet, the agents and every worker listen on all interfaces; `_node_ip_address` does not help, as
    Ray resolves 127.0.0.1 back to the machine's own address. This is Ray's own switch for "this machine only".
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # the variable is read when ray is imported, which is over
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if sys.platform == "linux":  # gloo listens on what the host's name resolves to, NCCL on the first card
        alone |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    with _environment(alone):  # Ray's processes have it; whatever else this one starts may be a cluster
        yield


@contextlib.contextmanager
def among_themselves() -> Iterator[None]:
    """Ray Train's actors that are started in this block ask their own cluster for each other.

    The one that frees a run's resources when its controller has died would look for a cluster where the last `ray start` of
    the machine left an address. Where that cluster has ended, every attempt ends ten seconds late, waiting for it; where it
    lives, the controller is not in it, and the one that was to watch over it leaves.
    """
    from ray._private import ray_constants
    from ray.experimental.internal_kv import _internal_kv_get
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    name = ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE
    found = _internal_kv_get(ray_constants.DASHBOARD_ADDRESS, namespace=ray_constants.KV_NAMESPACE_DASHBOARD)
    if not found:  # a cluster without a dashboard
        yield
        return
    ENV_VARS_TO_PROPAGATE.add(name)
    with _environment({name: f"http://{found.decode()}"}):
        yield


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """The variables, while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def capacity() -> dict[str, float]:
    """The resources of the connected cluster, and those that its autoscaler may add: at the start it may have no node but its
    head. Raises ValueError for a MAX_RESOURCES that is no such mapping."""
    import ray

    there, promised = ray.cluster_resources(), _promised()
    return {name: max(there.get(name, 0.0), promised.get(name, 0.0)) for name in there | promised}


def _promised() -> dict[str, float]:
    """Ray does not say what an autoscaler may add. On the head of `ray up` its configuration does; elsewhere (KubeRay) the
    environment has to."""
    if told := os.environ.get(MAX_RESOURCES):
        try:
            return {str(name): float(amount) for name, amount in json.loads(told).items()}
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f'{MAX_RESOURCES}={told}: must be like {{"CPU": 96, "GPU": 8}}') from None
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        return {}
    try:
        return most_of(yaml.safe_load((Path.home() / "ray_bootstrap_config.yaml").read_text()))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def most_of(config: dict[str, Any]) -> dict[str, float]:
    """The most of each resource that a cluster of `ray up` can have: of each node type up to its own `max_workers`, of all
    together up to the cluster's."""
    whole = config.get("max_workers", 2)
    types = [
        (kind["resources"], kind.get("max_workers", whole))
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]
    found = {}
    for resource in {name for resources, _ in types for name in resources}:
        left, total = whole, 0.0
        for amount, count in sorted(((r.get(resource, 0), n) for r, n in types), reverse=True):
            total += amount * min(count, left)
            left -= min(count, left)
        found[resource] = total
    return found


@dataclass(frozen=True)
class Share:
    """What one pretraining takes: `workers`, each with `cpus` and `gpus`, and a reader of `reader_cpus` per worker.

    `workers` = 0: it runs in the calling process, which then holds `cpus` and `gpus` itself.
    """

    workers: int
    cpus: float
    gpus: int
    reader_cpus: float
    threads: int

    @property
    def all_cpus(self) -> float:
        return max(self.workers, 1) * (self.cpus + self.reader_cpus)

    @property
    def demand(self) -> dict[str, float]:
        """What Ray reserves for a worker."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def __str__(self) -> str:
        return f"{self.workers} {'GPU' if self.gpus else 'CPU'} worker(s)" if self.workers else "a process"


def share_of(config: RunConfig, cpus: float, gpus: float) -> Share:
    """The share of a pretraining on a cluster with so many CPUs and GPUs.

    On up to four CPUs the workers and their readers take fractions, or nothing would fit beside anything. Raises
    ValueError when what was asked for can never fit.
    """
    scaling = config.scaling
    use_gpu = gpus > 0 if scaling.use_gpu is None else scaling.use_gpu
    if use_gpu and gpus < 1:
        raise ValueError("scaling.use_gpu=true: this cluster has no GPU; leave it out, or set it to false")
    workers = scaling.num_workers
    if workers is None:
        workers = int(gpus) if use_gpu else min(2, max(1, int(cpus)))
    if use_gpu and workers > gpus:
        raise ValueError(f"scaling.num_workers={workers}: the cluster has {gpus:g} GPUs; ask for at most {gpus:g}")
    small, processes = cpus <= 4, max(workers, 1)
    wanted = scaling.cpus_per_worker or (0.5 if small and workers else 1.0)
    reader = 0.0 if config.data.reader.kind == "direct" else (0.25 if small else 1.0)  # direct: a thread of the worker
    if processes * (wanted + reader) > cpus + 1e-9:
        most = int(cpus // (wanted + reader))
        raise ValueError(
            f"scaling.num_workers={workers}: {processes} workers with {wanted:g} CPU and a reader of {reader:g} CPU each "
            f"need {processes * (wanted + reader):g} CPUs; the cluster has {cpus:g}, enough for {most}"
        )
    threads = scaling.threads or (1 if use_gpu else max(1, int(cpus // processes)))
    return Share(workers, wanted, int(use_gpu), reader, threads)


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """`work(stop)` in a thread beside the block, whose end sets `stop` and waits for it."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def following(path: Path) -> contextlib.AbstractContextManager[None]:
    """Print the lines that workers append to `path` while the block runs."""
    start = path.stat().st_size if path.exists() else 0

    def follow(stop: threading.Event) -> None:
        position = start
        while True:
            last = stop.is_set()
            if path.exists():
                with path.open() as file:
                    file.seek(position)
                    text = file.read()
                    position = file.tell()
                if text:
                    print(text, end="", flush=True)
            if last:
                return
            stop.wait(0.3)

    return beside(follow)


def unique_name(stem: str) -> str:
    """A name for one attempt at a run. Resume is ours (checkpoints under --out); Ray's own bookkeeping, which a full disk
    can leave torn, is never read back."""
    return f"{stem}-{int(time.time() * 1000):x}"


def writable(path: str | Path) -> Path:
    """`path` as an absolute folder that can be written. Raises ValueError."""
    out = Path(path).absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {path}: cannot be written ({error.strerror}); choose another folder") from None
    return out
