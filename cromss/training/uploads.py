"""Batches on their way to the device: from pinned memory, on a stream of their own, while the step before is computed."""

from collections.abc import Iterable, Iterator

import torch

from cromss.data.patch import Batch


def uploaded(batches: Iterable[Batch], device: torch.device, double_buffer: bool = True) -> Iterator[Batch]:
    """The batches on `device`, in their order.

    A step only enqueues its kernels, so the next batch is asked for while the GPU still works: its copy then runs beside
    them. On a CPU there is nothing to carry.
    """
    if device.type != "cuda" or not double_buffer:
        for batch in batches:
            yield batch.to(device)
        return
    stream = torch.cuda.Stream(device)
    for batch in batches:
        pinned = batch.apply(torch.Tensor.pin_memory)
        with torch.cuda.stream(stream):
            there = pinned.to(device)
        torch.cuda.current_stream(device).wait_stream(stream)
        # The allocator must not hand this memory to the next upload while a kernel of this step still reads it.
        there.apply(lambda tensor: (tensor.record_stream(torch.cuda.current_stream(device)), tensor)[1])
        yield there
