"""Cluster files with their line numbers: YAML and JSON documents, and the commands in them or in a script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

_MOST_NODES, _DEEPEST = 100_000, 60  # aliases of aliases: a file of some lines can hold more than any memory


@dataclass(frozen=True, order=True)
class Finding:
    """Something that a cluster file may not say, and the way out. `fill_in`: a placeholder that waits for its value."""

    line: int
    what: str
    way_out: str
    fill_in: bool = False


@dataclass(frozen=True)
class Piece:
    """A command, or any other text, of lines `first` to `last` of the file whose lines are `source`."""

    text: str
    first: int
    last: int
    source: tuple[str, ...]

    def line_of(self, part: str) -> int:
        """The line that `part` stands on, as far as it can be told: a folded scalar joins its lines."""
        words = part.split()
        for word in (part, words[-1] if words else part):
            for number in range(self.first, self.last + 1):
                if word in self.source[number - 1]:
                    return number
        return self.first


@dataclass(frozen=True)
class Document:
    """One YAML document: its value, and the line of everything in it by its path of keys and indices."""

    value: Any
    lines: dict[tuple, tuple[int, int]]
    source: tuple[str, ...]

    def line(self, *path: Any) -> int:
        """The line of what lies at `path`, or of what is nearest above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, (1, 1))[0]

    def get(self, *path: Any) -> Any:
        """What lies at `path`; None where there is nothing."""
        value = self.value
        for step in path:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value

    def leaves(self, *path: Any) -> Iterator[tuple[tuple, Any]]:
        """(path, value) of everything below that is neither mapping nor list."""
        value = self.get(*path)
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from self.leaves(*path, key)
        else:
            yield path, value

    def pieces(self, *path: Any) -> Iterator[tuple[tuple, Piece]]:
        """The texts below, scripts cut into commands."""
        for where, value in self.leaves(*path):
            if isinstance(value, str):
                first, last = self.lines.get(where, (self.line(*where),) * 2)
                for piece in _commands(value, first, last, self.source):
                    yield where, piece


def documents(text: str) -> list[Document]:
    """The YAML (or JSON) documents of a file. Raises ValueError for what is none, or too large unfolded."""
    source = tuple(text.splitlines())
    found = []
    try:
        loader = yaml.SafeLoader(text)
        while loader.check_node():
            node = loader.get_node()
            lines: dict[tuple, tuple[int, int]] = {}
            _locate(node, (), lines, node.start_mark.line + 1)
            value = loader.construct_document(node)
            if value is not None:
                found.append(Document(value, lines, source))
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None
    return found


def script(text: str) -> list[Piece]:
    """The commands of a shell script, a Dockerfile or a unit file; without comments."""
    source = tuple(text.splitlines())
    return list(_commands(text, 1, len(source), source))


def _locate(node: Any, path: tuple, lines: dict, first: int) -> None:
    if len(lines) > _MOST_NODES or len(path) > _DEEPEST:
        raise ValueError("holds aliases of aliases, or nests without end: it cannot be read")
    last = max(first, node.end_mark.line + (node.end_mark.column > 0))
    lines[path] = (first, last)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag.endswith(":merge"):
                for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    below: dict[tuple, tuple[int, int]] = {}
                    _locate(one, path, below, first)
                    lines.update({where: place for where, place in below.items() if where not in lines})
            elif isinstance(key, yaml.ScalarNode):
                name = yaml.safe_load(key.value) if key.tag.endswith(":int") else key.value
                _locate(value, (*path, name), lines, key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _locate(value, (*path, index), lines, value.start_mark.line + 1)


def _commands(text: str, first: int, last: int, source: tuple[str, ...]) -> Iterator[Piece]:
    """Lines joined where they end in a backslash, comments dropped."""
    if "\n" not in text.strip():
        yield Piece(text.strip(), first, last, source)
        return
    at, gathered, begun = first, "", first
    for line in text.splitlines():
        here = next((n for n in range(at, last + 1) if source[n - 1].strip() == line.strip()), at)
        at = min(here + 1, last)
        if not gathered:
            begun = here
        bare = uncommented(line)
        if bare.endswith("\\"):
            gathered += bare[:-1].strip() + " "
            continue
        if (gathered + bare).strip():
            yield Piece((gathered + bare).strip(), begun, here, source)
        gathered = ""
    if gathered.strip():
        yield Piece(gathered.strip(), begun, last, source)


_COMMENT = re.compile(r"""((?:[^'"#]|'[^']*'|"(?:\\.|[^"\\])*"|(?<=\S)#)*)""")


def uncommented(line: str) -> str:
    """A line of shell without its comment: a # at its start or after a space, outside quotes."""
    return _COMMENT.match(line)[1].rstrip() if "#" in line else line.rstrip()
