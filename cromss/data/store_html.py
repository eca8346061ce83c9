"""A store as notebooks show it: what is in it, and which classes the labels of each split have."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cromss.data.store import PatchStore

_CELL = "text-align:left;vertical-align:top;padding:2px 14px 2px 0"


def html(store: PatchStore) -> str:
    """A table: `describe()` as rows, the classes of each split as a bar in the scheme's colours."""
    height, width = store.size
    rows = {
        "patches": f"{len(store):,} of {int(store.blocks.rows.sum()):,} places, {height} x {width} pixels, "
        f"up to {store.slots} acquisitions",
        "encoding": store.encoding + (", clean labels known" if store.has_clean else ""),
        **{name: str(contract) for name, contract in store.contracts.items()},
        "labels": store.scheme.title,
    }
    body = [_row(name, escape(text)) for name, text in rows.items()]
    body += [_row(split, f"{store.places(split):,} places {_bar(store, split)}") for split in store.splits]
    return f"<b>patch store</b> <code>{escape(str(store.folder))}</code><table>{''.join(body)}</table>"


def _row(name: str, cell: str) -> str:
    return f'<tr><th style="{_CELL}">{escape(name)}</th><td style="{_CELL}">{cell}</td></tr>'


def _bar(store: PatchStore, split: str) -> str:
    """The shares of the classes, each with its name and share where the mouse rests."""
    scheme, counts = store.scheme, store.manifest.histogram[split]
    total = max(1, sum(counts.values()))
    colours = dict(zip(scheme.classes, scheme.colours, strict=True))
    parts = [
        f'<span title="{escape(name)} {count / total:.1%}" style="display:inline-block;height:12px;'
        f'width:{300 * count / total:.1f}px;background:{colours.get(name, "#E6E6E6")}"></span>'
        for name, count in counts.items()
        if count
    ]
    return f'<div style="white-space:nowrap;line-height:0">{"".join(parts)}</div>'
