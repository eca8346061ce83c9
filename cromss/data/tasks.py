"""Functions that yield tables, run as Ray Data tasks."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

Task = Callable[[], Iterator[pa.Table]]

# Ray Data gathers a task's tables up to so many bytes before it hands them on. Its own 128 MiB are seven row groups, seconds
# where GeoTIFFs are decoded; measured: 32 MiB stream as fast, 16 MiB a fifth slower.
BLOCK_BYTES = 32 * 2**20


def run_tasks(
    tasks: Sequence[Task],
    *,
    at_a_time: int,
    cpus: float = 1.0,
    in_order: bool = False,
    object_store_share: float = 0.5,
) -> Iterator[pa.Table]:
    """The tables of all tasks: in the order of the tasks, or as they finish. What a task refuses (ValueError) is raised
    here."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the progress of an execution that never ends
    # Not ray.data.range().map_batches(): Ray does not fuse the two, and range's own tasks ask for a whole CPU each,
    # which a cluster full of training workers never has.
    dataset = ray.data.read_datasource(
        _datasource(tasks),
        num_cpus=cpus,
        compute=ray.data.TaskPoolStrategy(size=at_a_time),
        override_num_blocks=len(tasks),
    )
    options = dataset.context.execution_options
    options.preserve_order = in_order
    store_bytes = ray.cluster_resources().get("object_store_memory", 0)
    options.resource_limits = options.resource_limits.copy(
        cpu=at_a_time * cpus, object_store_memory=store_bytes * object_store_share
    )
    dataset.context.enable_progress_bars = False
    dataset.context.target_max_block_size = BLOCK_BYTES
    with own_words():
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


@contextlib.contextmanager
def own_words() -> Iterator[None]:
    """A mistake that a remote task refused (ValueError, FloatingPointError), raised here without Ray's traceback and advice
    on retries."""
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        for kind in (ValueError, FloatingPointError):
            if isinstance(error.cause, kind):
                raise kind(str(error.cause).splitlines()[0]) from None
        raise


def _datasource(tasks: Sequence[Task]) -> Any:
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Tables(Datasource):
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(task, unknown) for task in tasks]

    return Tables()
