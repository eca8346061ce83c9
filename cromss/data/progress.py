"""One line about how far a long walk over many things has come: rate and time left."""

import sys
import time
from collections.abc import Callable


class Progress:
    """`120/384 locations, 480 patches, 3 skipped, 35.2 locations/s, ETA 0:00:07`: twice a second on a terminal, every
    ten seconds in a log."""

    def __init__(self, total: int, write: Callable[[str], None] | None):
        self.total, self.write = total, write
        self.done = self.patches = self.skipped = self._before = 0
        self.start = self.last = time.monotonic()
        self.pause = 0.5 if sys.stderr.isatty() else 10.0

    def say(self, line: str) -> None:
        """A line of its own."""
        if self.write:
            self.write(line)

    def already(self, locations: int) -> None:
        """So many were done before: they count as done, not as fast."""
        self.done = self._before = locations

    def step(self, patches: int, locations: int = 1) -> None:
        """So many more."""
        self.done, self.patches = self.done + locations, self.patches + patches
        now = time.monotonic()
        if self.write is None or (now - self.last < self.pause and self.done < self.total):
            return
        self.last = now
        rate = (self.done - self._before) / max(now - self.start, 1e-9)
        self.write(
            f"{self.done:,}/{self.total:,} locations, {self.patches:,} patches, {self.skipped:,} skipped, "
            f"{rate:.1f} locations/s, ETA {clock((self.total - self.done) / max(rate, 1e-9))}"
        )


def clock(seconds: float) -> str:
    """h:mm:ss"""
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
