"""A store row group by row group: what the network said of each is kept on disk, so that thresholds over the whole set need
one pass of the network and the memory of one row group."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cromss.auditing.network import Auditor
from cromss.auditing.scores import Looked, encoded, enhanced, joint
from cromss.auditing.settings import AuditConfig, write_bytes
from cromss.data.assembly import Assembler, Rows, Wanted, read_window
from cromss.data.patch import Batch
from cromss.data.plan import Window, every_row
from cromss.data.progress import clock
from cromss.data.store import PatchStore
from cromss.landcover import IGNORE
from cromss.objective.enhancement import Enhancement
from cromss.settings import suggest

Say = Callable[[str], None]
TOLD = ("patch_id", "location_id", "tile", "acquisition", "split", "crs", "transform")


@dataclass(frozen=True)
class Group:
    """A row group of a store: slot `slot` of block `block`, of which the first `rows` rows are audited."""

    block: int
    slot: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.block:07d}-{self.slot:03d}"


def groups(store: PatchStore, config: AuditConfig) -> list[Group]:
    """What is audited: the asked splits and seasons; with a limit, so many patches from row groups all over the store (the
    same ones every time). Raises ValueError for a split that the store has not."""
    for split in config.splits:
        if split not in store.splits:
            raise ValueError(
                f"--split {split}: {store.path} has {', '.join(store.splits)}{suggest(split, store.splits)}"
            )
    slot = 0 if config.seasons == "one" else None
    found = [
        Group(int(window.blocks[0]), int(window.slots[0]), len(window.order))
        for split in store.splits if not config.splits or split in config.splits
        for window in every_row(store.blocks, split=split, slot=slot)
    ]  # fmt: skip
    if config.limit is None:
        return found
    left, few = config.limit, []
    for index in np.random.default_rng(0).permutation(len(found)):
        if left <= 0:
            break
        few.append(replace(found[index], rows=min(left, found[index].rows)))
        left -= few[-1].rows
    return sorted(few, key=lambda group: (group.block, group.slot))


def read(store: PatchStore, group: Group, wanted: Wanted) -> Batch:
    """The pixels of a row group, compared with their checksums."""
    window = Window(0, 0, 0, np.array([group.block]), np.array([group.slot]), np.arange(store.blocks.rows[group.block]))
    rows = Rows(window, read_window(store, window, wanted.columns, False))
    return Assembler(store, wanted, 0).batch([(rows, row) for row in range(group.rows)])


def told(store: PatchStore, group: Group) -> list[dict[str, Any]]:
    """Who the rows are and where they lie."""
    shard, first = int(store.blocks.shard[group.block]), int(store.blocks.first[group.block])
    return store.read(shard, first + group.slot, list(TOLD)).slice(0, group.rows).to_pylist()


def ahead(items: Sequence[Any], read: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """(item, what a thread read for it, one ahead)."""
    with ThreadPoolExecutor(1, thread_name_prefix="cromss-audit") as pool:
        waiting = pool.submit(read, items[0]) if items else None
        for number, item in enumerate(items):
            found = waiting.result()
            if number + 1 < len(items):
                waiting = pool.submit(read, items[number + 1])
            yield item, found


# --- what was seen ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A row group after the network has looked: rows told, and arrays (R, H, W).

    label  given labels, IGNORE where there is none or no image data
    judged bool, where there is a label that the network has an answer for, and image data
    clean  true labels or None;  valid bool, image data
    confidence  F' by modality;  joint their mean;  code its 16-bit code;  the others as in `Looked`
    """

    rows: list[dict[str, Any]]
    label: np.ndarray
    judged: np.ndarray
    clean: np.ndarray | None
    valid: np.ndarray
    confidence: dict[str, np.ndarray]
    joint: np.ndarray
    code: np.ndarray
    entropy: np.ndarray
    disagreement: np.ndarray | None
    best: np.ndarray
    sure: np.ndarray


def look_at(auditor: Auditor, todo: Sequence[Group], folder: Path, batch_size: int, say: Say) -> None:
    """Have the network look at every row group that it has not seen yet; one file each in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    store = auditor.store
    wanted = Wanted.of(store, {name: auditor.model.bands(name) for name in auditor.modalities}, clean=store.has_clean)
    fresh = [group for group in todo if not (folder / f"{group.name}.parquet").exists()]
    rate = Rate("looked at", sum(group.rows for group in todo), say)
    rate.already(sum(group.rows for group in todo) - sum(group.rows for group in fresh))
    for group, (batch, rows) in ahead(fresh, lambda group: (read(store, group, wanted), told(store, group))):
        parts = [auditor.look(part(batch, first, batch_size)) for first in range(0, len(batch), batch_size)]
        _keep(folder / f"{group.name}.parquet", rows, batch, _joined(parts))
        rate.step(group.rows)


def seen(folder: Path, group: Group, auditor: Auditor, enhancement: Enhancement) -> Seen:
    """What was kept of a row group. Raises ValueError, naming the file, where it does not hold."""
    path, size = folder / f"{group.name}.parquet", auditor.store.size
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        maps = {
            name: np.stack([np.frombuffer(cell, np.uint16 if name.startswith("own_") else np.uint8).reshape(size)
                            for cell in table[name].to_pylist()])
            for name in table.column_names if name not in TOLD
        }  # fmt: skip
        rows = table.select(TOLD).to_pylist()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it, and the same command looks again") from None
    valid = maps["valid"].view(bool)
    label = np.where(valid, maps["label"], np.uint8(IGNORE))
    confidence = enhanced({name: maps[f"own_{name}"] for name in auditor.modalities}, enhancement)
    whole = joint(confidence)
    return Seen(
        rows=rows, label=label, judged=np.isin(label, auditor.answers), clean=maps.get("clean"), valid=valid,
        confidence=confidence, joint=whole, code=encoded(whole), entropy=maps["entropy"],
        disagreement=maps.get("disagreement"), best=maps["best"], sure=maps["sure"],
    )  # fmt: skip


def _keep(path: Path, rows: list[dict[str, Any]], batch: Batch, looked: Looked) -> None:
    valid = np.ones(batch.labels.shape, bool) if batch.valid is None else batch.valid.numpy()
    maps = {
        "label": batch.labels.numpy(), "valid": valid, "entropy": looked.entropy, "best": looked.best, "sure": looked.sure,
        **{f"own_{name}": codes for name, codes in looked.own.items()},
    }  # fmt: skip
    if batch.clean is not None:
        maps["clean"] = batch.clean.numpy()
    if looked.disagreement is not None:
        maps["disagreement"] = looked.disagreement
    cells = {name: pa.array([one.tobytes() for one in maps_], pa.large_binary()) for name, maps_ in maps.items()}
    table = pa.table({name: [row[name] for row in rows] for name in TOLD} | cells)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False,
                   write_page_checksum=True)  # fmt: skip
    write_bytes(path, buffer.getvalue())


def part(batch: Batch, first: int, count: int) -> Batch:
    """Some rows of a batch."""
    rows = slice(first, first + count)

    def maybe(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[rows]

    return Batch(
        images={name: image[rows] for name, image in batch.images.items()}, bands=batch.bands, labels=batch.labels[rows],
        ids=batch.ids[rows], epochs=batch.epochs[rows], keys=batch.keys[rows], clean=maybe(batch.clean),
        valid=maybe(batch.valid),
    )  # fmt: skip


def _joined(parts: list[Looked]) -> Looked:
    def join(name: str) -> np.ndarray | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    own = {name: np.concatenate([part.own[name] for part in parts]) for name in parts[0].own}
    return Looked(own, **{name: join(name) for name in ("entropy", "disagreement", "best", "sure")})


class Rate:
    """`looked at 120/384 patches, 35.2 patches/s, ETA 0:00:07`, every ten seconds and at the end."""

    def __init__(self, what: str, total: int, say: Say, pause: float = 10.0) -> None:
        self.what, self.total, self.say, self.pause = what, total, say, pause
        self.done = self._before = 0
        self.start = self._last = time.monotonic()

    def already(self, patches: int) -> None:
        """So many were done before: they count as done, not as fast."""
        self.done = self._before = patches
        if patches:
            self.say(f"{self.what} {patches:,} of {self.total:,} patches before")

    def step(self, patches: int) -> None:
        """So many more."""
        self.done += patches
        now = time.monotonic()
        if now - self._last < self.pause and self.done < self.total:
            return
        self._last = now
        rate = (self.done - self._before) / max(now - self.start, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        self.say(f"{self.what} {self.done:,}/{self.total:,} patches, {rate:.1f} patches/s, ETA {clock(left)}")
