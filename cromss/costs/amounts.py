"""How many steps, places, probes and downstream runs a configuration asks for, given its stores. Reads no pixel."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from cromss.config import RunConfig
from cromss.data.assembly import Wanted
from cromss.data.augment import AugmentConfig
from cromss.data.plan import select
from cromss.data.store import PatchStore
from cromss.training.pretraining import inputs_for, make_plan


@dataclass(frozen=True)
class TransferAmounts:
    """One downstream run: trainings it consists of, their steps and places drawn, places scored, views a place has."""

    trainings: int
    steps: int
    drawn: int
    scored: int


@dataclass(frozen=True)
class Amounts:
    """What has to be done. Without a pretraining, everything about one is 0.

    places        of an epoch;  place_bytes   read for one of them, as stored
    store_bytes   of all seasons of the places that train
    """

    epochs: int = 0
    places: int = 0
    steps: int = 0
    validated: int = 0
    probes: int = 0
    checkpoints: int = 0
    place_bytes: float = 0.0
    store_bytes: float = 0.0
    transfers: dict[tuple[str, str], TransferAmounts] = field(default_factory=dict)
    repeats: int = 0

    @property
    def downstream_runs(self) -> int:
        return len(self.transfers) * self.repeats

    @property
    def epoch_bytes(self) -> float:
        """Read from the store for an epoch."""
        return self.places * self.place_bytes


def amounts(config: RunConfig, store: PatchStore, downstream: PatchStore | None) -> Amounts:
    """What a run of `config` has to do. Raises ValueError where the stores cannot feed it."""
    judged = _judged(config, downstream) if downstream else {}
    if not config.pretraining.trains:
        return Amounts(transfers=judged, repeats=config.transfer.repeats if judged else 0)
    inputs = inputs_for(config, store)
    plan, held = make_plan(config, store)
    probed = downstream is not None and len(downstream.folds("train")) > 1
    read, whole = _stored_bytes(config, store, dict(inputs.bands))
    seasons = int(store.blocks.n[select(store.blocks, "train", exclude_folds=held)].mean().round())
    return Amounts(
        epochs=plan.epochs,
        places=plan.rows,
        steps=plan.steps,
        validated=int(store.blocks.rows[select(store.blocks, "train", folds=held)].sum()),
        probes=-(-plan.epochs // config.probe.every) if probed else 0,
        checkpoints=-(-plan.epochs // config.scaling.checkpoint_epochs),
        place_bytes=read,
        store_bytes=whole * plan.rows * seasons,
        transfers=judged,
        repeats=config.transfer.repeats if judged else 0,
    )


def _judged(config: RunConfig, store: PatchStore) -> dict[tuple[str, str], TransferAmounts]:
    turns = [("train", "test")] + ([("test", "train")] if config.transfer.protocol.kind == "two_fold" else [])
    steps = drawn = scored = 0
    for learn, test in turns:
        places = store.places(learn)
        batch = min(config.transfer.batch_size, places)
        steps += config.transfer.epochs * places // batch
        drawn += config.transfer.epochs * places
        scored += store.places(test)
    one = TransferAmounts(len(turns), steps, drawn, scored)
    return {(modality, mode): one for modality in config.judged_modalities for mode in config.transfer.trained_modes}


def expected_views(augment: AugmentConfig, epochs: int) -> float:
    """How many different views (flips, quarter turns) of a patch turn up in so many epochs, on average."""
    flips = {(rows, columns): (augment.flip if rows else 1 - augment.flip) * (augment.flip if columns else 1 - augment.flip)
             for rows in (0, 1) for columns in (0, 1)}  # fmt: skip
    turns = {0: 1 - augment.rotate, 1: augment.rotate / 3, 2: augment.rotate / 3, 3: augment.rotate / 3}
    views: dict[tuple[int, int], float] = {}
    for (rows, columns), p in flips.items():
        for turn, q in turns.items():  # both flips are half a turn: eight views in all
            view = (rows ^ columns, (turn + 2 * columns) % 4)
            views[view] = views.get(view, 0.0) + p * q
    return sum(1 - (1 - p) ** epochs for p in views.values())


def _stored_bytes(config: RunConfig, store: PatchStore, bands: dict[str, Any]) -> tuple[float, float]:
    """(bytes read for a place in an epoch, bytes of a place-season of the store), as stored.

    From the footer of the first shard; of a live store, whose files are decoded while they are read, from its manifest.
    """
    patches = max(1, sum(store.manifest.patches.values()))
    if store.manifest.kind == "live":
        size = sum(shard.bytes for shard in store.manifest.shards) / patches or pixel_bytes(store)
        return size, size
    smoothed = config.objective.smoothing.kind != "none"
    columns = set(Wanted.of(store, bands, store.has_clean, smoothed).columns)
    with store.folder.open(store.manifest.shards[0].path) as file:
        footer = pq.read_metadata(file)
    sizes: dict[str, float] = {}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema
            sizes[name] = sizes.get(name, 0) + column.total_compressed_size / footer.num_rows
    read = sum(size for name, size in sizes.items() if name in columns)
    others = (store.slots - 1) * sizes.get("label", 0) if smoothed else 0
    return read + others, read


def pixel_bytes(store: PatchStore) -> float:
    """Bytes of a place-season, decoded: what is known where nothing else is."""
    from cromss.data.manifest import pixel_dtype

    height, width = store.size
    samples = sum(len(bands) * pixel_dtype(name, store.encoding).itemsize for name, bands in store.bands.items())
    return height * width * (samples + 1)
