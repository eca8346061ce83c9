"""An independent map of the same tiles: another store, found by the patches' names and held against their ground."""

from collections import OrderedDict
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from cromss.auditing.tally import Verdict
from cromss.auditing.walk import Seen
from cromss.data.manifest import checksum_column
from cromss.data.store import PatchStore
from cromss.landcover import IGNORE, Scheme, class_map

_OPEN = 8  # row groups kept in memory
_NAMES = ["patch_id", "location_id", "tile", "crs", "transform"]


class Reference:
    """The labels of another store, for the patches of this one. It holds 40 bytes a patch of the reference in memory."""

    def __init__(self, store: PatchStore, audited: PatchStore) -> None:
        if store.size != audited.size:
            raise ValueError(
                f"--reference {store.path}: patches of {_said(store.size)} pixels, those of {audited.path} have "
                f"{_said(audited.size)}: ingest both with the same --tile"
            )
        self.store = store
        self.given, self.own, self.scheme = common(audited.scheme, store.scheme)
        self.compared = self.absent = self.elsewhere = 0
        self._open: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._keys, self._where = self._index()

    def of(self, seen: Seen) -> Verdict:
        """What it says of a row group; unknown where it has no such patch, or has it on other ground."""
        found = np.full(seen.label.shape, IGNORE, np.uint8)
        for place, row in enumerate(seen.rows):
            if (label := self._label(row)) is not None:
                found[place] = self.own[label]
        return Verdict(found, self.given)

    def require_some(self) -> None:
        """Raises ValueError where no patch could be compared."""
        if not self.compared:
            named = f"{self.elsewhere:,} have the same name but lie elsewhere"
            why = named if self.elsewhere else "no patch or place has the same name"
            raise ValueError(f"--reference {self.store.path}: holds none of the audited patches ({why})")

    def _label(self, row: dict[str, Any]) -> np.ndarray | None:
        where = self._find(row["patch_id"])
        if where is None:
            where = self._find(_place(row))
        if where is None:
            self.absent += 1
            return None
        shard, group, index = where
        table = self._table(shard, group)
        theirs = table.slice(index, 1).to_pylist()[0]
        if theirs["patch_id"] != row["patch_id"] and _place(theirs) != _place(row):
            self.absent += 1  # another name of the same digest
            return None
        if theirs["crs"] != row["crs"] or not np.allclose(theirs["transform"], row["transform"], rtol=0, atol=1e-6):
            self.elsewhere += 1
            return None
        self.compared += 1
        self.store.check_cell(theirs["label"], theirs["patch_id"], theirs[checksum_column("label")], shard, "label")
        return np.frombuffer(theirs["label"], np.uint8).reshape(self.store.size)

    def _table(self, shard: int, group: int) -> pa.Table:
        if (shard, group) not in self._open:
            self._open[shard, group] = self.store.read(shard, group, [*_NAMES, "label", checksum_column("label")])
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end((shard, group))
        return self._open[shard, group]

    def _find(self, name: str) -> tuple[int, int, int] | None:
        at = int(np.searchsorted(self._keys, _digest(name)))
        if at == len(self._keys) or self._keys[at] != _digest(name):
            return None
        return tuple(self._where[at].tolist())

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        keys: list[np.ndarray] = []
        where: list[np.ndarray] = []
        blocks = self.store.blocks
        for block in range(len(blocks)):
            for slot in range(int(blocks.n[block])):
                shard, group = int(blocks.shard[block]), int(blocks.first[block]) + slot
                rows = self.store.read(shard, group, ["patch_id", "location_id", "tile"]).to_pylist()
                names = [(row["patch_id"], index) for index, row in enumerate(rows)]
                if blocks.n[block] == 1:  # the one map there is of a place serves all its seasons
                    names += [(_place(row), index) for index, row in enumerate(rows)]
                keys.append(np.array([_digest(name) for name, _ in names], np.uint64))
                where.append(np.array([(shard, group, index) for _, index in names], np.int32))
        order = np.argsort(joined := np.concatenate(keys), kind="stable")
        return joined[order], np.concatenate(where)[order]


def common(given: Scheme, reference: Scheme) -> tuple[np.ndarray, np.ndarray, Scheme]:
    """Tables (256,) that bring the given and the reference's classes into one scheme, and that scheme: the reference's, or
    the given one where only that way is known. IGNORE where a class has no counterpart. Raises ValueError."""
    for one, other in ((given, reference), (reference, given)):
        try:
            found = class_map(one, other)
        except ValueError:
            continue
        table = np.full(256, IGNORE, np.uint8)
        for number, parts in enumerate(found.sources):
            table[list(parts)] = number
        same = np.full(256, IGNORE, np.uint8)
        same[: len(other)] = np.arange(len(other))
        return (table, same, other) if one is given else (same, table, other)
    raise ValueError(
        f"--reference: nobody has said how {given.name} and {reference.name} are read in each other (cromss/landcover.py)"
    )


def _place(row: dict[str, Any]) -> str:
    return f"place\0{row['location_id']}\0{row['tile']}"


def _digest(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))


def _said(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
