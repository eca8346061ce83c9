"""Where the workers of one training meet: a store of key and value that listens on one address, not on all.

Ray Train's own lets torch listen on every interface of the machine, with nothing that asks who is calling, on a port that
was free a moment ago. Ours binds the address that the other workers are told (127.0.0.1 on one machine, the node's own in a
cluster) and hands torch the bound socket.
"""

import datetime
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_LISTENING: list[socket.socket] = []  # rank 0's, between the two calls below


@dataclass
class Rendezvous(TorchConfig):
    """Ray's TorchConfig with the store above; `TorchTrainer(..., torch_config=Rendezvous())`."""

    @property
    def backend_cls(self) -> type:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Rendezvous) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        backend = backend_config.backend or ("nccl" if gpus else "gloo")
        host, port = worker_group.execute_single(0, _listen)
        worker_group.execute(_set_torch_distributed_env_vars)
        world, limit = len(worker_group), backend_config.timeout_s
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend, rank, world, host, port, limit)
                for rank in range(world)
            ]
        )


def _listen() -> tuple[str, int]:
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    _LISTENING[:] = [socket.create_server((host, 0), family=family, backlog=128)]
    return host, _LISTENING[0].getsockname()[1]


def _join(backend: str, rank: int, world: int, host: str, port: int, seconds: int) -> None:
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    limit = datetime.timedelta(seconds=seconds)
    socket_of_rank_0 = _LISTENING.pop().detach() if rank == 0 else None  # torch closes it
    store = dist.TCPStore(
        host, port, world, is_master=rank == 0, timeout=limit, wait_for_workers=False, master_listen_fd=socket_of_rank_0
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
