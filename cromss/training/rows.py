"""Which patches every step saw, handed to the system before the step is taken, so that kill -9 loses no line: the proof
that no row is lost or repeated.

<out>/rows/<attempt>-<rank>.jsonl, a line a step: {"step", "rank", "world", "ids"}
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from cromss.data.patch import Batch


def journalled(
    batches: Iterable[Batch], folder: Path, rank: int, world: int, first_step: int, attempt: str
) -> Iterator[Batch]:
    """The same batches, each written down before it is handed on. `attempt` is the same on all ranks of a start."""
    folder.mkdir(parents=True, exist_ok=True)
    source = iter(batches)
    try:
        with (folder / f"{attempt}-{rank:03d}.jsonl").open("x", buffering=1) as file:
            for step, batch in enumerate(source, first_step):
                file.write(json.dumps({"step": step, "rank": rank, "world": world, "ids": batch.ids}) + "\n")
                yield batch
    finally:
        if hasattr(source, "close"):
            source.close()


def read_rows(folder: Path) -> dict[int, list[list[str]]]:
    """step -> the rows of that global step, once for every attempt that took it whole, in the order of the ranks.

    Steps after the last checkpoint of a killed attempt are taken again by the next one. A line that a killed process left
    half written, and a step that not all ranks of an attempt reached, are left out.
    """
    steps: dict[int, dict[str, dict[int, dict]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            steps.setdefault(found["step"], {}).setdefault(path.stem.split("-")[0], {})[found["rank"]] = found
    return {
        step: [
            [patch for rank in sorted(ranks) for patch in ranks[rank]["ids"]]
            for ranks in attempts.values()
            if len(ranks) == next(iter(ranks.values()))["world"]
        ]
        for step, attempts in sorted(steps.items())
    }
