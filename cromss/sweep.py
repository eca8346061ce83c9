"""`python -m cromss.sweep [SPACE] [--data STORE] [--downstream STORE] [--out DIR]`: many pretrainings, judged and ranked.

SPACE is a file in tune_spaces/ (or any .py file); bare, it is `cromss`: alpha x gamma ramp x fusion. Without --data and
--downstream (or CROMSS_DATA and CROMSS_DOWNSTREAM) it runs on the synthetic Earth with the preset `demo`.
"""

import argparse
import logging
import os
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cromss.cli import command_line, verb
from cromss.config import PRESETS, RunConfig, add_arguments, layers_from, overlay, resolve, shown
from cromss.data.overlap import overlap, warning
from cromss.data.quarantine import opened
from cromss.data.store import PatchStore
from cromss.files import Folder
from cromss.journal import read_json, read_trials, write_json
from cromss.portrait import sketch
from cromss.pretrain import QUARANTINE
from cromss.ray_session import connect, writable
from cromss.trials.cache import sources_digest
from cromss.trials.progress import Progress
from cromss.trials.resources import budget
from cromss.trials.schedule import CONFIRMED, run, search
from cromss.trials.space import Space, is_random, load, names, variants
from cromss.trials.trial import Setting, config_of, record_of


def sweep(
    space: Space, base: dict[str, Any], data: str | Path, downstream: str | Path, out: Path, *, samples: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run a space on the connected Ray cluster; {"trials": records, "summary": text, "report": path}.

    Everything that can be refused is refused before the first trial: invalid samples, resources that cannot fit, an
    `out` that not every node sees. Raises ValueError.
    """
    import ray

    base = overlay(space.base, base)
    first = resolve(base)
    cache = first.data.cache
    store = opened(data, quarantine=first.data.quarantine, record=out / QUARANTINE, cache=cache)
    stores = store, PatchStore.open(downstream, cache=cache)
    total = ray.cluster_resources()
    plan = budget(first, total.get("CPU", 0), total.get("GPU", 0))
    setting = Setting(
        base=base, data=str(stores[0].path), downstream=str(stores[1].path), out=str(out), budget=plan,
        command=command_line(), downstream_digest=stores[1].digest,
        world=[stores[0].digest, sources_digest(), version("torch"), "cuda" if plan.share.gpus else "cpu"],
    )  # fmt: skip
    _claim(out, resume)
    if first.scaling.checkpoints:
        Folder.of(first.scaling.checkpoints).check_writable("scaling.checkpoints")
    _seen_by_all_nodes(out)
    samples = samples or space.samples
    planned = _planned(space, setting, samples, first, stores)
    seen = overlap(*stores, first.transfer.protocol.kind)
    write_json(out / "sweep.json", _story(space, setting, first, samples, stores) | {"overlap": seen})
    count = samples + CONFIRMED * (first.sweep.seeds - 1) if space.search else len(planned)
    print(
        f"{space.question}\n{count} trials, {plan.concurrent} at a time, {plan.share} each; results in {out}",
        flush=True,
    )
    if seen["shared"]:
        print(warning(seen), flush=True)
    for name, one in zip(("pretraining", "downstream"), stores, strict=True):
        sketch(one, out / "stores" / name)
    with Progress(out, count):
        if space.search:
            search(space.params, setting, first, samples)
        else:
            run(planned, setting, first)
    return _conclude(out)


def _planned(
    space: Space, setting: Setting, samples: int, first: RunConfig, stores: tuple[PatchStore, PatchStore]
) -> list[dict[str, Any]]:
    """Every sample with every seed, validated; samples of one address (a setting without effect) run once. Of a guided
    search, one sample for the validation's sake."""
    if samples > 1 and not is_random(space.params):
        raise ValueError(f"--samples {samples}: space {space.name} is a plain grid, every point runs once anyway")
    drawn = variants(space.params, 1 if space.search else samples, seed=first.seed)
    seeds = range(first.seed, first.seed + first.sweep.seeds)
    found: dict[str, dict[str, Any]] = {}
    for sample in (dict(sample, seed=seed) for seed in seeds for sample in drawn):
        config = _validated(sample, setting, *stores)
        _rankable(config, space)
        found.setdefault(record_of(sample, setting)["key"], sample)
    return list(found.values())


def _validated(sample: dict[str, Any], setting: Setting, data: PatchStore, downstream: PatchStore) -> RunConfig:
    from cromss.pretrain import check
    from cromss.transfer import check_downstream

    config = config_of(sample, setting.base)
    check_downstream(config, downstream)
    if config.pretraining.kind == "pretrain":
        check(config, data, downstream)
    return config


def _rankable(config: RunConfig, space: Space) -> None:
    """Early stopping and searches compare trials by one number: every trial must have it."""
    guided = space.search or config.sweep.stopping.kind != "none"
    needed = {"mean": {"s1", "s2"}, "s1": {"s1"}, "s2": {"s2"}}[config.sweep.metric]
    if guided and (config.pretraining.kind != "pretrain" or not needed <= set(config.judged_modalities)):
        raise ValueError(
            f"sweep.metric={config.sweep.metric}: a trial of space {space.name} has only "
            f"{', '.join(config.judged_modalities)} to be stopped or searched by; set sweep.metric to a modality that every "
            f"trial pretrains, or sweep.stopping.kind=none"
        )
    if guided and config.transfer.protocol.kind == "two_fold":
        raise ValueError(
            f"transfer.protocol.kind=two_fold: every tile is a test tile once, and the probe that stops or searches the "
            f"trials of space {space.name} would look at it; set sweep.stopping.kind=none, or judge by holdout"
        )


# --- before and after ---------------------------------------------------------------------------------------------------


def _claim(out: Path, resume: bool) -> None:
    there = (out / "sweep.json").exists()
    if there and not resume:
        raise ValueError(f"--out {out}: holds a sweep; add --resume to go on with it, or choose another folder")
    if resume and not there:
        raise ValueError(f"--resume: {out} holds no sweep; leave it out to start one")


def _seen_by_all_nodes(out: Path) -> None:
    """Raises ValueError when `out` is local to one node of several."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    marker = out / f".seen-{os.getpid()}"
    marker.touch()
    look = ray.remote(num_cpus=0)(lambda path: os.path.exists(path))
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote(str(marker))
        for n in nodes
    ]
    seen = ray.get(asked)
    marker.unlink()
    if not all(seen):
        raise ValueError(f"--out {out}: {seen.count(False)} of {len(nodes)} nodes cannot see it; name a shared folder")


def _story(
    space: Space, setting: Setting, first: RunConfig, samples: int, stores: tuple[PatchStore, PatchStore]
) -> dict[str, Any]:  # fmt: skip
    store, downstream = stores
    layout = downstream.manifest.source.get("layout", {}).get("kind")
    contest = layout == "dfc2020" and downstream.manifest.places == {"test": 5128, "train": 986}
    return {
        "space": space.name,
        "question": space.question,
        "command": setting.command,
        "metric": first.sweep.metric,
        "seeds": first.sweep.seeds,
        "repeats": first.transfer.repeats,
        "samples": samples,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "paper_rows": contest,
        "quarantined": [asdict(lost) for lost in store.without],
        "store_digest": setting.world[0],
        "downstream_digest": setting.downstream_digest,
    }


def _conclude(out: Path) -> dict[str, Any]:
    from cromss.report import write as write_report
    from cromss.tracking import Sink
    from cromss.trials.ranking import aggregates, summary

    trials, story = read_trials(out), read_json(out / "sweep.json")
    page = write_report(out)
    sink = Sink(out)
    sink.sync(aggregates(trials), final=True)
    sink.attach(page)
    return {"trials": trials, "summary": summary(story, trials), "report": page}


# --- the verb -----------------------------------------------------------------------------------------------------------


def _stores(args: argparse.Namespace, out: Path) -> tuple[str | Path, str | Path]:
    data, downstream = (
        args.data or os.environ.get("CROMSS_DATA"),
        args.downstream or os.environ.get("CROMSS_DOWNSTREAM"),
    )
    if bool(data) != bool(downstream):
        raise ValueError(
            "--data and --downstream (or CROMSS_DATA and CROMSS_DOWNSTREAM) go together: give both, or neither"
        )
    if data:
        return data, downstream
    from cromss.trials.worlds import synthetic_stores

    return synthetic_stores(out / "synthetic")


def layers_of(args: argparse.Namespace, synthetic: bool) -> dict[str, Any]:
    """The overlay of the arguments; on the synthetic Earth the preset is `demo` unless another is named."""
    layers = layers_from(args)
    return overlay(PRESETS["demo"], layers) if synthetic and not args.preset and not args.config else layers


@verb
def main(argv: list[str] | None = None) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(prog="cromss sweep", description=__doc__.splitlines()[0].split(": ", 1)[1])
    parser.add_argument(
        "space", nargs="?", default="cromss", metavar="SPACE", help=f"{', '.join(names())}, or a .py file"
    )
    parser.add_argument("--data", metavar="STORE", help="pretraining store (or CROMSS_DATA; default: synthetic Earth)")
    parser.add_argument("--downstream", metavar="STORE", help="downstream store (or CROMSS_DOWNSTREAM)")
    parser.add_argument("--out", metavar="DIR", help="results (or CROMSS_OUT; default: ~/cromss-runs/<space>-<time>)")
    parser.add_argument("--samples", type=int, metavar="N", help="samples of a space with random samplers")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the sweep in --out; no finished trial is repeated"
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    space = load(args.space)
    synthetic = not (args.data or os.environ.get("CROMSS_DATA"))
    layers = layers_of(args, synthetic)
    if args.print_config:
        print(shown(resolve(space.base, layers)), end="")
        return 0
    resolve(space.base, layers)
    default = Path.home() / "cromss-runs" / f"{space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = writable(args.out or os.environ.get("CROMSS_OUT") or default)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    connect()
    outcome = sweep(space, layers, *_stores(args, out), out, samples=args.samples, resume=args.resume)
    return tell(outcome, out)


def tell(outcome: dict[str, Any], out: Path) -> int:
    """Print the ranking, the report's path and how to open MLflow; the exit status."""
    from cromss.tracking import open_ui_command

    print(f"\n{outcome['summary']}\n\nreport: {outcome['report']}\nMLflow: {open_ui_command(out)}")
    return 0 if any(trial["status"] == "done" for trial in outcome["trials"]) else 1


if __name__ == "__main__":
    sys.exit(main())
