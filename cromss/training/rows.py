"""Which patches every step saw, on disk before the step is taken: the proof that no row is lost or repeated.

<out>/rows/<rank>-<first step>-<process>.jsonl, a line a step: {"step", "rank", "world", "ids"}
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from cromss.data.patch import Batch


def journalled(batches: Iterable[Batch], folder: Path, rank: int, world: int, first_step: int) -> Iterator[Batch]:
    """The same batches, each written down before it is handed on."""
    folder.mkdir(parents=True, exist_ok=True)
    source = iter(batches)
    try:
        with (folder / f"{rank:03d}-{first_step:09d}-{os.getpid()}.jsonl").open("a", buffering=1) as file:
            for step, batch in enumerate(source, first_step):
                file.write(json.dumps({"step": step, "rank": rank, "world": world, "ids": batch.ids}) + "\n")
                yield batch
    finally:
        if hasattr(source, "close"):
            source.close()


def read_rows(folder: Path) -> dict[int, list[list[str]]]:
    """step -> the rows of that global step, once for every attempt that took it whole, in the order of the ranks.

    Steps after the last checkpoint of a killed attempt are taken again by the next one. A line that a killed process left
    half written, and a step that not all of its ranks reached, are left out.
    """
    attempts: dict[int, dict[tuple[int, int], dict[int, list[str]]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        first = int(path.stem.split("-")[1])
        for line in path.read_text().splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            ranks = attempts.setdefault(found["step"], {}).setdefault((first, found["world"]), {})
            ranks[found["rank"]] = found["ids"]
    return {
        step: [
            [patch for rank in sorted(ranks) for patch in ranks[rank]]
            for (_, world), ranks in sorted(tries.items())
            if len(ranks) == world
        ]
        for step, tries in sorted(attempts.items())
    }
