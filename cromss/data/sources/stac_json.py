"""Finding STAC items in JSON files: what is read is data, not trust.

An href leads to a local file below the folder of the JSON or nowhere. Links and `..` are followed before that is judged;
nothing remote is ever opened.
"""

import functools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import pystac

_LARGEST = 2**29  # bytes of one JSON


@dataclass(frozen=True)
class Fault:
    """An item or a JSON that cannot be used."""

    name: str
    reason: str


def local_file(href: str, base: Path, root: Path) -> Path:
    """The file that an href in a JSON of the folder `base` means. Raises ValueError unless it is local and, with links
    and `..` followed, below `root`."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", href)
    if scheme and scheme[1].lower() == "file":
        parts = urlsplit(href)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{href}: is on another machine; only local files are read")
        href = unquote(parts.path)
    elif scheme or href.startswith("//"):
        raise ValueError(f"{href}: is remote; only local files are read, download it first")
    if href.startswith("/vsi"):
        raise ValueError(f"{href}: is no plain file; only local files are read")
    try:
        file, root = (base / href).resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
        raise ValueError(f"{href!r}: cannot be a file ({error})") from None
    if not file.is_relative_to(root):
        raise ValueError(f"{href}: leads out of {root}; only files below the folder of the JSON are read")
    return file


def find_items(path: Path) -> Iterator[tuple[Any, Path, Path]]:
    """(item as a dict or a Fault, folder of its JSON, folder that nothing may leave)."""
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    top = path.resolve()
    if top.is_dir():
        root = top
        catalogues = [name for name in ("collection.json", "catalog.json") if (root / name).is_file()]
        starts = catalogues[:1] or _json_below(root)
    else:
        root = top.parent
        catalogues = starts = [top.name]
    reader = _reader_class()(root)
    seen: set[Path] = set()
    for start in starts:
        for item, base in _walk(start, reader, seen):
            if isinstance(item, Fault) and catalogues and item.name == start:
                raise ValueError(f"{path}: {start} {item.reason}")
            yield item, base, root


def _json_below(folder: Path) -> Iterator[str]:
    for here, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith((".", "__")))
        yield from (
            os.path.relpath(os.path.join(here, name), folder)
            for name in sorted(files)
            if name.endswith((".json", ".geojson")) and name[0] != "."
        )


def _walk(start: str, reader: "pystac.StacIO", seen: set[Path]) -> Iterator[tuple[Any, Path]]:
    """The items at and behind a JSON, depth first, each JSON once."""
    import pystac

    waiting = [(start, reader.root)]
    while waiting:
        href, base = waiting.pop()
        try:
            file = local_file(href, base, reader.root)
            if file in seen:
                continue
            seen.add(file)
            found = reader.read_json(str(file))
            kind = found.get("type") if isinstance(found, dict) else None
            if kind == "FeatureCollection":
                features = found.get("features")
                if not isinstance(features, list):
                    raise ValueError("a FeatureCollection without features")
                yield from ((feature, file.parent) for feature in features)
            elif kind == "Feature":
                yield found, file.parent
            elif kind in ("Catalog", "Collection"):
                cls = pystac.Collection if kind == "Collection" else pystac.Catalog
                links = cls.from_dict(found, migrate=False).get_links()
                below = [link.target for link in links if link.rel in ("item", "child", "items")]
                waiting += [(str(target), file.parent) for target in reversed(below)]
            else:
                raise ValueError("is neither a STAC item, nor a collection of items, nor a catalogue")
        except unreadable() as error:
            yield Fault(href, one_line(error, "is no STAC JSON")), base


@functools.cache
def _reader_class() -> type:
    try:
        import pystac
    except ImportError:
        raise ValueError("stac: needs pystac; pip install 'cromss[formats]'") from None

    class LocalIO(pystac.StacIO):
        """Reads JSON below one folder and nothing else."""

        def __init__(self, root: Path):
            super().__init__()
            self.root = root

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            file = local_file(os.fspath(source), self.root, self.root)
            if not file.is_file():
                raise ValueError("missing")
            if file.stat().st_size > _LARGEST:
                raise ValueError(f"larger than {_LARGEST >> 20} MiB")
            return file.read_text(encoding="utf-8")

        def write_text(self, dest: Any, txt: str, *args: Any, **kwargs: Any) -> None:
            raise ValueError("a source is never written")

    return LocalIO


def unreadable() -> tuple[type[Exception], ...]:
    """What pystac and json raise over a JSON that is none, or no STAC."""
    import pystac

    ours = (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, RecursionError)
    return (pystac.STACError, pystac.STACTypeError, *ours)


def one_line(error: Exception, what: str) -> str:
    """The reason in one line, `what` before it where only pystac's internals speak."""
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"is not JSON ({error})"
    text = " ".join(str(error).split())
    return text if type(error) is ValueError else f"{what} ({type(error).__name__}: {text[:120]})"
