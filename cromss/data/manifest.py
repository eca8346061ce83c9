"""What a patch store says about itself: the manifest, the schema of a row, the dtype of a pixel."""

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pydantic

from cromss import sensors
from cromss.settings import Settings, validate

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

Encoding = Literal["uint8", "raw"]
RAW_DTYPES = {"s1": np.dtype(np.float32), "s2": np.dtype(np.uint16)}


def pixel_dtype(modality: str, encoding: Encoding) -> np.dtype:
    """What a modality's pixels are stored as."""
    return np.dtype(np.uint8) if encoding == "uint8" else RAW_DTYPES[modality]


class Shard(Settings):
    """One Parquet file. `blocks` in file order: (n acquisitions, rows a row group, split, fold)."""

    path: str
    rows: int
    bytes: int
    sha256: str
    blocks: tuple[tuple[int, int, str, int], ...]

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
    """What is in a store. `histogram` counts pixels: split -> class name (or "unlabelled") -> pixels."""

    schema_version: int = SCHEMA_VERSION
    encoding: Encoding
    size: tuple[int, int]
    scheme: str
    bands: dict[str, tuple[str, ...]]
    units: dict[str, str]
    has_clean: bool
    places: dict[str, int]  # split -> number
    patches: dict[str, int]
    histogram: dict[str, dict[str, int]]
    shards: tuple[Shard, ...]
    source: dict[str, Any]


def row_schema(scheme: str, bands: dict[str, tuple[str, ...]], size: tuple[int, int], encoding: Encoding) -> pa.Schema:
    described = {
        name: {
            "dtype": pixel_dtype(name, encoding).str,
            "shape": [len(chosen), *size],
            "bands": chosen,
            "unit": "code" if encoding == "uint8" else sensors.sensor(name).unit,
        }
        for name, chosen in bands.items()
    }
    metadata = {"schema_version": SCHEMA_VERSION, "encoding": encoding, "scheme": scheme, "pixels": described}
    pixels, text = pa.large_binary(), pa.string()
    return pa.schema(
        [
            ("patch_id", text),
            ("location_id", text),
            ("tile", text),
            ("acquisition", text),
            ("slot", pa.int16()),
            ("split", text),
            ("fold", pa.int32()),
            *((name, pixels) for name in bands),
            ("label", pixels),
            ("clean", pixels),
            ("valid", pixels),
            ("crs", text),
            ("transform", pa.list_(pa.float64())),
            ("lon", pa.float64()),
            ("lat", pa.float64()),
            ("notes", text),
        ],
        metadata={"cromss": json.dumps(metadata)},
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(path: Path, manifest: Manifest) -> None:
    aside = path / f".{MANIFEST}.part"
    try:
        with aside.open("w") as file:
            json.dump(manifest.model_dump(mode="json"), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path / MANIFEST)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); free some space") from None


def read_manifest(path: Path) -> Manifest:
    """The manifest of the store at `path`. Raises ValueError when there is none that this version can read."""
    file = path / MANIFEST
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path}: is not a patch store (no {MANIFEST}; an unfinished ingest has none): "
            "make one with python -m cromss.ingest"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); ingest again") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ValueError(
            f"{path}: is a patch store of schema version {version}, this cromss reads up to {SCHEMA_VERSION}: "
            "update cromss, or ingest again with this one"
        )
    try:
        return validate(Manifest, found)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: is not a manifest ({str(error).splitlines()[0]}); ingest again") from None
