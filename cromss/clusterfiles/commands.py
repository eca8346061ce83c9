"""What no command and no value may say, in whatever kind of file it stands."""

import re
import shlex
from collections.abc import Iterator

from cromss.clusterfiles.reading import Document, Finding, Piece

_SECRET = r"(?:PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_?KEY)"
_LITERAL = r"""(?=[^\s'"$&|;<>{}()]{6})(?!REPLACE_|/|~|\.)"""  # no variable, path or placeholder: the thing itself
_WAY_SECRET = "read it from the environment, a mounted file or a Secret made by hand"

# pattern, what is wrong, the way out
_RULES = [
    (r"(?<![\d.])0\.0\.0\.0/0|(?<![\w:])::/0", "is open to the whole internet", "name the addresses that may come in"),
    (r"(?<![\d.])0\.0\.0\.0(?![\d/])|--(?:dashboard-)?host[=\s]+['\"]?(?:::|\*)",
     "listens to every network", "listen on 127.0.0.1 and go through `ray dashboard`, ssh -L or the pod's own address"),
    (r"RAY_AUTH_MODE['\"]?\s*[=:]\s*['\"]?(?!token\b)\w+", "switches Ray's token off", "RAY_AUTH_MODE=token"),
    (r"3\.0\.0\.?dev\d*|ray-wheels|\bnightly\b", "installs a nightly build", "pin a release: ray==2.60.0"),
    (r"(?::|@)latest\b", "is whatever is newest that day", "pin a version, an image by its digest"),
    (r"\b(?:curl|wget)\b[^|;&]*\|\s*(?:sudo\s+)?(?:ba|z|da)?sh\b", "runs what a server sends",
     "download, compare its sha256, then run"),
    (r"\b(?:Amazon)?\w+FullAccess\b|\bAdministratorAccess\b|roles/(?:owner|editor)\b|roles/[\w.]+\.?[aA]dmin\b",
     "grants far more than is needed", "write a policy of the actions used"),
    (r"\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY", "holds a key", _WAY_SECRET),
    (r"\w+://[^\s/:@$'\"]+:(?!\$|REPLACE_)[^\s/@'\"]+@", "holds a password in an address", _WAY_SECRET),
    (rf"(?i:\b\w*{_SECRET}(?!\w*_(?:FILE|PATH|NAME)\b)\w*)\s*=\s*['\"]?{_LITERAL}", "holds a secret in plain text",
     _WAY_SECRET),
]  # fmt: skip
_COMPILED = [(re.compile(pattern), what, way) for pattern, what, way in _RULES]
_PLACEHOLDER = re.compile(r"(?<!s\|)REPLACE_\w+")  # not where sed fills it in
_PIP = re.compile(r"\bpip3?\s+install\s+(.*)")
_VALUED = {"-r", "--requirement", "-c", "--constraint", "-e", "--editable", "-i", "--python", "-t", "--target", "--prefix",
           "-f", "--cache-dir", "--timeout"}  # fmt: skip
_ADDRESSES = ("-url", "-links")  # long options that end so are followed by one, too


def check_piece(piece: Piece) -> Iterator[Finding]:
    """What holds for every text."""
    for pattern, what, way in _COMPILED:
        for match in pattern.finditer(piece.text):
            yield Finding(piece.line_of(match[0]), f"{_shown(match[0])} {what}", way)
    for word in dict.fromkeys(_PLACEHOLDER.findall(piece.text)):
        yield Finding(piece.line_of(word), f"{word} waits for its value", "fill it in", fill_in=True)
    for match in _PIP.finditer(piece.text):
        yield from _check_pip(piece, match[1])


def check_starts(piece: Piece, authenticated: bool = False) -> Iterator[Finding]:
    """`ray start` and `mlflow server`. `authenticated`: RAY_AUTH_MODE=token is exported further up."""
    if re.search(r"\bray\s+start\b", piece.text):
        line = piece.line_of("ray start")
        if not authenticated and not re.search(r"RAY_AUTH_MODE=['\"]?token\b", piece.text):
            yield Finding(
                line, "ray start without a token: whoever reaches a port runs code", "RAY_AUTH_MODE=token before it"
            )
        if "--head" in piece.text and not re.search(
            r"--dashboard-host[=\s]+['\"]?(127\.0\.0\.1|localhost)", piece.text
        ):
            yield Finding(
                line, "ray start --head does not say where its dashboard listens", "--dashboard-host=127.0.0.1"
            )
    if re.search(r"\bmlflow['\"]?\s+server\b", piece.text):
        for flag, why in (
            ("--app-name", "whoever reaches it may delete every run"),
            ("--allowed-hosts", "any name is it"),
        ):
            if flag not in piece.text:
                way = "--app-name basic-auth" if flag == "--app-name" else "--allowed-hosts NAME:PORT"
                yield Finding(piece.line_of(" server"), f"mlflow server without {flag}: {why}", way)


def check_keys(document: Document) -> Iterator[Finding]:
    """What a key gives away: `password: hunter2`, `{name: X_TOKEN, value: ...}`, `RAY_AUTH_MODE: disabled`."""
    for path, value in document.leaves():
        key = path[-1] if path else ""
        if key == "value":
            key = document.get(*path[:-1], "name") or ""
        if key == "RAY_AUTH_MODE" and value != "token":
            yield Finding(document.line(*path), f"{key}: {value} switches Ray's token off", "RAY_AUTH_MODE: token")
        named = isinstance(key, str) and re.search(rf"(?i){_SECRET}$", key)
        if named and isinstance(value, str) and re.match(_LITERAL, value):
            yield Finding(document.line(*path), f"{key} holds a secret in plain text", _WAY_SECRET)


def check_image(image: str, line: int) -> Iterator[Finding]:
    """An image is pinned by its digest: a tag can be moved."""
    if "REPLACE_" not in image and not re.search(r"@sha256:[0-9a-f]{64}$", image):
        yield Finding(line, f"image {image} is not pinned", "name@sha256:...: a tag can be moved, a digest cannot")


def _check_pip(piece: Piece, rest: str) -> Iterator[Finding]:
    try:
        words = shlex.split(re.split(r"&&|\|\||[;|<>](?![=\d])", rest)[0], comments=True)
    except ValueError:
        words = rest.split()
    skip = False
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if skip:
            skip = False
            continue
        if word in ("-r", "--requirement") and "--require-hashes" not in words:
            yield Finding(piece.line_of(after or word), f"pip install -r {after} without hashes", "--require-hashes")
        skip = word in _VALUED or (word.startswith("--") and word.endswith(_ADDRESSES))
        if word.startswith(("-", ".", "/", "~", "$")) or "==" in word or "#sha256=" in word or "REPLACE_" in word:
            continue
        yield Finding(
            piece.line_of(word),
            f"pip install {word} is not pinned",
            "name==version, or a file of hashes with --require-hashes",
        )


def _shown(text: str) -> str:
    """A match for people: never a secret itself."""
    text = " ".join(text.split())
    if "=" in text:
        text = text.partition("=")[0] if re.search(rf"(?i){_SECRET}", text) else text
    text = re.sub(r"(://[^:]+:)[^@]+@", r"\1...@", text)
    return re.sub(r"AKIA\w+", "AKIA...", text).strip("'\" ")
