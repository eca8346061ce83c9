"""The table of a sweep as text: Markdown, LaTeX (booktabs), CSV, HTML."""

import csv as comma_separated
import html as web
import io
from collections.abc import Callable

from cromss.trials.statistics import t_interval
from cromss.trials.tables import AMONG, BOLD, Comparison, Score, Table, Tables
from cromss.trials.words import between, chance, column_title, percent, points, text_table

DAGGER = "†"
Grid = tuple[list[str], list[list[str]]]  # header, lines


def markdown(made: Tables) -> str:
    """Each quantity's two tables under its name; the notes last."""
    parts = []
    for table in made.tables:
        parts += [f"**{table.title}**", text_table(*_scores(table, _plain), left=1)]
        if table.comparisons:
            parts += [f"**Differences in {table.title}**", text_table(*_differences(table), left=1)]
    return "\n\n".join([*parts, *made.notes])


def latex(made: Tables) -> str:
    """Two floats per quantity; needs \\usepackage{booktabs}."""
    parts = [f"% {made.name}: needs \\usepackage{{booktabs}}"]
    for table in made.tables:
        parts.append(_float(table.title, *_scores(table, _tex), made.notes))
        if table.comparisons:
            header, lines = _differences(table)
            lines = [[_escaped(text) for text in line] for line in lines]
            parts.append(_float(f"Differences in {table.title}", header, lines, made.notes))
    return "\n\n".join(parts)


def csv(made: Tables) -> str:
    """Tidy: one line per quantity, row and column, fractions as they are; then the same of the differences."""
    file = io.StringIO()
    writer = comma_separated.writer(file, lineterminator="\n")
    writer.writerow(
        ["kind", "quantity", "row", "against", "modality", "mode", "mean", "std", "seeds", "repeats", "standing", "paper",
         "bootstrap_low", "bootstrap_high", "t_low", "t_high", "p_t", "p_holm", "p_sign_flip"]
    )  # fmt: skip
    for table in made.tables:
        for row in table.rows:
            for column in table.columns:
                score = table.scores[row.name, column]
                if cell := score.cell:
                    known = [cell.mean, cell.std, len(cell.seeds), cell.repeats, score.standing, score.paper]
                    writer.writerow(
                        ["score", table.quantity, _word(row.name), "", *column, *map(_exact, known), *[""] * 7]
                    )
        for one in table.comparisons:
            if one.difference:
                words = map(_word, (one.a, one.b))
                writer.writerow(["difference", table.quantity, *words, *one.column, *map(_exact, _numbers(one))])
    return file.getvalue()


def _word(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def html(made: Tables) -> str:
    """A fragment, to be put into any page."""
    parts = [f'<section class="tables" data-space="{web.escape(made.name)}">']
    for table in made.tables:
        header, lines = _scores(table, _tagged)
        parts.append(_html_table(table.title, header, [[web.escape(line[0]), *line[1:]] for line in lines]))
        if table.comparisons:
            header, lines = _differences(table)
            escaped = [[web.escape(text) for text in line] for line in lines]
            parts.append(_html_table(f"Differences in {table.title}", header, escaped))
    return "\n".join([*parts, *(f"<p>{web.escape(note)}</p>" for note in made.notes), "</section>"])


# --- cells --------------------------------------------------------------------------------------------------------------


def _scores(table: Table, cell: Callable[[Score], str]) -> Grid:
    header = ["", *map(column_title, table.columns), "seeds x repeats"]
    name = _escaped if cell is _tex else str
    lines = [
        [
            name(row.label),
            *(cell(table.scores[row.name, column]) for column in table.columns),
            " x ".join(map(str, row.size)),
        ]
        for row in table.rows
    ]
    return header, lines


def _plain(score: Score) -> str:
    text = percent(score.cell)
    text = f"**{text}**" if score.standing == BOLD else text + f" {DAGGER}" * (score.standing == AMONG)
    return f"{text} (paper {score.paper})" if score.paper else text


def _tex(score: Score) -> str:
    text = _escaped(percent(score.cell))
    text = f"\\textbf{{{text}}}" if score.standing == BOLD else text + r"$^\dagger$" * (score.standing == AMONG)
    return f"{text} (paper {_escaped(score.paper)})" if score.paper else text


def _tagged(score: Score) -> str:
    text = web.escape(percent(score.cell))
    text = f"<strong>{text}</strong>" if score.standing == BOLD else text + f" {DAGGER}" * (score.standing == AMONG)
    return f"{text} <small>paper {web.escape(score.paper)}</small>" if score.paper else text


def _differences(table: Table) -> Grid:
    header = ["", *map(column_title, table.columns)]
    lines = [[_against(a, b), *(_difference(table.comparison(a, b, column)) for column in table.columns)]
             for a, b in table.pairs]  # fmt: skip
    return header, lines


def _difference(one: Comparison) -> str:
    if one.difference is None:
        return "-"
    parts = [points(one.difference.mean, sign=True), between(one.difference.bootstrap)]
    return " ".join([*filter(None, parts), *([f"p {chance(one.holm)}"] if one.holm is not None else [])])


def _numbers(one: Comparison) -> list[float | str | None]:
    values = list(one.difference.values.values())
    nothing = (None, None)
    return [one.difference.mean, None, len(values), None, None, None, *(one.difference.bootstrap or nothing),
            *(t_interval(values) or nothing), one.difference.p, one.holm, one.sign_flip]  # fmt: skip


def _exact(value: float | str | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


# --- frames -------------------------------------------------------------------------------------------------------------


def _against(a: str, b: str) -> str:
    """`CromSS-midF − midF [rate=0.4]`: what two rows share in brackets is said once."""
    (first, _, left), (second, _, right) = a.partition(" ["), b.partition(" [")
    return f"{first} \N{MINUS SIGN} {second} [{left}" if left and left == right else f"{a} \N{MINUS SIGN} {b}"


_TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "\N{MINUS SIGN}": "$-$", DAGGER: r"$^\dagger$", "<": "$<$"} | {
    letter: f"\\{letter}" for letter in "&%$#_{}"
}


def _escaped(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def _float(title: str, header: list[str], lines: list[list[str]], notes: list[str]) -> str:
    spec = "l" + "r" * (len(header) - 1)
    row = " & ".join
    caption = _escaped(" ".join([f"{title}.", *notes]))
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule",
        row(map(_escaped, header)) + r" \\", r"\midrule", *(row(line) + r" \\" for line in lines), r"\bottomrule",
        r"\end{tabular}", r"\end{table}",
    ])  # fmt: skip


def _html_table(title: str, header: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{web.escape(text)}</th>" for text in header)
    body = "\n".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, *cells in lines
    )
    return f"<h3>{web.escape(title)}</h3>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
