"""What a patch store holds, in pictures: classes by season, histograms, a map, patches; and the pairs of a leakage audit.

    portrait(store, out)     classes.png, histograms.png, map.png, contact_sheet.png
    figures(store)           the same as figures, for a page

Shares and histograms come from the manifest, the map and the patches from the shards.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from cromss.data.store import PatchStore
from cromss.plot import STYLE
from cromss.portrait.classes import classes
from cromss.portrait.histograms import histograms
from cromss.portrait.map import locations, positions
from cromss.portrait.sheets import PATCHES, chosen, contact_sheet, pair_sheet

__all__ = ["classes", "contact_sheet", "figures", "histograms", "locations", "pair_sheet", "portrait", "save", "sketch"]


def portrait(store: PatchStore, out: str | Path, seed: int = 0) -> list[Path]:
    """Write the pictures of a store into the folder `out`; `seed` chooses the patches of the contact sheet."""
    return save(figures(store, seed), out)


def sketch(store: PatchStore, out: Path) -> None:
    """The pictures beside a run, made once. A store that cannot be drawn is a line on stderr: no run fails for it."""
    if (out / "contact_sheet.png").exists():
        return
    try:
        portrait(store, out)
    except (ValueError, OSError) as error:
        print(f"no pictures of {store.path}: {' '.join(str(error).split())}", file=sys.stderr)


def figures(store: PatchStore, seed: int = 0) -> dict[str, Figure]:
    """name -> figure."""
    manifest = store.manifest
    return {
        "classes": classes(manifest.seasons, manifest.histogram, store.scheme, store.size),
        "histograms": histograms(manifest.statistics, store.contracts),
        "map": locations(*positions(store), places=int(store.blocks.rows.sum())),
        "contact_sheet": contact_sheet(chosen(store, PATCHES, seed), store.scheme),
    }


def save(drawn: Mapping[str, Figure], out: str | Path) -> list[Path]:
    """`<name>.png` for every figure. Raises ValueError when the folder cannot be written."""
    out = Path(out)
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            for name, figure in drawn.items():
                figure.savefig(out / f"{name}.png", dpi=150, bbox_inches="tight", pad_inches=0.12)
                written.append(out / f"{name}.png")
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None
    return written
