"""The synthetic Earth as two stores: somewhere to pretrain, somewhere else to be judged."""

from pathlib import Path

from cromss.data.store import PatchStore
from cromss.data.synthetic import SyntheticEarth
from cromss.ingest import ingest


def synthetic_stores(folder: Path, earth: SyntheticEarth | None = None) -> tuple[Path, Path]:
    """(pretraining store, downstream store) under `folder`, made unless they are there already."""
    earth = earth or SyntheticEarth()
    data, downstream = folder / "pretraining", folder / "downstream"
    for path, source in ((data, earth), (downstream, earth.model_copy(update={"downstream": True}))):
        if (path / "manifest.json").exists():
            PatchStore.open(path)
        else:
            ingest(source, path)
    return data, downstream
