"""What a cluster has, and what its autoscaler may add."""

import os
import socket

import pytest
import yaml

from cromss.ray_session import among_themselves, capacity, most_of, only_on_loopback

CLUSTER = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}},
        "spot": {"resources": {"CPU": 96, "GPU": 8}, "max_workers": 2},
        "on_demand": {"resources": {"CPU": 48, "GPU": 4}, "max_workers": 2},
    },
}


@pytest.fixture
def bare(ray_session, monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "memory": 7.0})


def test_the_most_of_a_cluster_takes_the_largest_nodes_up_to_both_limits():
    """Two of 8 GPUs and, the third of three, one of 4; the head's are not counted."""
    assert most_of(CLUSTER) == {"CPU": 2 * 96 + 48, "GPU": 2 * 8 + 4}


def test_a_node_type_without_a_limit_has_that_of_the_cluster():
    only = {"head": {"resources": {}}, "worker": {"resources": {"GPU": 4}}}
    assert most_of(CLUSTER | {"available_node_types": only}) == {"GPU": 12}


def test_capacity_is_what_is_there_or_what_the_environment_promises(bare, monkeypatch):
    assert capacity() == {"CPU": 2.0, "memory": 7.0}
    monkeypatch.setenv("CROMSS_MAX_RESOURCES", '{"CPU": 1, "GPU": 8}')
    assert capacity() == {"CPU": 2.0, "memory": 7.0, "GPU": 8.0}


def test_on_the_head_of_ray_up_its_configuration_promises(bare, monkeypatch, tmp_path):
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(CLUSTER))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert capacity()["CPU"] == 2  # a Ray of this machine alone has no autoscaler
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert (capacity()["CPU"], capacity()["GPU"]) == (240, 20)


@pytest.mark.parametrize("told", ["[8]", "8", '{"GPU": "many"}', "{"])
def test_a_promise_that_is_no_mapping_is_refused_with_an_example(bare, monkeypatch, told):
    monkeypatch.setenv("CROMSS_MAX_RESOURCES", told)
    with pytest.raises(ValueError, match=r'CROMSS_MAX_RESOURCES=.*must be like {"CPU": 96, "GPU": 8}'):
        capacity()


@pytest.mark.parametrize(("bound", "own", "alone"), [("127.0.0.1", "127.0.0.2", True), ("0.0.0.0", "127.0.0.2", False)])
def test_a_cluster_that_answers_on_loopback_alone_is_joined_there(monkeypatch, bound, own, alone):
    """127.0.0.2 stands for the machine's own address."""
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: own)
    with socket.create_server((bound, 0)) as server:
        port = server.getsockname()[1]
        assert only_on_loopback(f"127.0.0.1:{port}") is alone
        assert not only_on_loopback(f"10.0.0.7:{port}")
        assert not only_on_loopback("auto")


def test_the_actors_of_a_training_ask_their_own_cluster_for_each_other(ray_session, monkeypatch):
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    class Curious:
        """Asks for itself as they do for their controller."""

        def lives(self, actor_id: str) -> bool:
            from ray.train.v2._internal.state.util import is_actor_alive

            return bool(is_actor_alive(actor_id, timeout=10))

    elsewhere = "http://127.0.0.1:9"  # where some other cluster is, or was
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", elsewhere)
    with among_themselves():
        variables = get_env_vars_to_propagate()
        actor = ray_session.remote(num_cpus=0)(Curious).options(runtime_env={"env_vars": variables}).remote()
        assert ray_session.get(actor.lives.remote(actor._actor_id.hex()), timeout=60)
    assert os.environ["RAY_API_SERVER_ADDRESS"] == elsewhere
    ray_session.kill(actor)
