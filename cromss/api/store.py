"""`cromss.open_store`: a patch store by its path."""

from pathlib import Path

from cromss.data.cache import CacheConfig
from cromss.data.store import PatchStore


def open_store(path: str | Path, *, cache: str | Path | None = None) -> PatchStore:
    """The patch store at a path or a bucket's URI (s3://, gs://), as `cromss ingest` writes it.

    cache   a folder on this machine that keeps what was read of a bucket's store

    Opening compares size, footer, row count and contract of every shard with the manifest and reads no pixels. Raises
    ValueError when it is no store, of another version, or damaged; the message says what to do.

    >>> import cromss
    >>> store = cromss.open_store("store")
    >>> len(store)                              # patches: every acquisition of every place
    8
    >>> print(store.describe())                 # doctest: +ELLIPSIS
    patch store  ...store
    patches      8 of 4 places, 64 x 64 pixels, up to 2 acquisitions
    encoding     uint8, clean labels known
    s1           Sentinel-1: VV VH [dB], 8-bit codes of mean ± 2 std; digest ...
    s2           Sentinel-2 L1C: B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12 [DN], 8-bit codes of mean ± 2 std; digest ...
    labels       dynamic-world
    train        4 places, 4 folds: water ..., trees ..., grass ...
    shards       1, 0.001 GB
    digest       ...
    >>> store.splits, store.bands["s1"], store.scheme.classes[:3]
    (['train'], ('VV', 'VH'), ('water', 'trees', 'grass'))

    `sample` reads patches of distinct places, decoded to the sensors' units (dB, DN), the same ones for the same seed:

    >>> patch = store.sample(2, split="train", seed=0)[0]
    >>> patch.images["s2"].shape, patch.label.shape, patch.acquisition
    ((13, 64, 64), (64, 64), '2021-01')
    """
    return PatchStore.open(path, cache=CacheConfig(folder=str(cache)) if cache else None)
