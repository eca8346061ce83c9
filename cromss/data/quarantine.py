"""Training without the shards that do not hold: found once, written down, and left out of the plan from then on."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from cromss.data.cache import CacheConfig
from cromss.data.store import Lost, PatchStore
from cromss.files import Folder


def opened(
    where: str | Path | Folder,
    *,
    quarantine: bool = False,
    record: Path | None = None,
    cache: CacheConfig | None = None,
    say: Callable[[str], None] = print,
) -> PatchStore:
    """The store, checked. With `quarantine`, without its damaged shards, each of them named to `say`.

    A quarantine reads every byte once (sha256) and is remembered in `record`: the plan of a run that is resumed is the same
    plan, and another shard that breaks meanwhile stops it by name. Raises ValueError for a store that does not hold.
    """
    if not quarantine:
        return PatchStore.open(where, cache=cache)
    whole = PatchStore.open(where, check=False, cache=cache)
    lost = _remembered(record, whole.digest)
    if lost is None:
        lost = tuple(whole.damaged(content=True))
        if record is not None:
            folder = Folder.of(record.parent)
            folder.make()
            folder.write(
                record.name, json.dumps({"store": whole.digest, "lost": [asdict(one) for one in lost]}).encode()
            )
    for one in lost:
        say(f"quarantine: {one} left out")
    try:
        return PatchStore.open(where, without=lost, cache=cache)
    except ValueError as error:
        if not lost or record is None:
            raise
        raise ValueError(
            f"{error} It broke after the quarantine of this run was decided ({record}), and the rows of a run do not change "
            f"under way: write it again with --repair, or begin again with another --out"
        ) from None


def _remembered(record: Path | None, digest: str) -> tuple[Lost, ...] | None:
    try:
        found = json.loads(record.read_text()) if record else {}
    except (OSError, ValueError):
        return None
    return tuple(Lost(**one) for one in found["lost"]) if found.get("store") == digest else None
