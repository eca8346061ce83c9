"""Markdown whose cells and lines stay what they are, whatever stands in them."""

from typing import Any


def table(titles: tuple[str, ...], rows: Any) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(plain(value) for value in line)} |" for line in lines)


def plain(value: Any) -> str:
    """One line that opens no cell, heading or tag."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
