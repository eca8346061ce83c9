"""`python -m cromss.sweep [SPACE] [--data STORE] [--downstream STORE] [--out DIR]`: many pretrainings, judged and ranked.

SPACE is a file in tune_spaces/ (or any .py file); bare, it is `cromss`: alpha x gamma ramp x fusion. Without --data and
--downstream (or CROMSS_DATA and CROMSS_DOWNSTREAM) it runs on the synthetic Earth, with the preset `demo` unless the space
brings its own BASE; a space whose samples name their own `world` makes a synthetic Earth for each. With --budget
HOURS it says what it will cost, asks, and stops at the cap with everything saved.
"""

import argparse
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cromss.cli import command_line, verb
from cromss.config import PRESETS, RunConfig, add_arguments, layers_from, overlay, resolve, shown
from cromss.costs.hardware import gpu_memory
from cromss.data.overlap import overlap, warning
from cromss.data.quarantine import opened
from cromss.data.store import PatchStore
from cromss.files import Folder
from cromss.journal import read_json, read_trials, write_json
from cromss.leaving import Left, asked, on_sigterm, withdraw
from cromss.portrait import sketch
from cromss.pretrain import QUARANTINE
from cromss.ray_session import capacity, connect, writable
from cromss.settings import leaves
from cromss.trials.cache import sources_digest
from cromss.trials.consent import Limit, agreed, spending, told
from cromss.trials.progress import Progress
from cromss.trials.resources import budget
from cromss.trials.schedule import CONFIRMED, run, search
from cromss.trials.space import Space, checked_samples, drawn, load, names
from cromss.trials.spending import Ledger, is_left
from cromss.trials.trial import SYNTHETIC, Setting, config_of, record_of
from cromss.trials.work import REAL, Work
from cromss.trials.worlds import Worlds, bytes_of, generator_digest, no_doubles, synthetic_stores

SWEEP, SPENDING = "sweep.json", "spending.jsonl"


class NotAgreed(Exception):
    """The answer to `Proceed?` was no."""


@dataclass(frozen=True)
class Prepared:
    """A sweep whose every trial is known to be valid, and of which nothing has been started."""

    space: Space
    setting: Setting
    first: RunConfig
    stores: tuple[PatchStore, PatchStore]  # of the first world, where the samples name their own
    samples: int
    planned: dict[str, dict[str, Any]]  # trial key -> sample; of a guided search one, for the validation's sake

    @property
    def out(self) -> Path:
        return Path(self.setting.out)

    @property
    def count(self) -> int:
        """How many trials it will be."""
        guided = self.samples + CONFIRMED * (self.first.sweep.seeds - 1)
        return guided if self.space.search else len(self.planned)


def sweep(
    space: Space, base: dict[str, Any], data: str | Path | None, downstream: str | Path | None, out: Path, *,
    samples: int | None = None, resume: bool = False, limit: Limit | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a space on the connected Ray cluster; {"trials": records, "summary": text, "report": path, "left": trials}.

    data, downstream   stores; None where the samples name their own `world`
    Everything that can be refused is refused before the first trial: invalid samples, resources that cannot fit, an
    `out` that not every node sees, a budget that is spent. Raises ValueError, and NotAgreed where `limit` was not agreed to.
    At the cap of a `limit` the trials are ended, and what is done is ranked like the whole. On SIGTERM the trials write their
    checkpoints and leave, and this raises Left.
    """
    ready = prepare(space, base, data, downstream, out, samples=samples, resume=resume)
    budget = ready.setting.budget
    ledger = Ledger(out / SPENDING, budget.devices, budget.unit, limit.hours if limit else None)
    if limit:
        _agree(limit, ready, ledger)
    announce(ready, ledger, limit)
    with on_sigterm(out):
        perform(ready, ledger)
        if not ledger.exhausted and (why := asked([out])):
            raise Left(why)
    return conclude(ready, ledger, limit)


def prepare(
    space: Space, base: dict[str, Any], data: str | Path | None, downstream: str | Path | None, out: Path, *,
    samples: int | None = None, resume: bool = False, work: Work = REAL,
) -> Prepared:  # fmt: skip
    """Everything that is checked before the first trial. Raises ValueError."""
    base = overlay(space.base, base)
    first = resolve(base)
    samples = checked_samples(space, samples)
    worlds = Worlds(space.world or {}, out / SYNTHETIC, generator_digest()) if space.has_worlds else None
    if worlds:
        if data or downstream:
            raise ValueError(
                f"--data, --downstream (or CROMSS_DATA, CROMSS_DOWNSTREAM): the trials of space {space.name} stand on "
                f"synthetic Earths of their own (its WORLD, or its samples' `world`); leave both out"
            )
        data, downstream = _first_world(space, base, first, samples, worlds)
    cache = first.data.cache
    store = opened(data, quarantine=first.data.quarantine, record=out / QUARANTINE, cache=cache)
    stores = store, PatchStore.open(downstream, cache=cache)
    total = capacity()
    plan = budget(first, total.get("CPU", 0), total.get("GPU", 0), gpu_memory(total))
    setting = Setting(
        base=base, data=str(stores[0].path), downstream=str(stores[1].path), out=str(out), budget=plan,
        command=command_line(), downstream_digest=stores[1].digest, work=work, worlds=worlds,
        world=[stores[0].digest, sources_digest(), version("torch"), "cuda" if plan.share.gpus else "cpu"],
    )  # fmt: skip
    _claim(out, resume, _identity(space, setting, first, samples))
    if first.scaling.checkpoints:
        Folder.of(first.scaling.checkpoints).check_writable("scaling.checkpoints")
    _seen_by_all_nodes(out)
    withdraw(out)  # what ended the attempt before
    return Prepared(space, setting, first, stores, samples, _planned(space, setting, samples, first, stores))


def announce(ready: Prepared, ledger: Ledger, limit: Limit | None = None) -> None:
    """Write down what the sweep is, say so, and draw its stores."""
    out, plan = ready.out, ready.setting.budget
    seen = overlap(*ready.stores, ready.first.transfer.protocol.kind)
    capped = {"budget": f"{limit.hours:g} {ledger.unit}"} if limit else {}
    write_json(out / SWEEP, _story(ready) | {"overlap": seen} | capped)
    print(
        f"{ready.space.question}\n{ready.count} trials, {plan.concurrent} at a time, {plan.share} each; results in {out}",
        flush=True,
    )
    if seen["shared"]:
        print(warning(seen), flush=True)
    for name, one in zip(("pretraining", "downstream"), ready.stores, strict=True):
        sketch(one, out / "stores" / name)


def perform(ready: Prepared, ledger: Ledger) -> None:
    """Run every trial that is not finished, up to the cap of the ledger."""
    with Progress(ready.out, ready.count):
        if ready.space.search:
            search(ready.space.params, ready.setting, ready.first, ready.samples, ledger)
        else:
            run(list(ready.planned.values()), ready.setting, ready.first, ledger)


def _agree(limit: Limit, ready: Prepared, ledger: Ledger) -> None:
    """Say what the trials that are not finished will cost, and ask. Raises ValueError, NotAgreed."""
    from cromss.costs.estimate import of_sweep

    limit.check_left(ledger.hours, ledger.unit)
    settled = {t["key"] for t in read_trials(ready.out) if t["status"] != "failed" and not is_left(t)}
    budget = ready.setting.budget
    configs = [config_of(one, ready.setting.base) for key, one in ready.planned.items() if key not in settled]
    if ready.space.has_worlds:
        configs = no_doubles(configs)
    if ready.space.search:
        configs = [config_of(next(iter(ready.planned.values())), ready.setting.base)] * (ready.count - len(settled))
    if configs:
        estimate = of_sweep(
            configs, *ready.stores, concurrent=budget.concurrent, devices_per_trial=budget.devices,
            gpu="auto" if budget.share.gpus else "cpu", together=budget.together, price=limit.price,
        )  # fmt: skip
        print("\n".join(told(limit, estimate, len(configs), ledger.hours, ledger.unit)), flush=True)
    if not agreed(limit):
        raise NotAgreed


def _planned(
    space: Space, setting: Setting, samples: int, first: RunConfig, stores: tuple[PatchStore, PatchStore]
) -> dict[str, dict[str, Any]]:
    """Every sample with every seed, validated; samples of one address (a setting without effect) run once. Of a guided
    search, one sample for the validation's sake."""
    found: dict[str, dict[str, Any]] = {}
    for sample in drawn(space, samples, first.seed, first.sweep.seeds):
        config = _validated(sample, setting, *stores)
        _rankable(config, space)
        found.setdefault(record_of(sample, setting)["key"], sample)
    return found


def _first_world(
    space: Space, base: dict[str, Any], first: RunConfig, samples: int, worlds: Worlds
) -> tuple[Path, Path]:
    """The stores that stand for those of all worlds before the first trial."""
    sample = drawn(space, samples, first.seed, first.sweep.seeds)[0]
    world = worlds.of(sample, sample["seed"])
    world.check(config_of(sample, base))
    print(f"the first world, under {world.folder} ...", flush=True)
    return world.make()


def _validated(sample: dict[str, Any], setting: Setting, data: PatchStore, downstream: PatchStore) -> RunConfig:
    """Its configuration, held against its stores: of a world, against what is known before they are made, unless they
    are these."""
    from cromss.pretrain import check
    from cromss.transfer import check_downstream

    config = config_of(sample, setting.base)
    placed, world = setting.of(sample, config.seed)
    if world:
        world.check(config)
        if (placed.data, placed.downstream) != (setting.data, setting.downstream):
            return config
    check_downstream(config, downstream)
    if config.pretraining.trains:
        check(config, data, downstream)
    return config


def _rankable(config: RunConfig, space: Space) -> None:
    """Early stopping and searches compare trials by one number: every trial must have it."""
    guided = space.search or config.sweep.stopping.kind != "none"
    needed = {"mean": {"s1", "s2"}, "s1": {"s1"}, "s2": {"s2"}}[config.sweep.metric]
    if guided and (not config.pretraining.trains or not needed <= set(config.judged_modalities)):
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


def _claim(out: Path, resume: bool, identity: dict[str, Any]) -> None:
    """The same sweep goes on in its folder; another one only where `resume` says that this is meant. Raises ValueError."""
    there = read_json(out / SWEEP)
    if resume and there is None:
        raise ValueError(f"--resume: {out} holds no sweep; leave it out to start one")
    if resume or there is None:
        return
    theirs = there.get("identity", {})
    changed = [key for key in sorted(theirs.keys() | identity.keys()) if theirs.get(key) != identity.get(key)]
    if changed:
        lines = ", ".join(f"{key} {theirs.get(key)} -> {identity.get(key)}" for key in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise ValueError(
            f"--out {out}: holds another sweep ({lines}{more}); choose another folder, undo the change, or add --resume to go "
            f"on with this one all the same"
        )


def _identity(space: Space, setting: Setting, first: RunConfig, samples: int) -> dict[str, Any]:
    """What makes it the same sweep, whoever computes it."""
    tree = first.model_dump(mode="json")
    judged = leaves({key: tree[key] for key in ("transfer", "probe", "sweep")})
    store, code = setting.world[:2]
    ground = {"pretraining store": store, "downstream store": setting.downstream_digest}
    return {"space": space.name, "samples": samples, "code": code[:16]} | ground | first.identity() | judged


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


def _story(ready: Prepared) -> dict[str, Any]:
    (store, downstream), setting, first = ready.stores, ready.setting, ready.first
    layout = downstream.manifest.source.get("layout", {}).get("kind")
    contest = layout == "dfc2020" and downstream.manifest.places == {"test": 5128, "train": 986}
    return {
        "space": ready.space.name,
        "question": ready.space.question,
        "command": setting.command,
        "metric": first.sweep.metric,
        "seeds": first.sweep.seeds,
        "repeats": first.transfer.repeats,
        "samples": ready.samples,
        "identity": _identity(ready.space, setting, first, ready.samples),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "paper_rows": contest,
        "quarantined": [asdict(lost) for lost in store.without],
        **_ground(ready),
        **({"answer": ready.space.answer.model_dump(mode="json")} if ready.space.answer is not None else {}),
    }


def _ground(ready: Prepared) -> dict[str, Any]:
    """What the trials stand on: two stores, or how many worlds."""
    if not ready.space.has_worlds:
        return {"store_digest": ready.setting.world[0], "downstream_digest": ready.setting.downstream_digest}
    worlds = {ready.setting.of(one, one["seed"])[0].data for one in ready.planned.values()}
    return {"store_digest": "", "downstream_digest": "", "worlds": len(worlds)}


def conclude(ready: Prepared, ledger: Ledger, limit: Limit | None = None) -> dict[str, Any]:
    """Rank, report and track what is done."""
    from cromss.report import write as write_report
    from cromss.tracking import Sink
    from cromss.trials.answers import answer
    from cromss.trials.ranking import aggregates, summary

    out = ready.out
    trials = read_trials(out)
    story = read_json(out / SWEEP) | {"spent": f"{ledger.hours:.3g} {ledger.unit}"}
    story["sentence"] = answer(story, trials)
    write_json(out / SWEEP, story)
    page = write_report(out)  # and the tables
    sink = Sink(out)
    sink.sync(aggregates(trials, story["metric"]), final=True)
    sink.attach(page)
    left = max(ready.count - sum(not is_left(trial) for trial in trials), 0) if ledger.exhausted else 0
    spent = spending(ledger.hours, ledger.unit, limit, left, ready.count)
    if ready.space.has_worlds:
        folder = out / SYNTHETIC
        spent += f"\nthe worlds take {bytes_of(folder) / 1e9:.2f} GB in {folder}; only unfinished trials need them"
    text = f"{spent}\n\n{summary(story, trials)}"
    return {"trials": trials, "summary": text, "report": page, "left": left}


# --- the verb -----------------------------------------------------------------------------------------------------------


def _stores(args: argparse.Namespace, out: Path, space: Space) -> tuple[str | Path | None, str | Path | None]:
    data, downstream = (
        args.data or os.environ.get("CROMSS_DATA"),
        args.downstream or os.environ.get("CROMSS_DOWNSTREAM"),
    )
    if bool(data) != bool(downstream):
        raise ValueError(
            "--data and --downstream (or CROMSS_DATA and CROMSS_DOWNSTREAM) go together: give both, or neither"
        )
    return (data, downstream) if data or space.has_worlds else synthetic_stores(out / SYNTHETIC)


def layers_of(args: argparse.Namespace, synthetic: bool, space: Space) -> dict[str, Any]:
    """The overlay of the arguments; on the synthetic Earth the preset is `demo` unless another is named, or the space
    brings what its trials share."""
    layers, named = layers_from(args), args.preset or args.config or space.base
    return overlay(PRESETS["demo"], layers) if synthetic and not named else layers


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
    parser.add_argument("--checkpoints", metavar="URI", help="folder or bucket of the checkpoints: scaling.checkpoints")
    parser.add_argument("--samples", type=int, metavar="N", help="samples of a space with random samplers")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on in --out though something has changed; the same command needs it not",
    )
    parser.add_argument("--budget", type=float, metavar="HOURS", help="stop at so many device-hours (GPU-hours, or core-"
                        "hours without GPUs) of all attempts together; says first what is expected, and asks")  # fmt: skip
    parser.add_argument("--price", type=float, metavar="X", help="what a device-hour costs: the budget in money, too")
    parser.add_argument("--yes", action="store_true", help="do not ask: for jobs")
    add_arguments(parser)
    args = parser.parse_args(argv)
    limit = _limit(args)
    space = load(args.space)
    synthetic = not (args.data or os.environ.get("CROMSS_DATA"))
    layers = layers_of(args, synthetic, space)
    if args.print_config:
        print(shown(resolve(space.base, layers)), end="")
        return 0
    resolve(space.base, layers)
    default = Path.home() / "cromss-runs" / f"{space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = writable(args.out or os.environ.get("CROMSS_OUT") or default)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    connect()
    try:
        outcome = sweep(
            space, layers, *_stores(args, out, space), out, samples=args.samples, resume=args.resume, limit=limit
        )
    except NotAgreed:
        print("nothing was started")
        return 1
    return tell(outcome, out)


def _limit(args: argparse.Namespace) -> Limit | None:
    if args.budget is None:
        if args.price is not None:
            raise ValueError(f"--price {args.price:g}: says what an hour costs, not how many; add --budget HOURS")
        return None
    limit = Limit(args.budget, args.price, args.yes)
    limit.check()
    return limit


def tell(outcome: dict[str, Any], out: Path) -> int:
    """Print the ranking, the report's path and how to open MLflow; the exit status."""
    from cromss.tracking import open_ui_command

    print(f"\n{outcome['summary']}\n\nreport: {outcome['report']}\nMLflow: {open_ui_command(out)}")
    return 0 if outcome["left"] or any(trial["status"] == "done" for trial in outcome["trials"]) else 1


if __name__ == "__main__":
    sys.exit(main())
