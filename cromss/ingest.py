"""Tiles in, a patch store out.

    python -m cromss.ingest geotiff SRC STORE --tile 64 --bands 9
    python -m cromss.ingest geotiff SRC STORE --live
    python -m cromss.ingest synthetic STORE --seasons 4
    python -m cromss.ingest --describe STORE
    python -m cromss.ingest --verify STORE
    python -m cromss.ingest --repair STORE
    python -m cromss.ingest --pictures STORE --out DIR
    python -m cromss.ingest --leakage PRETRAINING DOWNSTREAM --buffer 1000 --out DIR

Locations are written in a seeded random order, fold by fold. Whatever cannot be used is skipped, named and counted. The same
command again goes on where a stopped one was. With --live nothing is converted: training starts at once on the files as they
are, on the same batches, slower.
"""

import argparse
import functools
import os
import sys
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cromss.cli import verb
from cromss.data.ingestion import Ingest, Summary, ingest
from cromss.data.live_index import index
from cromss.data.progress import clock
from cromss.data.repair import repair
from cromss.data.sources.base import Source
from cromss.data.sources.layouts import LAYOUTS
from cromss.data.store import PatchStore
from cromss.settings import Settings, assignments, validate

_WORTH_RAY = 4  # chunks

__all__ = ["Ingest", "Summary", "ingest", "main"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """0 done; 1 nothing could be ingested, the store is damaged, or test tiles leaked; 2 wrong arguments; 130 stopped."""
    return _run(vars(_parser().parse_args(argv)))


def _run(given: dict[str, Any]) -> int:
    for name, act in _ACTIONS.items():
        if stores := given.pop(name, None):
            return act(stores, given)
    if (kind := given.pop("layout", None)) is None:
        raise ValueError(
            f"name a layout ({', '.join(LAYOUTS)}), or look at a store: {', '.join(f'--{name}' for name in _ACTIONS)}"
        )
    store, extra = given.pop("store"), assignments(given.pop("set", []))
    source = validate(LAYOUTS[kind], {name: given[name] for name in given if name in LAYOUTS[kind].model_fields}, extra)
    config = validate(Ingest, {name: given[name] for name in given if name in Ingest.model_fields})
    if given.get("live"):
        summary = index(source, store, config, _stderr)
    else:
        summary = ingest(source, store, config, _stderr, functools.partial(_workers, given.get("workers")))
    if not sys.stderr.isatty():
        print(summary)
    else:
        print(f"\n{summary}")
    return 0 if summary.patches else 1


def _workers(asked: int | None, chunks: int) -> int:
    """Ray Data tasks at a time: as asked, else one a CPU of the cluster where there are chunks enough to pay for Ray's
    start. 0 = this process."""
    if asked == 0 or (asked is None and chunks < _WORTH_RAY and "RAY_ADDRESS" not in os.environ):
        return 0
    from cromss.ray_session import connect

    connect()
    import ray

    return min(chunks, asked or max(1, int(ray.cluster_resources().get("CPU", 1))))


# --- stores that are there ----------------------------------------------------------------------------------------------


def _describe(store: str, given: dict[str, Any]) -> int:
    print(PatchStore.open(store).describe())
    return 0


def _verify(store: str, given: dict[str, Any]) -> int:
    opened = PatchStore.open(store, check=False)
    if opened.manifest.kind == "live":
        lost = opened.damaged(content=True)
        print(
            "\n".join(map(str, lost))
            or f"{opened.folder}: all files and headers are as they were indexed; pixels are looked at when they are read"
        )
        return 1 if lost else 0
    faults = opened.damaged(content=True, progress=_reading(opened))
    if not faults:
        print(f"{opened.folder}: all {len(opened.manifest.shards)} shards are as they were written")
        return 0
    print("\n".join(map(str, faults)))
    lost, whole = sum(fault.patches for fault in faults), sum(opened.manifest.patches.values())
    print(
        f"{len(faults)} of {len(opened.manifest.shards)} shards do not hold: {lost:,} of {whole:,} patches. Write them again "
        f"with --repair {store}, or train without them: data.quarantine=true"
    )
    return 1


def _repair(store: str, given: dict[str, Any]) -> int:
    opened = PatchStore.open(store, check=False)
    if opened.manifest.kind == "live":
        raise ValueError(f"{store}: is live and holds nothing to repair; {opened.remedy}")
    repaired = repair(opened, _stderr_line)
    print(f"{store}: {len(repaired)} shards written again" if repaired else f"{store}: nothing to repair")
    return 0


def _pictures(store: str, given: dict[str, Any]) -> int:
    from cromss.portrait import portrait

    if "out" not in given:
        raise ValueError("--pictures STORE: where shall they go? add --out DIR")
    for path in portrait(PatchStore.open(store), given["out"]):
        print(path)
    return 0


def _leakage(stores: list[str], given: dict[str, Any]) -> int:
    from cromss.data.leakage import leakage

    pretraining, downstream = (PatchStore.open(store) for store in stores)
    wanted = {"buffer": given["buffer"]} if "buffer" in given else {}
    found = leakage(pretraining, downstream, progress=_stderr_line, **wanted)
    print(found)
    if out := given.get("out"):
        from cromss.portrait import pair_sheet, save

        drawn = save({"pairs": pair_sheet(found, pretraining, downstream)}, out)
        (Path(out) / "leakage.json").write_text(found.to_json())
        print(f"{'written':<16} {', '.join(str(path) for path in [*drawn, Path(out) / 'leakage.json'])}")
    return 1 if found.near or found.duplicates else 0


def _reading(store: PatchStore) -> Callable[[int], None]:
    """A line now and then while every byte is read."""
    total, start, last = sum(shard.bytes for shard in store.manifest.shards), time.monotonic(), [time.monotonic()]

    def progress(done: int) -> None:
        now = time.monotonic()
        if now - last[0] >= 2:
            last[0], rate = now, done / (now - start)
            _stderr(
                f"{done / 1e9:,.1f}/{total / 1e9:,.1f} GB, {rate / 1e6:,.0f} MB/s, ETA {clock((total - done) / rate)}"
            )

    return progress


_ACTIONS: dict[str, Callable[[Any, dict[str, Any]], int]] = {
    "describe": _describe,
    "verify": _verify,
    "repair": _repair,
    "pictures": _pictures,
    "leakage": _leakage,
}


# --- the command line ---------------------------------------------------------------------------------------------------


def _stderr_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stderr(line: str) -> None:
    print(f"\r{line:<100}" if sys.stderr.isatty() else line, end="" if sys.stderr.isatty() else "\n", file=sys.stderr)
    sys.stderr.flush()


def _parser() -> _Parser:
    parser = _Parser(
        prog="cromss ingest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--describe", metavar="STORE", help="print what is in a store")
    actions.add_argument("--verify", metavar="STORE", help="compare every byte of a store with its manifest")
    actions.add_argument("--repair", metavar="STORE", help="write the damaged shards of a store again, from its source")
    actions.add_argument(
        "--pictures", metavar="STORE", help="classes by season, histograms, map and patches as PNGs in --out"
    )
    actions.add_argument(
        "--leakage", metavar="STORE", nargs=2, help="PRETRAINING DOWNSTREAM: test tiles on or near pretraining ground, and "
        "near-duplicate pixels; exit 1 where there are any"
    )  # fmt: skip
    parser.add_argument(
        "--buffer", metavar="METRES", type=float, help="of --leakage: ground that counts as near (default 1000)"
    )
    parser.add_argument("--out", metavar="DIR", help="of --pictures and --leakage: where pictures and numbers go")
    layouts = parser.add_subparsers(dest="layout", metavar="LAYOUT", parser_class=_Parser)
    for kind, layout in LAYOUTS.items():
        title = (layout.__doc__ or kind).strip().split("\n")[0]
        one = layouts.add_parser(kind, help=title, description=layout.__doc__, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter,
                                 argument_default=argparse.SUPPRESS)  # fmt: skip
        _options(one, layout)
    return parser


def _options(parser: argparse.ArgumentParser, layout: type[Source]) -> None:
    """An argument for every field: `path` is SRC, nested settings go by --set."""
    fields = Ingest.model_fields | layout.model_fields
    if "path" in layout.model_fields:
        parser.add_argument("path", metavar="SRC", type=Path, help=layout.model_fields["path"].description)
    parser.add_argument(
        "store", metavar="STORE", help="the patch store to write: a new or empty folder, s3://..., gs://..."
    )
    parser.add_argument("--workers", metavar="N", type=_count, help="Ray Data tasks at a time, on all nodes; 0: this process; "
                        f"default: one a CPU, where there are {_WORTH_RAY} chunks or more")  # fmt: skip
    parser.add_argument("--live", action=argparse.BooleanOptionalAction, help="convert nothing: read headers only, write an "
                        "index, and decode the source's files again whenever they are read (default: convert)")  # fmt: skip
    nested = []
    for name, info in fields.items():
        if name in ("kind", "path"):
            continue
        if isinstance(info.default, Settings):
            nested.append(name)
            continue
        option = "--" + name.replace("_", "-")
        default = f" (default {info.default})" if info.default not in (None, "") else ""
        described = f"{info.description or ''}{default}".strip().replace("%", "%%")
        if info.annotation is bool:
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, help=described, default=argparse.SUPPRESS
            )
        elif isinstance(info.default, tuple):
            parser.add_argument(option, action="append", metavar="GLOB", help=info.description)
        else:
            parser.add_argument(option, metavar=_metavar(info), help=described)
    if nested:
        parser.add_argument("--set", action="append", metavar="KEY=VALUE", help=f"of {', '.join(nested)}: a.b=value")


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: must be a number of tasks, 0 or more")
    return int(text)


def _metavar(info: Any) -> str:
    if typing.get_origin(info.annotation) is Literal:
        return "|".join(typing.get_args(info.annotation))
    kinds = [kind for kind in typing.get_args(info.annotation) or (info.annotation,) if kind is not type(None)]
    return {int: "N", float: "X", Path: "PATH"}.get(kinds[0], "VALUE")


if __name__ == "__main__":
    sys.exit(main())
