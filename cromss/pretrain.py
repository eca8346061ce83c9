"""`python -m cromss.pretrain --data STORE --out DIR`: pretrain the encoders on Ray Train workers.

The same command again goes on from the newest valid checkpoint, with any number of workers that divides `data.lanes`. On
SIGTERM the workers write a checkpoint in mid-epoch and leave: exit status 143.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cromss.attempts import REFUSED, alone_asked, fitted, together_asked
from cromss.cli import command_line, verb
from cromss.config import OBJECTIVES, RunConfig, add_arguments, layers_from, resolve, shown
from cromss.data.plan import check_world
from cromss.data.quarantine import opened
from cromss.data.store import Lost, PatchStore
from cromss.files import Folder
from cromss.leaving import Left, on_sigterm, take_over
from cromss.ray_session import Share, capacity, connect, following, share_of, writable

QUARANTINE = "quarantine.json"

# (metrics of an epoch, where to send what Tune shall see of them)
Report = Callable[[dict[str, float], Callable[[dict[str, float]], None]], None]


def pretrain(
    config: RunConfig, data: str | Path, out: Path, share: Share, *, key: str, downstream: str | Path | None = None,
    report: Report | None = None, show: bool = True, quarantine: Path | None = None, leave: Sequence[Path] = (),
) -> dict[str, Any]:  # fmt: skip
    """Fit a TorchTrainer (or, with a share of no workers, run here); the content of `out/pretraining.json`.

    quarantine   where damaged shards are remembered that data.quarantine leaves out (default: under `out`)
    report   called in this process with the metrics of every epoch that has a probe; inside a Tune trial only
    leave    folders, beside `out`, in which the run may be asked to leave
    Raises ValueError for mistakes in configuration or data (found before a worker starts), FloatingPointError for a loss
    that is not finite, RuntimeError when the workers failed more often than `scaling.max_failures`, Left when it was asked
    to leave and has.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = opened(
        data, quarantine=config.data.quarantine, record=quarantine or out / QUARANTINE, cache=config.data.cache,
        say=print if show else lambda line: None,
    )  # fmt: skip
    check(config, store)
    job = {
        "without": [asdict(lost) for lost in store.without],
        "config": _with_share(config, share).model_dump(mode="json"),
        "data": str(store.path),
        "out": str(out.absolute()),
        "downstream": str(Folder.of(downstream)) if downstream else None,
        "key": key,
        "threads": share.threads,
        "gpu": share.gpus > 0,
        "leave": [str(folder.absolute()) for folder in (out, *leave)],
        "holder": take_over(out),
    }
    (out / REFUSED).unlink(missing_ok=True)
    with following(out / "progress.log") if show else contextlib.nullcontext():
        if share.workers:
            callbacks = [_forwarded(report)] if report else []
            outcome = fitted(_worker, job, config, out, share, callbacks, lambda line: _say(out, line))
        else:
            outcome = _run_here(job, report)
    if "left" in outcome:
        raise Left(outcome["left"], outcome["step"])
    if error := outcome.get("error"):
        raise FloatingPointError(error) if outcome["kind"] == "FloatingPointError" else ValueError(error)
    return outcome


def _with_share(config: RunConfig, share: Share) -> RunConfig:
    if config.data.reader.kind != "ray":
        return config
    reader = config.data.reader.model_copy(update={"cpus": share.reader_cpus})
    return config.model_copy(update={"data": config.data.model_copy(update={"reader": reader})})


def _forwarded(report: Report) -> Any:
    """Rank 0's reports, brought from Ray Train's controller to the Tune trial that waits for it."""
    from ray.train import UserCallback
    from ray.tune.integration.ray_train import TuneReportCallback

    tune = TuneReportCallback()

    class Forwarded(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            seen: list[dict[str, Any]] = []
            report(metrics[0], seen.append)
            tune.after_report(run_context=run_context, metrics=seen, checkpoint=checkpoint)

    return Forwarded()


def check(config: RunConfig, store: PatchStore, downstream: PatchStore | None = None) -> None:
    """Hold the configuration against the store, and the two stores against each other, before anything is started. Raises
    ValueError."""
    from cromss.training.pretraining import check_network, check_together, inputs_for, make_plan

    inputs_for(config, store)
    check_network(config, store)
    make_plan(config, store)
    check_world(config.scaling.num_workers or 1, config.data.lanes)
    if downstream is not None:
        check_together(config, store, downstream)


def _worker(job: dict[str, Any]) -> dict[str, Any]:
    """What every Ray Train worker runs."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    return _run(job, rank, get_device(), ray.train.report, together_asked(job, rank), alone=world == 1)


def _run_here(job: dict[str, Any], report: Report | None) -> dict[str, Any]:
    def reported(metrics: dict[str, float]) -> None:
        if report:
            import ray.tune

            report(metrics, ray.tune.report)

    return _run(job, 0, "cuda" if job["gpu"] else "cpu", reported, alone_asked(job))


def _say(out: Path, line: str) -> None:
    with contextlib.suppress(OSError), (out / "progress.log").open("a") as file:  # a full disk ends no training
        file.write(line + "\n")


def _run(
    job: dict[str, Any], rank: int, device: Any, report: Callable[[dict[str, float]], None],
    leave: Callable[[int], str], alone: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """A mistake, or a loss that is not finite, is an answer, not a crash to retry.

    One worker of several (`alone` is False) cannot just return it: the others would wait for it in their next all-reduce.
    It writes the answer down and raises, so that Ray ends them all; the workers of the next attempt find it and return it.
    """
    import torch

    from cromss.data.store import Lost, PatchStore
    from cromss.journal import Journal, read_json, write_json
    from cromss.training import pretraining

    torch.set_num_threads(job["threads"])
    out = Path(job["out"])
    if not out.is_dir():
        unseen = f"--out {out}: the node {os.uname().nodename} cannot see it; name a folder that all nodes share"
        if not alone:  # the others would wait for this one
            raise ValueError(unseen)
        return {"error": unseen, "kind": "ValueError"}
    if (said := read_json(out / REFUSED)) is not None:
        return said
    journal = Journal(out / "journal", job["key"]) if rank == 0 else None

    try:
        config = resolve(job["config"])
        return pretraining.run(
            config,
            PatchStore.open(job["data"], without=[Lost(**lost) for lost in job["without"]], cache=config.data.cache),
            out,
            downstream=PatchStore.open(job["downstream"], cache=config.data.cache) if job["downstream"] else None,
            device=device,
            journal=journal.log if journal else lambda step, metrics, epoch: None,
            report=report,
            say=lambda line: _say(out, line),
            leave=leave,
        )
    except (ValueError, FloatingPointError) as error:
        answer = {"error": str(error), "kind": type(error).__name__}
        if alone:
            return answer
        write_json(out / REFUSED, answer)
        raise


@verb
def main(argv: list[str] | None = None) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(prog="cromss pretrain", description=__doc__.splitlines()[0].split(": ", 1)[1])
    parser.add_argument("--data", metavar="STORE", help="a patch store (cromss ingest makes one): path or s3://...")
    parser.add_argument("--out", metavar="DIR", help="where checkpoints, encoders and the journal go")
    parser.add_argument("--checkpoints", metavar="URI", help="folder or bucket of the checkpoints: scaling.checkpoints")
    parser.add_argument("--downstream", metavar="STORE", help="a downstream store: the frozen probe is scored on it")
    parser.add_argument(
        "--objective",
        choices=tuple(OBJECTIVES),
        help="what the encoders learn from: pretraining.kind (cromss: noisy labels)",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    config = resolve(layers_from(args))
    if not config.pretraining.trains:
        raise ValueError(
            f"pretraining.kind={config.pretraining.kind}: trains nothing; take --objective {'|'.join(OBJECTIVES)}"
        )
    if args.print_config:
        print(shown(config), end="")
        return 0
    if not args.data or not args.out:
        raise ValueError("--data STORE and --out DIR are needed")
    out = writable(args.out)
    if config.scaling.checkpoints:
        Folder.of(config.scaling.checkpoints).check_writable("--checkpoints")
    if not config.data.quarantine:  # which reads the whole store, once, when it has come so far
        judge = PatchStore.open(args.downstream, cache=config.data.cache) if args.downstream else None
        check(config, PatchStore.open(args.data, cache=config.data.cache), judge)
    connect()
    from cromss.training.pretraining import checkpoints_of

    total = capacity()
    share = share_of(config, total.get("CPU", 0), total.get("GPU", 0))
    print(f"pretraining on {share}, journal in {out}, checkpoints in {checkpoints_of(config, out)}")
    with on_sigterm(out):
        result = pretrain(config, args.data, out, share, key="pretrain", downstream=args.downstream)
    _track(out, config, args.data, args.downstream, result)
    print(f"encoders: {', '.join(str(path) for path in sorted((out / 'encoders').glob('*.safetensors')))}")
    return 0


def _track(out: Path, config: RunConfig, data: str, downstream: str | None, result: dict[str, Any]) -> None:
    from cromss.journal import write_json
    from cromss.portrait import sketch
    from cromss.provenance import collect
    from cromss.tracking import Sink, open_ui_command

    store = PatchStore.open(data, check=False)
    provenance = collect(
        seed=config.seed, device=result["device"], data=str(Folder.of(data)), store_digest=store.digest,
        downstream=str(Folder.of(downstream)) if downstream else "",
    )  # fmt: skip
    record = {"key": "pretrain", "arm": "pretraining", "seed": config.seed, "status": "done", "command": command_line(),
              "config": config.model_dump(mode="json"), "final": result["final"], "noise": result["noise"],
              "seconds": result["seconds"], "pretraining": result, "data": str(Folder.of(data)),
              "provenance": provenance}  # fmt: skip
    write_json(out / "trial.json", record)
    Sink(out).sync(final=True)
    lost = [Lost(**one) for one in result["quarantined"]]
    sketch(PatchStore.open(data, check=False, without=lost, cache=config.data.cache), out / "stores" / "pretraining")
    print(f"MLflow: {open_ui_command(out)}")


if __name__ == "__main__":
    sys.exit(main())
