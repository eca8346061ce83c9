"""Ports for servers of a test's own."""

import socket
from collections.abc import Sequence


def free_ports(count: int) -> list[int]:
    """So many ports of loopback that nobody listened on a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def of_a_head(ports: Sequence[int]) -> list[str]:
    """Options of `ray start --head` that give it these six, the first for the GCS and the second for the dashboard."""
    names = ("port", "dashboard-port", "ray-client-server-port")
    return [*(f"--{name}={port}" for name, port in zip(names, ports[:3], strict=True)), *of_an_agent(ports[3:])]


def of_an_agent(ports: Sequence[int]) -> list[str]:
    """Options of `ray start` for a node's agent: beside another Ray on this machine its default ports are taken, and a head
    without them accepts no job."""
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    return [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
