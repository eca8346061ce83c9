"""Fixtures that several rooms share."""

import functools
import os
from pathlib import Path

# Before torch: the networks here are so small that a second thread only waits for the first, at twice the CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import jaxtyping
import pytest

# Annotations of the objective are enforced, shapes included: before anything imports it.
jaxtyping.install_import_hook("cromss.objective", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
hypothesis.settings.register_profile("shared machine", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("shared machine")

from s3 import bucket, s3  # noqa: F401

from cromss.ray_session import QUIET, on_loopback
from cromss.torchvision_cpu import make_importable

for name, value in QUIET.items():
    os.environ.setdefault(name, value)
os.environ["RAY_AUTH_MODE"] = "disabled"
# By default Ray's workers give way to everybody, and tests have limits.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
make_importable()

SHARED = Path(__file__).parents[1].parent / "shared"


RAY_OF_THEIR_OWN = (
    "test_demo.py",
    "test_gpu_groups.py",
    "test_job.py",
    "test_provenance.py",
    "test_spot_watch.py",
    "test_table1.py",
)
RAY_FOLDERS = ("cluster", "faults", "security")


@functools.cache
def on_ray(file: Path) -> bool:
    return file.name in RAY_OF_THEIR_OWN or file.parent.name in RAY_FOLDERS or "ray_session" in file.read_text()


def pytest_collection_modifyitems(config, items):
    """Experiments that take minutes run where they are asked for. Under `pytest -n 2` what needs Ray comes first: it is the
    side that takes longer."""
    if not os.environ.get("CROMSS_FAULTS"):
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; CROMSS_FAULTS=1 or `make faults` runs it"))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not on_ray(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Who works beside whom under `pytest -n 2`: all that needs Ray in one process, because on two cores a second Ray starves
    the first; every other file whole, for its fixtures' sake. (xdist's own groups ride on a node id that pytest 9.2 has
    closed.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Sides(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "ray" if on_ray(config.rootpath / file) else file

    return Sides(config, log)


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray of two CPUs for the whole test run; with its dashboard, or stopped trials would keep their CPUs."""
    import ray

    with on_loopback():
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=300_000_000,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            logging_level="warning",
            log_to_driver=False,
        )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """(pretraining store, downstream store) of a tiny synthetic Earth."""
    from cromss.data.synthetic import SyntheticEarth
    from cromss.trials.worlds import synthetic_stores

    return synthetic_stores(tmp_path_factory.mktemp("worlds"), SyntheticEarth(places=28, size=32, train=16, test=8))


@pytest.fixture(scope="session")
def shared():
    """The folder of real samples and golden numbers, where it is at hand."""
    if not SHARED.exists():
        pytest.skip("the folder of real samples and golden numbers is not beside this checkout")
    return SHARED
