"""The nodes of Ray on this machine, drained: `python -m cromss.spot.node`, which the watcher runs as a child.

A process of its own, because a client of the GCS cannot be hurried: it waits 40 s for one that is away, and nothing but the
end of the process stops it. It does what `ray drain-node` does (GcsClient.drain_node), with a time limit for the call, for
every node here, and without starting a worker.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

_CALL = 5  # seconds for one question to the GCS


class Raylet(NamedTuple):
    """A node of Ray on this machine, and the address of its GCS."""

    node: str
    gcs: str


def raylets(processes: Sequence[Sequence[str]] | None = None) -> list[Raylet]:
    """The raylets that run here, by the command lines of all processes: the only thing a machine knows of its own nodes
    without asking anybody."""
    found = []
    for words in _command_lines() if processes is None else processes:
        if not words or os.path.basename(words[0]) != "raylet":
            continue
        flags = dict(word.split("=", 1) for word in words[1:] if word.startswith("--") and "=" in word)
        if flags.get("--node_id") and flags.get("--gcs-address"):
            found.append(Raylet(flags["--node_id"], flags["--gcs-address"]))
    return sorted(found)


def drain(
    message: str, until: float | None, *, address: str | None = None, node: str | None = None, seconds: float = 20
) -> list[str]:
    """Announce the end of this machine's nodes to their clusters; the nodes that are draining now.

    Without `node`, all of this machine's; without `address`, wherever they belong. Raises ValueError with the reason.
    """
    return _child(["--message", message, *(["--until", repr(until)] if until else [])], address, node, seconds)


def look(*, address: str | None = None, node: str | None = None, seconds: float = 45) -> list[str]:
    """The nodes that `drain` would drain, after a question to their GCS that shows that it would be heard."""
    return _child(["--look"], address, node, seconds)


def _child(words: list[str], address: str | None, node: str | None, seconds: float) -> list[str]:
    for name, value in (("--address", address), ("--node-id", node)):
        words = words + ([name, value] if value else [])
    command = [sys.executable, "-m", "cromss.spot.node", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        raise ValueError(f"Ray's GCS did not answer within {seconds:.0f} s") from None
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise ValueError(f"the child ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    said = json.loads(lines[-1])
    if "error" in said:
        raise ValueError(said["error"])
    return said["nodes"]


# --- in the child -------------------------------------------------------------------------------------------------------


def _command_lines() -> list[list[str]]:
    import psutil

    return [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]


def _places(address: str | None, node: str | None) -> dict[str, list[str]]:
    """GCS address -> nodes of this machine. Raises ValueError where there is none."""
    here: dict[str, list[str]] = defaultdict(list)
    for raylet in raylets():
        if (node in (None, raylet.node)) and address in (None, raylet.gcs):
            here[raylet.gcs].append(raylet.node)
    if here:
        return here
    if not address:
        raise ValueError("no raylet runs here; name the cluster with --address HOST:PORT")
    # In a container beside the raylet's own (a sidecar) its process is out of sight, but the addresses are the same.
    nodes = _client(address).get_all_node_info(timeout=_CALL)
    alive = {info.node_id.hex(): info.node_manager_address for info in nodes.values() if info.state == 0}
    own = [node] if node in alive else [one for one, ip in alive.items() if not node and ip in _addresses()]
    if not own:
        raise ValueError(f"no node of the cluster at {address} is this machine")
    return {address: own}


def _addresses() -> set[str]:
    import psutil

    return {one.address.partition("%")[0] for card in psutil.net_if_addrs().values() for one in card}


def _client(address: str) -> Any:
    from ray._raylet import GcsClient

    return GcsClient(address=address)


def _announce(gcs: str, nodes: list[str], message: str, until: float | None) -> None:
    from ray.core.generated import autoscaler_pb2

    client = _client(gcs)
    reason = autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION
    for node in nodes:
        accepted, why = client.drain_node(node, reason, message, int((until or 0) * 1000), timeout=_CALL)
        if not accepted:
            raise ValueError(f"node {node[:12]}: refused, {why}")


def main(argv: list[str] | None = None) -> int:
    """The child: one line of JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m cromss.spot.node")
    parser.add_argument("--message", default="")
    parser.add_argument("--until", type=float)
    parser.add_argument("--address")
    parser.add_argument("--node-id")
    parser.add_argument("--look", action="store_true", help="drain nothing")
    args = parser.parse_args(argv)
    try:
        places = _places(args.address, args.node_id)
        for gcs, nodes in places.items():
            if args.look:
                _client(gcs).get_all_node_info(timeout=_CALL)
            else:
                _announce(gcs, nodes, args.message, args.until)
        print(json.dumps({"nodes": [node for nodes in places.values() for node in nodes]}))
    except Exception as error:  # a RpcError of Ray's, which is none of Python's; all of it is for one line of a log
        print(json.dumps({"error": str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
