"""SkyPilot tasks, Dockerfiles, scripts, systemd units."""

import re
from collections.abc import Iterator
from typing import Any

from cromss.clusterfiles.commands import check_image, check_keys, check_piece, check_starts
from cromss.clusterfiles.reading import Document, Finding, Piece


def is_skypilot(value: Any) -> bool:
    return isinstance(value, dict) and "resources" in value and ("run" in value or "setup" in value)


def check_skypilot(document: Document) -> Iterator[Finding]:
    for path, piece in document.pieces():
        yield from check_piece(piece)
        if path[0] in ("run", "setup"):
            yield from check_starts(piece, authenticated=document.get("envs", "RAY_AUTH_MODE") == "token")
        if path[-1] == "image_id" and piece.text.startswith("docker:"):
            yield from check_image(piece.text.removeprefix("docker:"), piece.first)
        if "ports" in path:
            yield Finding(piece.first, f"ports: {piece.text} is opened to the internet", "leave ports out; ssh -L")
    yield from check_keys(document)
    for path, value in document.leaves("resources"):
        if "ports" in path and not isinstance(value, str):
            yield Finding(document.line(*path), f"ports: {value} is opened to the internet", "leave ports out; ssh -L")


def check_dockerfile(pieces: list[Piece]) -> Iterator[Finding]:
    user, stages = None, set()
    for piece in pieces:
        yield from check_piece(piece)
        yield from check_starts(piece, authenticated=False)
        words = piece.text.split()
        if words[0].upper() == "FROM":
            image = next(word for word in [*words[1:], ""] if not word.startswith("--"))
            if image not in stages and image != "scratch":
                yield from check_image(image, piece.line_of(image))
            if len(words) > 3 and words[-2].upper() == "AS":
                stages.add(words[-1])
            user = None
        if words[0].upper() == "USER":
            user = words[1]
        if words[0].upper() == "ADD" and re.search(r"https?://", piece.text) and "--checksum=" not in piece.text:
            yield Finding(piece.first, "ADD of an address without its checksum", "ADD --checksum=sha256:...")
    if user in (None, "root", "0"):
        yield Finding(
            pieces[-1].last if pieces else 1, "the image runs as root", "USER with a number that is not 0, at the end"
        )


def check_script(pieces: list[Piece]) -> Iterator[Finding]:
    authenticated = False
    for piece in pieces:
        authenticated = authenticated or bool(
            re.search(r"^(export\s|Environment=).*RAY_AUTH_MODE=['\"]?token\b", piece.text)
        )
        yield from check_piece(piece)
        yield from check_starts(piece, authenticated)
