"""A cloud for tests: what the autoscaler launches is a node process on this host, and what it terminates ends.

Ray's own `fake_multinode` provider cannot be named in a cluster file (its wheel lacks a file that this needs), but its class
can be behind an `external` one.
"""

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider


class LocalProvider(FakeMultiNodeProvider):
    """Ray's node provider of a single machine, under a name that `provider.module` can say."""


LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
)  # fmt: skip

# What the head's `ray start` needs in its environment.
HEAD = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


def cluster(address: str, workers: int, resources: dict[str, int], idle_seconds: float) -> dict[str, Any]:
    """The cluster file of a head without CPUs at `address` (host:port) and 0 to `workers` nodes with these resources."""
    return {
        "cluster_name": "local",
        "max_workers": workers,
        "idle_timeout_minutes": idle_seconds / 60,
        "provider": {
            "type": "external",
            "module": f"{__name__}.LocalProvider",
            "disable_node_updaters": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
        },
        "head_node_type": "ray.head.default",
        # read by the autoscaler, though nothing is set up
        **{name: [] for name in LISTS},
        "file_mounts": {},
        "auth": {},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": workers},
        },
    }
