"""The tutorial of the README runs, in order, and prints what it says."""

import ast
import contextlib
import doctest
import io
import itertools
import re
import time
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SAYS = "# >"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def tutorial(text: str) -> str:
    """What stands between the markers. Raises ValueError unless both are there, once."""
    parts = re.split(r"<!-- (/?tutorial) -->\n?", text)
    if parts[1::2] != ["tutorial", "/tutorial"]:
        raise ValueError(f"expected <!-- tutorial --> ... <!-- /tutorial -->, once; found {parts[1::2]}")
    return parts[2]


def blocks(text: str) -> list[str]:
    """The Python blocks of a Markdown text."""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def steps(block: str) -> list[tuple[str, str]]:
    """(statement, what it is said to print or be worth; "" where nothing is said), in order."""
    lines, found = block.splitlines(), []
    starts = [node.lineno - 1 for node in ast.parse(block).body] + [len(lines)]
    for start, end in itertools.pairwise(starts):
        said = [line.removeprefix(SAYS).lstrip(" ") for line in lines[start:end] if line.startswith(SAYS)]
        code = [line for line in lines[start:end] if not line.startswith(SAYS)]
        found.append(("\n".join(code), "".join(f"{line}\n" for line in said)))
    return found


def printed(code: str, names: dict) -> str:
    """Run a statement as a notebook's cell would: what it prints, then the value of an expression."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        [node] = ast.parse(code).body
        if isinstance(node, ast.Expr):
            value = eval(compile(ast.Expression(node.value), "<tutorial>", "eval"), names)
            if value is not None:
                print(repr(value))
        else:
            exec(compile(code, "<tutorial>", "exec"), names)
    return out.getvalue()


def run(text: str) -> int:
    """Run the tutorial of a document; how many outputs were compared. Raises AssertionError where one differs."""
    names, compared = {"__name__": "tutorial"}, 0
    for block in blocks(tutorial(text)):
        for code, said in steps(block):
            got = printed(code, names)
            if said:
                assert doctest.OutputChecker().check_output(said, got, FLAGS), f"{code}\nsaid:\n{said}\nprinted:\n{got}"
                compared += 1
    return compared


def wrapped(*python: str) -> str:
    return "\n".join(["<!-- tutorial -->", *(f"```python\n{one}\n```" for one in python), "<!-- /tutorial -->"])


def test_the_tutorial_prints_what_it_says_and_draws_its_pictures(tmp_path, monkeypatch):
    from PIL import Image

    text = README.read_text()
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    assert run(text) >= 5
    print(f"{time.monotonic() - began:.1f} s")
    drawn = re.findall(r'savefig\("(.+?)"', tutorial(text))
    assert drawn
    for name in drawn:
        image = Image.open(tmp_path / name).convert("RGB")
        assert min(image.size) > 100
        assert len(image.getcolors(10**6)) > 200  # more than a blank sheet


def test_the_tutorial_leaves_no_link_to_this_machine():
    assert not re.search(r"/(work|tmp|home)/", tutorial(README.read_text()))


@pytest.mark.parametrize(
    "text", ["", "<!-- tutorial -->\n", wrapped("1") * 2, "<!-- /tutorial --> <!-- tutorial -->"], ids=range(4)
)
def test_a_document_without_its_markers_is_a_failure(text):
    with pytest.raises(ValueError, match="expected <!-- tutorial -->"):
        run(text)


def test_statements_share_their_names_across_blocks_and_outputs_belong_to_the_statement_above():
    assert (
        run(wrapped("a = 1\nprint(a)\n# > 1\na + 1\n# > 2", "for i in range(2):\n    print(a + i)\n# > 1\n# > 2")) == 3
    )


@pytest.mark.parametrize("python", ["1 + 1\n# > 3", "print('x')\n# > y", "a = 1\n# > 1", "1 / 0"])
def test_what_is_not_so_fails(python):
    with pytest.raises((AssertionError, ZeroDivisionError)):
        run(wrapped(python))
