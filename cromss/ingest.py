"""Tiles in, a patch store out.

    python -m cromss.ingest geotiff SRC STORE --tile 64 --bands 9
    python -m cromss.ingest synthetic STORE --seasons 4
    python -m cromss.ingest --describe STORE
    python -m cromss.ingest --verify STORE

Locations are written in a seeded random order, fold by fold. Whatever cannot be used is skipped, named and counted.
"""

import argparse
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cromss.data.ingestion import Ingest, Summary, ingest
from cromss.data.sources.base import Source
from cromss.data.sources.layouts import LAYOUTS
from cromss.data.store import PatchStore
from cromss.settings import Settings, assignments, validate

__all__ = ["Ingest", "Summary", "ingest", "main"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """0 done, 1 nothing could be ingested or the store is damaged, 2 wrong arguments."""
    try:
        return _run(vars(_parser().parse_args(argv)))
    except ValueError as error:
        print(f"cromss ingest: {error}", file=sys.stderr)
        return 2


def _run(given: dict[str, Any]) -> int:
    if path := given.pop("describe", None):
        store = PatchStore.open(path)
        print(store.describe())
        return 0
    if path := given.pop("verify", None):
        store = PatchStore.open(path, check=False)
        faults = store.verify()
        print("\n".join(faults) or f"{store.path}: all {len(store.manifest.shards)} shards are as they were written")
        return 1 if faults else 0
    if (kind := given.pop("layout", None)) is None:
        raise ValueError(f"name a layout ({', '.join(LAYOUTS)}), --describe STORE or --verify STORE")
    store, extra = given.pop("store"), assignments(given.pop("set", []))
    source = validate(LAYOUTS[kind], {name: given[name] for name in given if name in LAYOUTS[kind].model_fields}, extra)
    config = validate(Ingest, {name: given[name] for name in given if name in Ingest.model_fields})
    summary = ingest(source, store, config, _stderr)
    if not sys.stderr.isatty():
        print(summary)
    else:
        print(f"\n{summary}")
    return 0 if summary.patches else 1


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
    parser.add_argument("--describe", metavar="STORE", type=Path, help="print what is in a store")
    parser.add_argument("--verify", metavar="STORE", type=Path, help="compare every byte of a store with its manifest")
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
    parser.add_argument("store", metavar="STORE", type=Path, help="the patch store to write: a new or empty folder")
    nested = []
    for name, info in fields.items():
        if name in ("kind", "path"):
            continue
        if isinstance(info.default, Settings):
            nested.append(name)
            continue
        option = "--" + name.replace("_", "-")
        described = f"{info.description or ''} (default {info.default})".strip().replace("%", "%%")
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


def _metavar(info: Any) -> str:
    if typing.get_origin(info.annotation) is Literal:
        return "|".join(typing.get_args(info.annotation))
    return {int: "N", float: "X", Path: "PATH"}.get(type(info.default), "VALUE" if info.default is not None else "N")


if __name__ == "__main__":
    sys.exit(main())
