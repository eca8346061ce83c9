"""A report shows what a run says as text: names, questions and reasons act nowhere, neither in the page nor in the tables."""

import csv
import html.parser
import json
import re

import fake_out
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cromss import report
from cromss.pages.tables import _Plain
from cromss.trials.tables import write

EVIL = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"><svg/onload=alert(1)>", "' onmouseover='alert(1)",
    "</title><script>alert(1)</script>", "{{ 1234567*7654321 }}{% raw %}", "javascript:alert(1)", "<!--<script>-->",
    "<a href=javascript:alert(1)>",
    "]]><script>alert(1)</script>", "<style>*{background:url(http://127.0.0.1/x)}</style>", "\\input{/etc/passwd}",
)  # fmt: skip
ACTIVE = {"script", "iframe", "object", "embed", "link", "base", "form", "meta", "a", "svg", "math", "video", "audio"}


class Page(html.parser.HTMLParser):
    """What a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def acts(self) -> list[tuple[str, dict]]:
        """Tags and attributes that load or run something from outside of the page."""
        return [
            (tag, attributes)
            for tag, attributes in self.tags
            if any(name.startswith("on") for name in attributes)
            or any(
                not (value or "").startswith(("data:image/", "#"))
                for name, value in attributes.items()
                if name in ("src", "href")
            )
            or tag in ACTIVE - {"a", "meta", "svg"}
            or "http-equiv" in attributes
        ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The page of a run without anything evil: what the template itself has."""
    return Page(report.render(made(tmp_path_factory.mktemp("plain"))))


def made(out, text=None):
    """A run folder in which everything that is text says `text`."""
    fake_out.make(out, arms=("random", "midF", "CromSS-midF"), seeds=1, repeats=1, epochs=2, size=8)
    if text is None:
        return out
    for file in (out / "sweep.json", *out.glob("trials/*/trial.json")):
        found = json.loads(file.read_text())
        for key in ("space", "question", "command", "reason", "metric_title", "created", "sentence", "store_digest"):
            if key in found or key in ("reason", "sentence"):
                found[key] = text
        if "arm" in found:
            found["arm"] = f"{found['arm']}{EVIL[0]}"
            found["parameters"] = {EVIL[1]: EVIL[1], "optim.lr": EVIL[2]}
            found["config"] = (found.get("config") or {}) | {text: text}
            found["provenance"] = {
                "data": text,
                "downstream": text,
                "packages": {text: text},
                "git": {"revision": text},
                "host": text,
            }
            for judged in found["downstream"]:
                judged |= {"scheme_title": text, "head": text}
        file.write_text(json.dumps(found))
    return out


def test_what_a_run_says_is_text(tmp_path, plain):
    """Also the name of its folder."""
    out = made(tmp_path / "<img src=x onerror=alert(1)>", " ".join(EVIL))
    text = report.write(out).read_text()
    found = Page(text)
    assert found.acts() == plain.acts() == []
    for tag in ("script", "style", "svg", "a", "title"):
        assert sum(one == tag for one, _ in found.tags) == sum(one == tag for one, _ in plain.tags), tag
    assert "{{ 1234567*7654321 }}" in text  # as it was written
    assert str(1234567 * 7654321) not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_page_that_acts_is_seen():
    for evil in (
        "<script>x</script>",
        "<img src=x onerror=y>",
        "<svg/onload=x>",
        "<a href=javascript:x>",
        "<p onclick=x>",
    ):
        assert Page(f"<table><td>{evil}</table>").acts() or "script" in evil
    assert Page("<script>x</script>").acts()
    assert not Page('<img src="data:image/png;base64,AA==">').acts()


@given(st.text(alphabet="<>/'\"=! -abcdefonscript&;\n\t", max_size=80))
@settings(max_examples=300)
def test_tables_that_somebody_else_wrote_keep_nothing_that_acts(text):
    markup = _Plain(f"<table><tr><td>{text}</td></tr></table>").markup
    assert Page(markup).acts() == []
    assert not {tag for tag, _ in Page(markup).tags} & ACTIVE


WORDS = (r"\input{/etc/passwd}", "=HYPERLINK(1)", "+1", "-1", "@SUM(1)")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """What a run leaves as LaTeX and as CSV whose arms are called so."""
    out = fake_out.make(
        tmp_path_factory.mktemp("words"), arms=("random", "midF", "oracle", "SCE-midF", "ELR-midF"), seeds=1, repeats=1,
        epochs=2, size=8,
    )  # fmt: skip
    arms = sorted({json.loads(file.read_text())["arm"] for file in out.glob("trials/*/trial.json")})
    for file in out.glob("trials/*/trial.json"):
        found = json.loads(file.read_text())
        file.write_text(json.dumps(found | {"arm": WORDS[arms.index(found["arm"]) % len(WORDS)] + found["arm"]}))
    write(out)
    return (out / "table.tex").read_text(), (out / "table.csv").read_text()


def test_latex_s_own_letters_are_text(tables):
    assert r"\input" not in tables[0]
    assert "passwd" in tables[0]


def test_no_cell_of_a_csv_is_a_formula(tables):
    """A spreadsheet takes what begins with = + - @ for one."""
    cells = [cell for line in csv.reader(tables[1].splitlines()[1:]) for cell in line]
    assert any("HYPERLINK" in cell for cell in cells)
    numbers = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
    assert [cell for cell in cells if cell[:1] in tuple("=+-@") and not numbers.fullmatch(cell)] == []
