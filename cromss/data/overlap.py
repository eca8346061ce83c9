"""Have the encoders seen what they are judged on?"""

from typing import Any

from cromss.data.footprints import footprints, shared_ground
from cromss.data.store import PatchStore


def overlap(data: PatchStore, downstream: PatchStore, protocol: str) -> dict[str, Any]:
    """How many downstream tiles are scored, how many of them share ground with a tile that is pretrained on, and one
    such pair."""
    scored = footprints(downstream, ("test",) if protocol == "holdout" else ("train", "test"))
    shared = shared_ground(scored, footprints(data, ("train",)))
    return {"tiles": len(scored), "shared": len(shared), "example": list(shared[0]) if shared else []}


def warning(found: dict[str, Any]) -> str:
    """The line that says so."""
    return (
        f"warning: {found['shared']} of {found['tiles']} downstream test tiles lie on pretraining tiles "
        f"({' on '.join(found['example'])}): the encoders have seen the ground they are judged on; "
        f"ingest one of the two stores without it (--exclude, --split halves)"
    )
