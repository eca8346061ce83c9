"""What a patch store says about itself: the manifest, the schema of a row, the dtype of a pixel."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pydantic
from isal import isal_zlib

from cromss.contract import Contract, Encoding
from cromss.data.statistics import BandStatistics
from cromss.files import Folder, fault
from cromss.sensors import sensor
from cromss.settings import Settings, validate

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"

MAPS = ("label", "clean", "valid")  # the pixel columns that are no imagery
MAX_BYTES = 2**30  # of the pixels of one patch


def pixel_dtype(modality: str, encoding: Encoding) -> np.dtype:
    """What a modality's pixels are stored as."""
    if encoding == "uint8":
        return np.dtype(np.uint8)
    return np.dtype(np.uint16 if sensor(modality).unit == "DN" else np.float32)


def row_bytes(contracts: Mapping[str, Contract], encoding: Encoding, size: tuple[int, int]) -> list[int]:
    """Bytes of each pixel column of a row."""
    pixels = size[0] * size[1]
    images = [pixels * len(one.bands) * pixel_dtype(name, encoding).itemsize for name, one in contracts.items()]
    return [*images, *[pixels] * len(MAPS)]


def checksum(cell: bytes | np.ndarray, patch_id: str) -> int:
    """CRC-32 of a cell's bytes, started from the patch's name: pixels of another patch do not pass either."""
    return isal_zlib.crc32(cell, isal_zlib.crc32(patch_id.encode()))


def checksum_column(name: str) -> str:
    """The column that holds the checksums of a pixel column."""
    return f"{name}_crc32"


Count = Annotated[int, pydantic.Field(ge=0, lt=2**31)]  # so many fit the plan's arrays


class Shard(Settings):
    """One Parquet file. `blocks` in file order: (n acquisitions, rows a row group, split, fold)."""

    path: str
    rows: Count
    bytes: int
    sha256: str
    blocks: tuple[tuple[Count, Count, str, Count], ...]

    @pydantic.field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
            raise ValueError(f"shard path {path!r}: must be relative to the store and stay inside it; ingest again")
        return path

    @property
    def row_groups(self) -> int:
        return sum(block[0] for block in self.blocks)


class Manifest(Settings):
    """What is in a store.

    contracts   modality -> bands, units, scaling, statistics of the training split
    histogram   split -> class name (or "unlabelled") -> pixels
    seasons     split -> for the k-th acquisition in time order, class name -> pixels
    statistics  split -> modality -> one entry a band
    kind        `shards`: pixels in Parquet files; `live`: rows are made from the source's own files while they are read,
                and histogram, seasons and statistics are those of a sample
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["shards", "live"] = "shards"
    encoding: Encoding
    size: tuple[int, int]
    scheme: str
    contracts: dict[str, Contract]
    has_clean: bool
    places: dict[str, int]  # split -> number
    patches: dict[str, int]
    histogram: dict[str, dict[str, int]]
    seasons: dict[str, tuple[dict[str, int], ...]]
    statistics: dict[str, dict[str, tuple[BandStatistics, ...]]]
    shards: tuple[Shard, ...]
    source: dict[str, Any]

    @pydantic.model_validator(mode="after")
    def _of_patches(self) -> "Manifest":
        cells = sum(row_bytes(self.contracts, self.encoding, self.size))
        if min(self.size) < 1 or cells > MAX_BYTES:
            raise ValueError(f"patches of {self.size[0]} x {self.size[1]} pixels: not those of a patch store")
        return self

    @property
    def bands(self) -> dict[str, tuple[str, ...]]:
        """modality -> band names in the order of their axis."""
        return {name: contract.bands for name, contract in self.contracts.items()}


@dataclass(frozen=True)
class Layout:
    """What all rows of a store have in common: label scheme, bands per modality, (H, W), encoding, and products where they
    are others than the sensors' usual ones."""

    scheme: str
    bands: dict[str, tuple[str, ...]]
    size: tuple[int, int]
    encoding: Encoding
    products: dict[str, str] = field(default_factory=dict)

    @property
    def contracts(self) -> dict[str, Contract]:
        """modality -> contract, without statistics."""
        return {
            name: Contract.of(name, bands, self.encoding, self.products.get(name, ""))
            for name, bands in self.bands.items()
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """The pixel columns."""
        return (*self.bands, *MAPS)

    @property
    def schema(self) -> pa.Schema:
        """A row. Its metadata describe the pixels to whoever opens a shard without the manifest."""
        described = {
            name: contract.model_dump(mode="json", exclude={"mean", "std"})
            | {"dtype": pixel_dtype(name, self.encoding).str, "shape": [len(contract.bands), *self.size]}
            for name, contract in self.contracts.items()
        }
        metadata = {"schema_version": SCHEMA_VERSION, "scheme": self.scheme, "pixels": described}
        text = pa.string()
        return pa.schema(
            [
                ("patch_id", text),
                ("location_id", text),
                ("tile", text),
                ("acquisition", text),
                ("slot", pa.int16()),
                ("split", text),
                ("fold", pa.int32()),
                *((name, pa.large_binary()) for name in self.columns),
                *((checksum_column(name), pa.uint32()) for name in self.columns),
                ("crs", text),
                ("transform", pa.list_(pa.field("element", pa.float64()))),  # Parquet's name for it
                ("lon", pa.float64()),
                ("lat", pa.float64()),
                ("notes", text),
            ],
            metadata={"cromss": json.dumps(metadata)},
        )


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Make a folder of shards a store."""
    try:
        folder.write(MANIFEST, json.dumps(manifest.model_dump(mode="json")).encode())
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({fault(error)}); free some space") from None


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a store. Raises ValueError when there is none that this version can read."""
    where = f"{folder}/{MANIFEST}"
    try:
        found = json.loads(folder.read(MANIFEST).decode())
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: is not a patch store (no {MANIFEST}; an unfinished ingest has none): "
            "make one with python -m cromss.ingest"
        ) from None
    except OSError as error:
        raise ValueError(f"{where}: cannot be read ({fault(error)})") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: cannot be read ({error}); ingest again") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        way = "update cromss, or ingest again with this one" if version > SCHEMA_VERSION else "ingest again"
        raise ValueError(
            f"{folder}: is a patch store of schema version {version}, this cromss reads {SCHEMA_VERSION}: {way}"
        )
    try:
        return validate(Manifest, found)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{where}: is not a manifest ({str(error).splitlines()[0]}); ingest again") from None
