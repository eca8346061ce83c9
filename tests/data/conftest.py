"""A store of tiny patches whose pixels say which place and acquisition they are."""

import numpy as np
import pytest

from cromss.contract import physical
from cromss.data.patch import Patch
from cromss.data.store import PatchStore, StoreWriter

SIZE = (16, 16)
BANDS = {"s1": ("VV", "VH"), "s2": ("B2", "B3", "B4")}


def tiny_place(place: int, n: int) -> list[Patch]:
    """n acquisitions. The label starts with the place (two digits to base 9), then the acquisition."""
    rng = np.random.default_rng(place)
    patches = []
    for acquisition in range(n):
        label = rng.integers(0, 9, SIZE).astype(np.uint8)
        label[0, :3] = place // 9, place % 9, acquisition
        valid = np.ones(SIZE, bool)
        valid[:, : place % 5] = False
        patches.append(
            Patch(
                patch_id=f"L{place:02d}/{acquisition}",
                location_id=f"L{place:02d}",
                acquisition=str(acquisition),
                images={
                    "s1": rng.normal(-15, 4, (2, *SIZE)).astype(np.float32),
                    "s2": rng.integers(0, 4000, (3, *SIZE)).astype(np.uint16),
                },
                contracts={name: physical(name, bands) for name, bands in BANDS.items()},
                label=label,
                clean=(label + 1).clip(max=8),
                valid=valid,
                crs="EPSG:32632",
                notes={"s2_offset": "none"},
            )
        )
    return patches


def write_tiny(path, places=range(60), n_of=lambda place: (1, 2, 4)[place % 3], folds=4, **options) -> PatchStore:
    """A store at `path`; every tenth place is in the split `test`."""
    writer = StoreWriter(path, scheme="dynamic-world", bands=BANDS, size=SIZE, source={"kind": "tiny"}, **options)
    with writer:
        for fold in range(folds):
            for place in places:
                if place % folds == fold:
                    writer.add(tiny_place(place, n_of(place)), "test" if place % 10 == 9 else "train", fold)
            writer.end_fold()
    return PatchStore.open(path)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> PatchStore:
    """60 places, 54 of them for training, with 1, 2 or 4 acquisitions, in 4 folds; several shards."""
    return write_tiny(tmp_path_factory.mktemp("stores") / "tiny", shard_bytes=60_000)


@pytest.fixture
def make_store(tmp_path):
    """A store of one's own: make_store(name, **options of write_tiny)."""
    return lambda name="store", **options: write_tiny(tmp_path / name, **options)


@pytest.fixture(scope="session")
def place_patches():
    """place_patches(place, n): what write_tiny wrote for it."""
    return tiny_place
