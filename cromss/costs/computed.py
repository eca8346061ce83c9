"""Rates of a device that is not at hand: its data sheet, and how much of it such work usually gets."""

from dataclasses import dataclass

import torch

from cromss.config import RunConfig
from cromss.costs import work
from cromss.costs.hardware import Hardware
from cromss.costs.rates import Cost, Rates, TransferRates
from cromss.costs.work import Work
from cromss.data.store import PatchStore
from cromss.training.pretraining import inputs_for

PAPER_PAIRS = 55.0  # S1+S2 pairs a second on one A100, as published
DECODED = {"shards": 2e9, "live": 8e7}  # bytes a second that one reader thread makes of Parquet cells, of GeoTIFFs
FEW = 8  # places of the pictures at the end


@dataclass(frozen=True)
class Efficiency:
    """What is assumed of a device: the shares of its peaks that are reached, and what starting a kernel takes.

    exchange   bytes a second at which the workers average their gradients
    """

    compute: float = 0.7
    memory: float = 0.6
    launch: float = 1e-5  # seconds
    exchange: float = 1e11

    def seconds(self, piece: Work, on: Hardware) -> Cost:
        """The roofline of a piece of work, or the start of its kernels where that takes longer."""
        roofline = piece.seconds(on, self.compute, self.memory)
        launches = self.launch * len(piece.operators)
        limit = "launches" if launches > roofline else piece.limit(on, self.compute, self.memory)
        return Cost(max(roofline, launches), "computed", limit)


PERFECT = Efficiency(1.0, 1.0, 0.0, float("inf"))
ON_CPU = Efficiency(0.5, 0.5, 1e-5, 1e9)


def computed(
    config: RunConfig,
    store: PatchStore,
    downstream: PatchStore | None,
    on: Hardware,
    *,
    workers: int = 1,
    together: int = 1,
    efficiency: Efficiency | None = None,
) -> Rates:
    """The rates of `config` on `on`, every one of them computed. Raises ValueError where the stores cannot feed it."""
    gpu = on.name != "cpu"
    assumed = efficiency or (Efficiency() if gpu else ON_CPU)
    pretrains = config.pretraining.trains
    bands = inputs_for(config, store).bands if pretrains else {}
    channels, size = {name: len(names) for name, names in bands.items()}, config.data.augment.crop or min(store.size)
    pairs = max(1, config.optim.batch_size // workers)
    once: Work | None = None
    step = place = probe = checkpoint = finish = Cost(0.0, "computed")
    half = torch.bfloat16 if gpu and config.optim.precision != "float32" else torch.float32
    judged = torch.bfloat16 if gpu else torch.float32
    if pretrains:
        once = work.training_step(config, channels, len(store.scheme), pairs, size, half)
        step = assumed.seconds(once, on)
        if workers > 1:
            swapped = 2 * 4 * once.parameters * (workers - 1) / workers / assumed.exchange
            step = Cost(max(step.seconds, swapped) if gpu else step.seconds + swapped, "computed", step.limit)
        place = assumed.seconds(work.validation_step(config, channels, len(store.scheme), 16, size, half), on).times(
            1 / 16
        )
        checkpoint = Cost(0.05 + 12 * once.parameters / 5e8, "computed", "storage")
        finish = place.times(FEW) + checkpoint
        if downstream is not None:
            probe = _probe(config, channels, min(downstream.size), assumed, on)
    return Rates(
        device=on.title,
        gpu=gpu,
        workers=workers,
        together=together,
        devices=workers,
        judges=workers if gpu else together,
        start=Cost(5.0, "computed"),
        first=Cost(120.0 if gpu and config.scaling.compile != "none" else step.seconds, "computed"),
        step=step,
        passes=Cost(0.05, "computed"),
        place=place,
        probe=probe,
        checkpoint=checkpoint,
        finish=finish,
        transfers=_transfers(config, store, downstream, assumed, on, judged) if downstream is not None else {},
        reader=_decoding(config, store),
        counted=once,
        on=on,
        notes=(
            f"computed from the data sheet of {on.title}: {100 * assumed.compute:.0f} % of its peak or "
            f"{100 * assumed.memory:.0f} % of its bandwidth, whichever an operator needs more of",
        ),
    )


def _probe(config: RunConfig, channels: dict[str, int], size: int, assumed: Efficiency, on: Hardware) -> Cost:
    """Encodings: of every batch once where there are few, in every step where there are many."""
    share = config.probe.patches // config.probe.folds
    fitting, scoring = max(1, (config.probe.patches - share) // 16), max(1, share // 16)
    encodings = scoring + (fitting if fitting <= 8 else config.probe.steps)
    one = [assumed.seconds(work.encoding_step(config, count, 16, size), on) for count in channels.values()]
    return Cost(sum(cost.seconds for cost in one) * encodings, "computed", one[0].limit)


def _transfers(
    config: RunConfig, store: PatchStore, downstream: PatchStore, assumed: Efficiency, on: Hardware, dtype: torch.dtype
) -> dict[tuple[str, str], TransferRates]:
    size = config.transfer.augment.crop or min(downstream.size)
    batch, classes = min(config.transfer.batch_size, downstream.places("train")), len(downstream.scheme)
    found = {}
    for modality in config.judged_modalities:
        channels = len(fed_bands(config, store, downstream, modality))
        scored = assumed.seconds(work.scoring_step(config, channels, classes, 16, size, dtype), on).times(1 / 16)
        encoded = assumed.seconds(work.encoding_step(config, channels, 16, size, head=True), on).times(1 / 16)
        for mode in config.transfer.trained_modes:
            step = assumed.seconds(work.transfer_step(config, mode, channels, classes, batch, size, dtype), on)
            found[modality, mode] = TransferRates(Cost(1.0, "computed"), step, encoded, scored)
    return found


def fed_bands(config: RunConfig, store: PatchStore, downstream: PatchStore, modality: str) -> tuple[str, ...]:
    """The bands that the downstream network of a modality reads."""
    from cromss.sensors import sensor

    if config.pretraining.trains:
        return inputs_for(config, store).bands[modality]
    wanted = config.data.bands.get(modality)
    return sensor(modality).select(wanted) if wanted else downstream.contract(modality).bands


def _decoding(config: RunConfig, store: PatchStore) -> float:
    """Places a second that a worker's reader delivers, from usual rates."""
    from cromss.costs.amounts import pixel_bytes

    reader = config.data.reader
    threads = reader.threads if reader.kind == "direct" else reader.readers
    return threads * DECODED[store.manifest.kind] / pixel_bytes(store)
