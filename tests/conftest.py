"""Fixtures that several rooms share."""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray of two CPUs for the whole test run."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=300_000_000,
        include_dashboard=False,
        logging_level="warning",
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()
