"""`python -m cromss.export SOURCE --to FORMAT ... --out DIR`: encoders for other libraries, with all that is known about them.

SOURCE is the --out of a pretraining, a sweep's trial, an encoder file of ours or, with --from, a checkpoint of other people.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cromss.cli import verb

INSIDE = "README.md"  # in every folder written here


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """The verb."""
    args = _arguments(argv)
    if args.formats:
        print(_tables())
        return 0
    if not (args.source and args.out):
        raise ValueError("SOURCE and --out DIR are needed; --formats lists what can be written and read")
    from cromss.exchange.formats import FORMATS, Outgoing, format_of

    chosen = [format_of(name) for name in args.to] if args.to else list(FORMATS.values())
    for one in chosen if args.to else ():
        one.require()
    out, encoders = Path(args.out), list(_encoders(args))
    several = len(encoders) > 1
    targets = [out / card.modality if several else out for _, card, _ in encoders]
    if not args.overwrite:
        names = [one.target for one in chosen] + [INSIDE]
        if there := [str(folder / name) for folder in targets for name in names if (folder / name).exists()]:
            raise ValueError(f"{there[0]}: is there already; choose another --out, or --overwrite")
    with _aside(out) as aside:
        loading = {}
        for state, card, story in encoders:
            outgoing = Outgoing(state, card, story, args.licence, args.onnx_input)
            loading[card.modality] = _write(outgoing, chosen, aside / card.modality, named=bool(args.to))
        for (_, card, _), folder in zip(encoders, targets, strict=True):
            _publish(aside / card.modality, folder)
            _tell(card, folder, loading[card.modality])
    return 0


_HELP = {
    "source": "the --out of a pretraining, a trial OUT/trials/<key> of a sweep, an encoder file of ours, or with --from a "
    "checkpoint of other people",
    "--to": "what to write (default: all that this encoder has a form for); --formats lists them",
    "--out": "folder to write into; of several encoders one folder each, DIR/s1 and DIR/s2",
    "--modality": "s1 | s2: only that encoder; of a checkpoint whose names do not tell: what it reads",
    "--licence": "licence of the weights as the Hub spells it, for example cc-by-4.0 (default: unknown, and said so)",
    "--transfer": "the --out of a `cromss transfer` that judged this very encoder: its scores go into header and model card "
    "(repeatable)",
    "--onnx-input": "physical: the ONNX file takes dB or DN and scales them itself; scaled: it takes what the network takes "
    "(default physical)",
    "--overwrite": "replace what is there already",
    "--formats": "list formats and layouts, and stop",
    "--from": "whose checkpoint SOURCE is, which decides key names, bands and input scaling; auto: recognise it, or say what "
    "it could be; --formats lists them",
    "--architecture": "name of its encoder (default: the ResNet that the tensors are of)",
    "--unit": "dB | DN: what you take its input to be in; refused where it is not",
    "--scaling": "mean_2std | reflectance | zscore: its input scaling where neither layout nor header say it, or the one to "
    "use with --adapt-bands",
    "--bands": "13, 12, 9, 3 or names B4,B3,B2 in the order of the first convolution: refused where the encoder was trained on "
    "others, unless --adapt-bands says what to do",
    "--adapt-bands": "select: drop bands; zero: add bands with weight 0; mean: add bands with the mean of the others' weights, "
    "all rescaled. Recorded in the card",
}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cromss export", description=__doc__.splitlines()[0].split(": ", 1)[1])

    def add(group: Any, *names: str, **options: Any) -> None:
        group.add_argument(*names, help=_HELP[names[0]], **options)

    add(parser, "source", metavar="SOURCE", nargs="?")
    add(parser, "--to", metavar="FORMAT", nargs="+")
    add(parser, "--out", metavar="DIR")
    add(parser, "--modality", metavar="NAME")
    add(parser, "--licence", "--license", metavar="ID", default="unknown")
    add(parser, "--transfer", metavar="DIR", action="append", default=[])
    add(parser, "--onnx-input", choices=("physical", "scaled"), default="physical")
    add(parser, "--overwrite", action="store_true")
    add(parser, "--formats", action="store_true")
    foreign = parser.add_argument_group("checkpoints of other people")
    add(foreign, "--from", dest="layout", metavar="LAYOUT")
    add(foreign, "--architecture", metavar="NAME")
    add(foreign, "--unit", metavar="UNIT")
    add(foreign, "--scaling", metavar="KIND")
    bands = parser.add_argument_group("bands")
    add(bands, "--bands", metavar="LIST")
    add(bands, "--adapt-bands", metavar="HOW")
    return parser.parse_args(argv)


# --- where from -------------------------------------------------------------------------------------------------------


def _encoders(args: argparse.Namespace) -> Iterator[tuple[Any, Any, Any]]:
    """(state, card, story) of every encoder that is to be written."""
    from cromss.exchange.sources import sources
    from cromss.exchange.story import Story, story
    from cromss.networks.encoders import load_encoder

    how, scaling = _adaptation(args), _scaling(args)
    if args.layout:
        from cromss.exchange.incoming import Stated, bring

        if args.transfer:
            raise ValueError(
                "--transfer: scores are of encoders of ours; import this one, judge it, then export it with them"
            )
        if not Path(args.source).is_file():
            raise ValueError(f"{args.source}: no such file; --from reads one checkpoint")
        stated = Stated(modality=args.modality, unit=args.unit, architecture=args.architecture,
                        bands=None if how else _bands(args, args.modality), scaling=None if how else scaling)  # fmt: skip
        for state, card in bring(args.source, args.layout, stated):
            print(f"{args.source}: {card.modality} {card.architecture}, layout {card.extra['imported_from']}"
                  + (f", {said}" if (said := card.extra.get("imported_is")) else ""))  # fmt: skip
            yield *_adapted(args, state, card, how, scaling), Story()
        return
    for option, value in (("--architecture", args.architecture), ("--unit", args.unit)):
        if value:
            raise ValueError(
                f"{option}: is for checkpoints of other people; say whose with --from (auto: recognise it)"
            )
    for source in sources(Path(args.source), args.modality):
        state, card = load_encoder(source.file)
        if args.modality not in (None, card.modality):
            raise ValueError(f"{source.file}: is an encoder of {card.modality}, --modality says {args.modality}")
        told = story(source.run, card, source.file, [Path(one) for one in args.transfer])
        if scaling is not None and not how and scaling != card.scaling:
            raise ValueError(
                f"{source.file}: was trained with scaling {card.scaling.kind}, --scaling says {scaling.kind}"
            )
        yield *_adapted(args, state, card, how, scaling), told


def _bands(args: argparse.Namespace, modality: str | None) -> tuple[str, ...] | None:
    from cromss.sensors import SENSORS, sensor

    if not args.bands:
        return None
    if modality is None:  # of a checkpoint that may hold several: whichever sensor has bands of these names
        known = [one for one in SENSORS.values() if set(args.bands.split(",")) <= {*one.bands, *one.subsets} - {"all"}]
        modality = known[0].name if known else "s2"
    return sensor(modality).select(args.bands)


def _scaling(args: argparse.Namespace) -> Any:
    from cromss.networks.scaling import MeanStd, Reflectance, ZScore
    from cromss.settings import suggest

    known = {one.kind: one for one in (MeanStd(), Reflectance(), ZScore())}
    if args.scaling is not None and args.scaling not in known:
        raise ValueError(f"--scaling {args.scaling}: unknown{suggest(args.scaling, known)}")
    return known.get(args.scaling)


def _adaptation(args: argparse.Namespace) -> Any:
    if args.adapt_bands is None:
        return None
    from cromss.exchange.bands import ADAPTATIONS
    from cromss.settings import suggest

    if args.adapt_bands not in ADAPTATIONS:
        raise ValueError(f"--adapt-bands {args.adapt_bands}: unknown{suggest(args.adapt_bands, ADAPTATIONS)}")
    if not args.bands:
        raise ValueError(f"--adapt-bands {args.adapt_bands}: to which bands? name them with --bands")
    return ADAPTATIONS[args.adapt_bands]


def _adapted(args: argparse.Namespace, state: Any, card: Any, how: Any, scaling: Any) -> tuple[Any, Any]:
    from cromss.exchange.bands import adapt

    wanted = _bands(args, card.modality)
    if how:
        return adapt(state, card, wanted, how, scaling)
    if wanted not in (None, card.bands):
        raise ValueError(
            f"{card.modality} bands (in order) differ: the encoder was trained on {', '.join(card.bands)}, --bands says "
            f"{', '.join(wanted)}; for other bands say how: --adapt-bands select|zero|mean"
        )
    return state, card


# --- where to ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder beside what is to appear; gone at the end, however it ends. A full disk is one line."""
    from cromss.files import fault

    made = not out.exists()
    aside = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=out, prefix=".export-"))
        yield aside
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({fault(error)}); nothing half-written was left") from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()  # nothing was published


def _write(encoder: Any, chosen: list[Any], folder: Path, *, named: bool) -> dict[str, str]:
    """Every format that fits, into `folder`, and a README; file -> the Python that loads it. What was `named` must fit."""
    from safetensors import SafetensorError

    folder.mkdir()
    loading: dict[str, str] = {}
    for one in chosen:
        try:
            one.require()
            loading[one.target] = one.write(folder, encoder)
        except SafetensorError as error:
            raise OSError(str(error)) from None
        except ValueError as error:
            if named:
                raise ValueError(f"--to {one.name}: {error}") from None
            print(f"left out: {encoder.card.modality} {one.name}: {error}")
    (folder / INSIDE).write_text(_readme(encoder, loading))
    return loading


def _readme(encoder: Any, loading: dict[str, str]) -> str:
    from cromss.exchange import feeding
    from cromss.exchange.markdown import plain

    card = encoder.card
    parts = [
        f"# {card.modality} encoder {plain(card.architecture)}, {plain(card.method) or 'method unknown'}",
        f"Licence of the weights: {plain(encoder.licence)}. Every file's header says bands, unit, scaling and scores.",
        "What the network takes is `x`:",
        f"```python\nimport torch\n\n{feeding.code(card)}\n```",
    ]
    for target, code in loading.items():
        parts += [f"## {target}", f"```python\n{code}\n```"]
    return "\n\n".join(parts) + "\n"


def _publish(staged: Path, folder: Path) -> None:
    """Everything in `staged` under its final name, each file whole."""
    mode = (
        staged / INSIDE
    ).stat().st_mode & 0o777  # as the umask wants it: safetensors' own files are their owner's alone
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        target = folder / file.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.chmod(mode)
        os.replace(file, target)


def _tell(card: Any, folder: Path, loading: dict[str, str]) -> None:
    """What was written, and how to load it."""
    from cromss.exchange.formats import FORMATS

    print(
        f"{card.modality} {card.architecture}, {len(card.bands)} bands ({' '.join(card.bands)}), scaling {card.scaling.kind}"
    )
    if done := card.extra.get("bands_adapted"):
        print(f"  bands adapted, {done}; trained on {card.extra['bands_trained_on']}")
    for one in FORMATS.values():
        if one.target in loading:
            path = folder / one.target
            size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
            print(f"  {path}  {size / 1e6:.1f} MB  {one.story}")
    print(f"  {folder / INSIDE}  how to load them" + (":" if len(loading) == 1 else ""))
    if len(loading) == 1:
        print("\n".join(f"    {line}".rstrip() for line in next(iter(loading.values())).splitlines()))


def _tables() -> str:
    from cromss.exchange.formats import FORMATS
    from cromss.exchange.layouts import LAYOUTS

    wide = max(map(len, [*FORMATS, *LAYOUTS]))
    lines = ["--to", *(f"  {one.name:<{wide}}  {one.story}" for one in FORMATS.values()), "", "--from"]
    for row in LAYOUTS.values():
        names = " / ".join(dict.fromkeys(repr(prefix) for prefix in row.prefixes.values()))
        lines.append(
            f"  {row.name:<{wide}}  {row.story}; names begin with {names}; {row.sets()}; scaling {row.scaled()}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
