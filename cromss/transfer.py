"""`python -m cromss.transfer --encoder CKPT|random --downstream STORE --out DIR`: judge encoders downstream.

The paper's protocol: Sentinel-1 and Sentinel-2 apart, encoder frozen and fine-tuned, repeated with other seeds.
"""

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cromss.cli import command_line, verb
from cromss.config import RunConfig, add_arguments, layers_from, overlay, resolve, shown
from cromss.costs.hardware import gpu_memory
from cromss.data.store import PatchStore
from cromss.data.tasks import own_words
from cromss.files import Folder
from cromss.networks.in_runs import encoder_in, encoders_in
from cromss.ray_session import capacity, connect, writable

ZERO_SHOT = "zero_shot"
SEGMENTER = "segmenter.safetensors"  # training/segmenter_file.py
SCORES = {"miou": "mIoU", "oa": "OA", "aa": "AA"}
RETRIES = 10  # of a downstream run whose process or node has died; its own mistakes are not retried


@dataclass(frozen=True)
class Run:
    """One downstream run of a trial: what is judged, how, and the how-manieth repeat it is."""

    modality: str
    mode: str
    repeat: int

    @property
    def name(self) -> str:
        return f"{self.modality}-{self.mode}-{self.repeat}"


def runs_of(config: RunConfig) -> list[Run]:
    """Every downstream run that `config` asks for and has something to judge by: zero-shot once, of whole networks."""
    trained = itertools.product(config.judged_modalities, config.transfer.trained_modes, range(config.transfer.repeats))
    whole = [modality for modality in config.judged_modalities if zero_shot_of(config, Path(), modality)]
    return [Run(*choice) for choice in trained] + [Run(modality, ZERO_SHOT, 0) for modality in whole]


def zero_shot_of(config: RunConfig, folder: Path, modality: str) -> Path | None:
    """The whole network that is scored zero-shot: of this run, in `folder`, or of the run of ours that the encoder is of.
    None where it was not asked for, or where there is none: random, foreign and self-supervised encoders know no classes."""
    if ZERO_SHOT not in config.transfer.modes:
        return None
    if config.pretraining.reads_labels:
        return folder / SEGMENTER
    if config.pretraining.kind != "checkpoint":
        return None
    source = Path(config.pretraining.paths[modality])
    beside = (source if source.is_dir() else source.parent.parent) / SEGMENTER
    return beside.absolute() if beside.exists() else None


def told_without(config: RunConfig) -> str:
    """Which modalities have nothing to be scored zero-shot, though it was asked for; empty where all have."""
    lacking = [modality for modality in config.judged_modalities if not zero_shot_of(config, Path(), modality)]
    if ZERO_SHOT not in config.transfer.modes or not lacking:
        return ""
    return (
        f"no zero_shot for {', '.join(lacking)}: only a network that was pretrained on labels here has classes of its own "
        f"({SEGMENTER}); {config.pretraining.kind} encoders have none"
    )


def encoders_of(config: RunConfig, folder: Path) -> dict[str, Path | None]:
    """modality -> the encoder file to judge; None = random weights.

    A run of ours has them under `folder/encoders`; foreign checkpoints are imported to there first. Raises ValueError.
    """
    if config.pretraining.kind == "random":
        return dict.fromkeys(config.judged_modalities)
    own = {modality: encoder_in(folder, modality) for modality in config.judged_modalities}
    if config.pretraining.kind == "checkpoint":
        return {modality: _brought(config, modality, path) for modality, path in own.items()}
    if missing := [str(path) for path in own.values() if not path.exists()]:
        raise ValueError(f"{missing[0]}: no such encoder; was the pretraining finished?")
    return own


def _brought(config: RunConfig, modality: str, target: Path) -> Path:
    """The encoder file of a run of ours as it is; anybody else's checkpoint, imported to `target`."""
    from cromss.networks.encoders import build_encoder, import_encoder, load_encoder, save_encoder
    from cromss.sensors import sensor

    source = Path(config.pretraining.paths[modality])
    if source.is_dir():
        source = encoder_in(source, modality)
    if source.suffix == ".safetensors" and load_encoder(source):
        return source.absolute()
    bands = sensor(modality).select(config.data.bands.get(modality, "all"))
    depth, scaling = config.model.depth, config.pretraining.scalings.get(modality)
    state, card = import_encoder(
        source, modality=modality, bands=bands, architecture=config.model.encoder, depth=depth, scaling=scaling
    )
    encoder = build_encoder(card.architecture, len(bands), depth)
    encoder.load_state_dict(state)
    save_encoder(target, encoder, card)
    return target


def check_downstream(config: RunConfig, store: PatchStore) -> None:
    """Hold the judgement against the store before anything is started. Raises ValueError."""
    for split in ("train", "test"):
        if split not in store.splits:
            raise ValueError(
                f"{store.path}: has no split {split!r}, only {', '.join(store.splits)}; a downstream store needs train and "
                f"test: ingest a layout that brings them, or cut one with --split halves"
            )
    for modality in config.judged_modalities:
        if modality not in store.bands:
            raise ValueError(
                f"transfer.modalities: {modality!r} is not in {store.path}, which holds {', '.join(store.bands)}"
            )


def check_encoders(encoders: dict[str, Path | None], store: PatchStore) -> None:
    """Hold the cards of pretrained encoders against the store. Raises ValueError listing both sides."""
    from cromss.networks.encoders import load_card
    from cromss.training.downstream import fed

    for modality, path in encoders.items():
        if path is not None:
            card = load_card(path)
            fed(store, modality, card.bands, card.scaling, card.contract, str(path))


def check_zero_shot(config: RunConfig, folder: Path, store: PatchStore) -> None:
    """Hold the whole networks that are to be scored against the store. Raises ValueError, listing both sides."""
    from cromss.training.zero_shot import check

    for modality in config.judged_modalities:
        if segmenter := zero_shot_of(config, folder, modality):
            check(segmenter, store, modality)


def _warn_of_leaks(encoders: list[str], store: PatchStore, protocol: str) -> None:
    """Say so when the test tiles lie on what a run of ours was pretrained on, where its store can still be read."""
    from cromss.data.overlap import overlap, warning
    from cromss.journal import read_json

    for folder in encoders:
        data = (read_json(Path(folder) / "trial.json") or {}).get("data")
        with contextlib.suppress(ValueError, OSError):
            if data and (seen := overlap(PatchStore.open(data, check=False), store, protocol))["shared"]:
                print(warning(seen), flush=True)


def judge_all(
    config: RunConfig, folder: Path, downstream: str | Path, *, key: str, cpus: float, gpus: float, together: int
) -> Iterator[dict[str, Any]]:
    """Every downstream run of a trial as Ray tasks, at most `together` at a time; results as they finish.

    A run that finished before is not repeated.
    """
    import ray

    # "DEFAULT": anywhere in the cluster, not inside the sliver of a CPU that the calling trial holds
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, scheduling_strategy="DEFAULT")(_judge)
    tree = config.model_dump(mode="json")
    waiting = [(tree, str(folder), str(downstream), *judged, key) for judged in _judged(config, folder)]
    flying: list[Any] = []
    while waiting or flying:
        while waiting and len(flying) < together:
            flying.append(task.remote(*waiting.pop(0)))
        done, flying = ray.wait(flying, num_returns=1)
        with own_words():
            result = ray.get(done[0])
        yield result


def judge_here(config: RunConfig, folder: Path, downstream: str | Path, *, key: str) -> list[dict[str, Any]]:
    """Every downstream run of a trial, one after the other in this process."""
    tree = config.model_dump(mode="json")
    return [_judge(tree, str(folder), str(downstream), *judged, key) for judged in _judged(config, folder)]


def _judged(config: RunConfig, folder: Path) -> list[tuple[Run, Path | None]]:
    """Every downstream run with the file that it judges; None = random weights."""
    encoders = encoders_of(config, folder)
    return [
        (run, zero_shot_of(config, folder, run.modality) if run.mode == ZERO_SHOT else encoders[run.modality])
        for run in runs_of(config)
    ]


def _judge(
    tree: dict[str, Any], folder: str, downstream: str, run: Run, source: Path | None, key: str
) -> dict[str, Any]:
    import torch

    from cromss.journal import Journal
    from cromss.training.downstream import judge
    from cromss.training.watchdog import Watchdog
    from cromss.training.zero_shot import zero_shot

    config, name = resolve(tree), f"{key}/{run.name}" if key else run.name
    torch.set_num_threads(config.scaling.threads or 1)
    device = "cuda" if torch.cuda.is_available() and config.scaling.use_gpu is not False else "cpu"
    store, out = PatchStore.open(downstream, cache=config.data.cache), Path(folder) / "transfer" / run.name
    if run.mode == ZERO_SHOT:
        return zero_shot(config.transfer, store, out, modality=run.modality, segmenter=source, device=device)
    stall = Watchdog(config.scaling.stall_minutes, Path(folder), run.name)
    with stall, Journal(Path(folder) / "journal", name) as journal:
        return judge(
            config.transfer,
            store,
            out,
            modality=run.modality,
            mode=run.mode,
            repeat=run.repeat,
            encoder=source,
            architecture=config.model.encoder,
            scaling=config.model.scaling,
            bands=random_bands(config, run.modality),
            seed=config.seed,
            sentinel=config.data.sentinel,
            device=device,
            journal=journal.log,
        )


def random_bands(config: RunConfig, modality: str) -> tuple[str, ...] | None:
    """The bands that a random encoder of this modality reads; None = those of the downstream store."""
    from cromss.sensors import sensor

    wanted = config.data.bands.get(modality)
    return sensor(modality).select(wanted) if wanted else None


@verb
def main(argv: list[str] | None = None) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(prog="cromss transfer", description=__doc__.splitlines()[0].split(": ", 1)[1])
    parser.add_argument("--encoder", metavar="CKPT", help="a run directory, modality=FILE (repeatable), or `random`",
                        action="append", default=[])  # fmt: skip
    parser.add_argument("--downstream", metavar="STORE", help="a patch store with the splits train and test")
    parser.add_argument("--out", metavar="DIR", help="where results, journals and pictures go")
    add_arguments(parser)
    args = parser.parse_args(argv)
    config = resolve(layers_from(args), _pretraining(args.encoder)) if args.encoder else resolve(layers_from(args))
    if args.print_config:
        print(shown(config), end="")
        return 0
    if not (args.encoder and args.downstream and args.out):
        raise ValueError("--encoder CKPT|random, --downstream STORE and --out DIR are needed")
    out = writable(args.out)
    store = PatchStore.open(args.downstream, cache=config.data.cache)
    check_downstream(config, store)
    check_encoders(encoders_of(config, out), store)
    check_zero_shot(config, out, store)
    if lacking := told_without(config):
        print(lacking, flush=True)
    _warn_of_leaks(args.encoder, store, config.transfer.protocol.kind)
    connect()
    from cromss.journal import write_json
    from cromss.provenance import collect
    from cromss.tracking import Sink, open_ui_command
    from cromss.training.footprint import transfers_per_gpu

    total_of = capacity()
    cpus, gpus = total_of.get("CPU", 1), total_of.get("GPU", 0)
    sharing = transfers_per_gpu(config, gpu_memory(total_of)) if gpus else 1
    together = max(1, int(gpus * sharing or cpus))
    trial: dict[str, Any] = {
        "key": "transfer",
        "arm": _arm(args.encoder),
        "seed": config.seed,
        "status": "running",
        "config": config.model_dump(mode="json"),
        "command": command_line(),
        "provenance": collect(
            seed=config.seed,
            device="cuda" if gpus else "cpu",
            downstream=str(Folder.of(args.downstream)),
            downstream_digest=store.digest,
        ),
        "downstream": [],
    }
    total, warned = len(runs_of(config)), set()
    share = {"cpus": min(1, cpus / together), "gpus": 1 / sharing if gpus else 0, "together": together}
    for result in judge_all(config, out, str(Folder.of(args.downstream)), key="", **share):
        trial["downstream"].append(result)
        scored = "  ".join(f"{title} {100 * result[name]:.2f}" for name, title in SCORES.items())
        what = f"{result['modality']} {result['mode']} repeat {result['repeat']}"
        print(f"[{len(trial['downstream'])}/{total}] {what}: {scored}  ({result['seconds']:.0f} s)", flush=True)
        if (far := result.get("drift")) and result["modality"] not in warned:
            warned.add(result["modality"])
            print(
                f"warning: the {result['modality']} encoder was trained on other values than this store holds, on average: "
                f"{', '.join(far)}; another offset, unit or region?"
            )
    trial["downstream"].sort(key=lambda one: (*_what(one), one["repeat"]))  # they ended in any order
    write_json(out / "trial.json", trial | {"status": "done"})
    Sink(out).sync(final=True)
    print(_table(trial["downstream"]))
    print(f"MLflow: {open_ui_command(out)}")
    return 0


def _table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the repeats, in percent."""
    lines = [f"{'':<16}{''.join(f'{title:>14}' for title in SCORES.values())}   repeats"]
    for what, group in itertools.groupby(sorted(results, key=_what), key=_what):
        runs = list(group)
        cells = [np.array([100 * run[name] for run in runs]) for name in SCORES]
        spread = [f"{c.mean():.2f} ± {c.std(ddof=1):.2f}" if len(runs) > 1 else f"{c.mean():.2f}" for c in cells]
        lines.append(f"{' '.join(what):<16}{''.join(f'{cell:>14}' for cell in spread)}   {len(runs)}")
    return "\n".join(lines)


def _what(result: dict[str, Any]) -> tuple[str, str]:
    return result["modality"], result["mode"]


def _arm(encoders: list[str]) -> str:
    return "random" if encoders == ["random"] else Path(encoders[0].partition("=")[2] or encoders[0]).name


def _pretraining(encoders: list[str]) -> dict[str, Any]:
    if encoders == ["random"]:
        return {"pretraining": {"kind": "random"}}
    paths: dict[str, str] = {}
    for item in encoders:
        modality, equals, path = item.partition("=")
        if equals:
            paths[modality] = path
        else:
            found = encoders_in(Path(item))
            if not found:
                raise ValueError(f"--encoder {item}: no encoders/*.safetensors in there; for one file say s2={item}")
            paths |= {modality: str(file) for modality, file in found.items()}
    return overlay({"pretraining": {"kind": "checkpoint"}}, {"pretraining": {"paths": paths}})


if __name__ == "__main__":
    sys.exit(main())
