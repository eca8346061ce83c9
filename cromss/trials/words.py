"""Scores in words: percent, points, the titles of columns."""

from collections.abc import Sequence

from cromss.trials.rows import Cell, Column

MODES = {"frozen": "frozen", "finetuned": "fine-tuned", "zero_shot": "zero-shot"}


def percent(cell: Cell | None) -> str:
    """`42.1 ± 0.3`, without the deviation for one seed."""
    if cell is None:
        return "-"
    return f"{100 * cell.mean:.1f}" + (f" ± {100 * cell.std:.1f}" if cell.std is not None else "")


def points(value: float, *, sign: bool = False) -> str:
    """A difference of scores in percentage points; the minus sign is typographic, and nothing is minus nothing."""
    text = f"{100 * value:{'+' if sign else ''}.1f}"
    return (text if float(text) else text.lstrip("+-")).replace("-", "\N{MINUS SIGN}")


def between(interval: tuple[float, float] | None) -> str:
    """`[−0.3, +2.5]` in points; empty without an interval."""
    return "[{}, {}]".format(*(points(bound, sign=True) for bound in interval)) if interval else ""


def chance(p: float | None) -> str:
    """`.08`, three digits below .1; empty for a test that could not be made."""
    if p is None:
        return ""
    return "<.001" if p < 0.001 else f"{p:.{3 if p < 0.0995 else 2}f}".removeprefix("0")


def counts(cell: Cell) -> str:
    n, repeats = len(cell.seeds), cell.repeats
    return f"{n} seed{'s' * (n != 1)} x {repeats} repeat{'s' * (repeats != 1)}"


def metric_title(metric: str, modalities: Sequence[str] = ("s1", "s2")) -> str:
    """`mean S1/S2`, of the `modalities` that it is the mean of; a modality's own name in capitals."""
    return f"mean {'/'.join(one.upper() for one in modalities)}" if metric == "mean" else metric.upper()


def column_title(column: Column) -> str:
    modality, mode = column
    return f"{modality.upper()} {MODES.get(mode, mode)}"


def text_table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 2) -> str:
    """Columns aligned for a terminal, the first `left` of them to the left; also valid Markdown."""
    widths = [max(len(str(line[i])) for line in (header, *lines)) for i in range(len(header))]
    pad = [str.ljust if i < left else str.rjust for i in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(p(str(c), w) for p, c, w in zip(pad, cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < left else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([row(header), rule, *map(row, lines)])
