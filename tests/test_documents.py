"""What the documents tell a user to type is what the verbs take."""

import re
from pathlib import Path

import pytest

from cromss.__main__ import VERBS, main

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "cluster").rglob("*"), *(ROOT / "tune_spaces").glob("*.py"))
    if path.suffix in (".md", ".yaml", ".sh", ".service", ".py")
)


def commands():
    """(file, verb, its options) of every `python -m cromss.<verb> ...`, lines that end in a backslash joined."""
    for path in FILES:
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        for verb, rest in re.findall(r"python -m cromss\.([a-z_]+)((?: [^\n`]*)?)", text):
            yield path.relative_to(ROOT), verb, re.findall(r"(?<=\s)--[a-z][a-z-]*", rest.partition(" #")[0])


# verbs whose --help has several pages
PAGES = {"ingest": ("", "geotiff", "ssl4eo", "dfc2020"), "bench": ("", "step", "predict")}


@pytest.mark.parametrize("verb", sorted({verb for _, verb, _ in commands()}))
def test_every_option_in_a_document_is_one_of_its_verbs(verb, capsys):
    assert verb in VERBS
    for page in PAGES.get(verb, ("",)):
        with pytest.raises(SystemExit):
            main([verb, *([page] if page else []), "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    used = {option: str(file) for file, name, options in commands() if name == verb for option in options}
    assert {option: file for option, file in used.items() if option not in known} == {}


def test_the_documents_name_many_commands():
    assert len(list(commands())) > 40
