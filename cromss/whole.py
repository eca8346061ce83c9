"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; at the end of the block it takes the place of `path`, or vanishes where the block
    failed. Raises OSError where the disk does."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())  # the name must not reach the disk before the content
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
