"""One line a tile, in the order of the store while they are written, the worst first in the end: 26 bytes of memory a tile."""

import array
import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cromss.whole import written_whole

COLUMNS = (
    "rank", "patch_id", "split", "pixels", "flagged", "share_flagged", "mean_confidence", "worst_pair", "pair_pixels",
    "location_id", "tile", "acquisition", "map",
)  # fmt: skip


class Tiles:
    """Collects tiles; `finish` ranks them: most flagged pixels first, of those that tie the least mean confidence; tiles
    without a judged label last."""

    def __init__(self, part: Path) -> None:
        self._part, self._size = part, 0
        self._file = open(part, "wb")  # noqa: SIM115
        self._flagged, self._confidence = array.array("l"), array.array("f")
        self._offset, self._group, self._row = array.array("q"), array.array("l"), array.array("h")

    def add(self, group: int, row: int, line: dict[str, Any]) -> None:
        """`line` has COLUMNS without the rank; mean_confidence None where no label is judged."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow([_said(line[name]) for name in COLUMNS[1:]])
        content = buffer.getvalue().encode()
        try:
            self._file.write(content)
        except OSError as error:
            raise ValueError(f"{self._part}: cannot be written ({error.strerror})") from None
        self._flagged.append(line["flagged"])
        self._confidence.append(2.0 if line["mean_confidence"] is None else line["mean_confidence"])
        self._offset.append(self._size)
        self._group.append(group)
        self._row.append(row)
        self._size += len(content)

    def ranked(self) -> np.ndarray:
        """Numbers of the tiles, the worst first."""
        return np.lexsort((np.arange(len(self)), np.asarray(self._confidence), -np.asarray(self._flagged)))

    def where(self, tile: int) -> tuple[int, int]:
        """(group, row) of a tile."""
        return self._group[tile], self._row[tile]

    def __len__(self) -> int:
        return len(self._offset)

    def finish(self, path: Path, first: int = 20) -> list[dict[str, str]]:
        """Write the table, whole or not at all; its first lines. Raises ValueError where there is no room."""
        worst = []
        try:
            self._file.close()
            with written_whole(path) as aside, open(self._part, "rb") as part, open(aside, "wb") as file:
                file.write((",".join(COLUMNS) + "\n").encode())
                for rank, line in enumerate(self._lines(part), start=1):
                    file.write(f"{rank},".encode() + line)
                    if rank <= first:
                        row = next(csv.reader([line.decode()]))
                        worst.append(dict(zip(COLUMNS, [str(rank), *row], strict=True)))
            self._part.unlink()
        except OSError as error:
            raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
        return worst

    def close(self) -> None:
        """Let go of what an audit that failed has begun."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)

    def _lines(self, part: Any) -> Iterator[bytes]:
        ends = np.append(np.asarray(self._offset)[1:], self._size)
        for tile in self.ranked():
            part.seek(self._offset[tile])
            yield part.read(int(ends[tile]) - self._offset[tile])


def _said(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str):  # an id with a line break would end the line
        return " ".join(value.split())
    return f"{value:.6g}" if isinstance(value, float) else value


def write_rows(rows: list[dict[str, Any]]) -> str:
    """A small table as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_said(value) for value in row.values()] for row in rows)
    return buffer.getvalue()
