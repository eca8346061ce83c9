"""`python -m cromss.estimate --data STORE [--downstream STORE] [--space S] [--gpu NAME] [--price X]`: cost before the start.

FLOP, bytes, the bottleneck, the time of an epoch, a run and a sweep, device-hours and money. What can be measured here in
half a minute is measured, the rest is computed; every number says which. Hours are GPU-hours, or core-hours on a CPU.
"""

import argparse
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cromss.cli import verb
from cromss.config import RunConfig, add_arguments, layers_from, overlay, resolve, shown
from cromss.data.store import PatchStore
from cromss.settings import suggest

HOST_CPUS = 16  # cores that come with a GPU that is not at hand


@verb
def main(argv: list[str] | None = None) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(prog="cromss estimate", description=__doc__.splitlines()[0].split(": ", 1)[1])
    parser.add_argument("--data", metavar="STORE", help="the pretraining store: path or s3://...")
    parser.add_argument("--downstream", metavar="STORE", help="the downstream store; without it, no judgement")
    parser.add_argument("--space", metavar="SPACE", help="a space of tune_spaces/, or a .py file: the sweep, too")
    parser.add_argument("--samples", type=int, metavar="N", help="samples of a space with random samplers")
    parser.add_argument("--gpu", default="auto", metavar="NAME",
                        help="a100-40, a100-80, h100, h200: as computed; cpu; auto: what is here (default)")  # fmt: skip
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs there are (default: those here, else 1)")
    parser.add_argument("--workers", type=int, metavar="N", help="workers of a run: scaling.num_workers")
    parser.add_argument("--price", type=float, metavar="X", help="of a device-hour, in any currency")
    parser.add_argument("--seconds", type=float, default=30, metavar="S",
                        help="to measure for; 0: compute everything (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    add_arguments(parser)
    args = parser.parse_args(argv)
    space = _space(args.space)
    layers = overlay(space.base if space else {}, layers_from(args), _workers(args))
    config = resolve(layers)
    if args.print_config:
        print(shown(config), end="")
        return 0
    _check(args, config)
    store = PatchStore.open(args.data, cache=config.data.cache)
    downstream = PatchStore.open(args.downstream, cache=config.data.cache) if args.downstream else None
    found = _estimates(args, space, layers, config, store, downstream)
    for estimate in found.values():
        print("\n".join(estimate.lines()), end="\n\n")
    if not downstream:
        print("without --downstream there is no probe, and no downstream run")
    if args.json:
        args.json.write_text(json.dumps({name: one.as_json() for name, one in found.items()}, indent=1) + "\n")
    return 0


def _estimates(
    args: argparse.Namespace, space: Any, layers: dict[str, Any], config: RunConfig, store: PatchStore,
    downstream: PatchStore | None,
) -> dict[str, Any]:  # fmt: skip
    """`run` and, with a space, `sweep`: the run is then its first trial, in the company it will have."""
    from cromss.costs.calibration import place_of, rates_of
    from cromss.costs.estimate import estimate_run, estimate_sweep
    from cromss.trials.resources import budget

    gpus = _gpus(args, place_of(config, gpu=args.gpu).gpu)
    configs = _planned(space, layers, args.samples) if space else [config]
    for one in configs:
        _validated(one, store, downstream)
    if not space:
        [rates] = rates_of(
            [config], store, downstream, gpu=args.gpu, seconds=args.seconds, together=gpus or os.cpu_count() or 1,
            devices=gpus or 1,
        )  # fmt: skip
        return {"run": estimate_run(config, store, downstream, rates, args.price)}
    cpus = float(os.cpu_count() or 1)
    plan = budget(_placed(configs[0], gpus), max(cpus, HOST_CPUS * gpus), gpus)
    concurrent = max(1, min(plan.concurrent, len(configs)))
    rates = rates_of(
        configs, store, downstream, gpu=args.gpu, seconds=args.seconds, concurrent=concurrent,
        together=max(1, plan.share.workers) if gpus else plan.together, devices=plan.devices,
    )  # fmt: skip
    first = estimate_run(configs[0], store, downstream, rates[0], args.price)
    whole = estimate_sweep(
        configs, store, downstream, rates, concurrent=concurrent, devices_per_trial=plan.devices, price=args.price
    )
    return {"run": replace(first, title=f"the first trial of {space.name}, as a run"), "sweep": whole}


def _planned(space: Any, layers: dict[str, Any], samples: int | None) -> list[RunConfig]:
    """Every trial of a sweep. Of a guided search: random draws, and the repeats of as many as it confirms."""
    from cromss.trials.schedule import CONFIRMED
    from cromss.trials.space import checked_samples, drawn, variants
    from cromss.trials.trial import config_of
    from cromss.trials.worlds import no_doubles

    count = checked_samples(space, samples)
    first = resolve(layers)
    if space.search:
        tried = variants(space.params, count, seed=first.seed)
        seeds = range(first.seed, first.seed + first.sweep.seeds)
        repeated = [(one, seed) for seed in seeds for one in (tried if seed == first.seed else tried[:CONFIRMED])]
        return [config_of(dict(sample, seed=seed), layers) for sample, seed in repeated]
    configs = [config_of(sample, layers) for sample in drawn(space, count, first.seed, first.sweep.seeds)]
    return no_doubles(configs) if space.has_worlds else configs


def _validated(config: RunConfig, store: PatchStore, downstream: PatchStore | None) -> None:
    from cromss.pretrain import check
    from cromss.transfer import check_downstream

    if downstream is not None:
        check_downstream(config, downstream)
    if config.pretraining.trains:
        check(config, store, downstream)
    elif downstream is None:
        raise ValueError(f"pretraining.kind={config.pretraining.kind}: only judged, and --downstream STORE is missing")


def _placed(config: RunConfig, gpus: int) -> RunConfig:
    """The configuration on GPUs or on none, whatever it says itself: --gpu has said so."""
    scaling = config.scaling.model_copy(update={"use_gpu": gpus > 0})
    return config.model_copy(update={"scaling": scaling})


# --- arguments ----------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace, config: RunConfig) -> None:
    """Raises ValueError, by name, for what cannot be."""
    from cromss.costs.hardware import GPUS

    if args.gpu not in (*GPUS, "auto", "cpu"):
        raise ValueError(f"--gpu {args.gpu}: unknown{suggest(args.gpu, [*GPUS, 'auto', 'cpu'])}")
    if not args.data:
        raise ValueError("--data STORE is needed; cromss ingest makes one")
    for name, least in (("gpus", 1), ("samples", 1)):
        if (number := getattr(args, name)) is not None and number < least:
            raise ValueError(f"--{name}={number}: must be {least} or more")
    if args.price is not None and not (math.isfinite(args.price) and args.price >= 0):
        raise ValueError(f"--price={args.price:g}: must be what a device-hour costs, 0 or more")
    if not (math.isfinite(args.seconds) and args.seconds >= 0):
        raise ValueError(f"--seconds={args.seconds:g}: must be 0 or more; 0 computes everything")
    if args.gpu == "cpu" and args.gpus:
        raise ValueError(f"--gpus={args.gpus}: there are none with --gpu cpu; name one, e.g. --gpu h200")
    if args.gpus and (config.scaling.num_workers or 1) > args.gpus:
        raise ValueError(f"--gpus={args.gpus}: too few for {config.scaling.num_workers} workers, which need one each")
    if args.json and not args.json.absolute().parent.is_dir():
        raise ValueError(f"--json={args.json}: there is no folder {args.json.parent}; create it first")


def _workers(args: argparse.Namespace) -> dict[str, Any]:
    return {} if args.workers is None else {"scaling": {"num_workers": args.workers}}


def _gpus(args: argparse.Namespace, on_gpu: bool) -> int:
    """GPUs there are, or would be."""
    if not on_gpu:
        return 0
    import torch

    return args.gpus or (torch.cuda.device_count() if args.gpu == "auto" else 0) or 1


def _space(which: str | None) -> Any:
    if which is None:
        return None
    from cromss.trials.space import load

    return load(which)


if __name__ == "__main__":
    sys.exit(main())
