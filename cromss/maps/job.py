"""A map to be made: its tiles, computed in any order by anybody, kept beside the map until it is whole.

<out>                the map, last of all
<out>.aux.xml        class names, for GDAL and QGIS
<stem>.png           a glance; <stem>.json, the STAC item
.<out>.work/         tiles that are done, of this map and no other; gone when the map is there
"""

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import rasterio
from matplotlib.figure import Figure
from rasterio.windows import Window

from cromss import provenance
from cromss.data.raster import opened_raster
from cromss.files import sha256
from cromss.landcover import IGNORE
from cromss.maps import cog, stac
from cromss.maps.model import Model
from cromss.maps.scene import Scene
from cromss.maps.tiles import predict_tile
from cromss.maps.windows import Box, Windows
from cromss.whole import written_whole

TAG = "CROMSS_MAP"  # in the map: the digest of everything that it depends on
BANDS = (
    cog.Band("land cover"),
    cog.Band(
        "uncertainty", "1", 0.01, {"LONG_NAME": "entropy of the class probabilities, 0 (sure) to 1 (uniform): 1 - F_e"}
    ),
)
_CACHE = 256 * 2**20  # bytes of decoded blocks (rasterio counts bytes, where GDAL's own variable means MiB)
_GLANCE = 900  # pixels of the picture's longer side


@dataclass(frozen=True)
class Job:
    """One map to make; small, and the same in every process."""

    scene: Scene
    windows: Windows
    model: Path
    out: Path
    tile: int  # pixels a side, a multiple of the COG's blocks
    batch_size: int = 8
    device: str = "cpu"

    @functools.cached_property
    def model_sha256(self) -> str:
        return sha256(self.model)

    @functools.cached_property
    def digest(self) -> str:
        """Of everything that the pixels of the map depend on; 16 hexadecimal digits."""
        inputs = [[part.path.name, *_stamp(part.path), repr(part)] for part in self.scene.parts]
        said = [self.model_sha256, inputs, repr(self.scene.grid), repr(self.windows), self.tile]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    @property
    def tiles(self) -> list[Box]:
        return list(self.windows.tiles(self.tile))

    @property
    def work(self) -> Path:
        """Where its tiles wait."""
        return self.out.with_name(f".{self.out.name}.work")

    def part(self, tile: Box) -> Path:
        return self.work / f"{tile.top}-{tile.left}.npy"

    def missing(self) -> list[Box]:
        """The tiles that are not there yet."""
        return [tile for tile in self.tiles if _read(self.part(tile), tile) is None]

    def finished(self) -> bool:
        """Whether this very map is there already."""
        if not self.out.is_file():
            return False
        with contextlib.suppress(ValueError), opened_raster(self.out) as file:
            return file.tags().get(TAG) == self.digest
        return False

    def begin(self, overwrite: bool = False) -> str:
        """Make room for the tiles; what to tell the user. Raises ValueError where another file has the name, or there is no
        room."""
        if self.out.exists() and not overwrite:
            raise ValueError(f"{self.out}: is there already, and is another map; --overwrite replaces it")
        told, note = "", self.work / "map.json"
        try:
            if self.work.exists() and (not note.exists() or json.loads(note.read_text()) != self.digest):
                shutil.rmtree(self.work)
                told = "tiles of another map with this name were thrown away"
            self.work.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(self.digest))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.out}: cannot be written there ({error})") from None
        height, width = self.scene.grid.size
        needed, free = 5 * height * width, shutil.disk_usage(self.work).free
        if free < needed:
            raise ValueError(
                f"{self.out}: needs {needed / 2**20:,.0f} MiB while it is made, {free / 2**20:,.0f} MiB are free"
            )
        return told


def compute(job: Job, tile: Box) -> None:
    """One tile, to its file. Raises ValueError for a damaged input and a full disk."""
    model = opened_model(job.model, job.device)
    with _gdal(), job.scene.opened() as scene:
        pixels = predict_tile(model, scene, job.windows, tile, batch_size=job.batch_size, device=job.device)
    try:
        with written_whole(job.part(tile)) as aside, open(aside, "wb") as file:
            np.save(file, pixels, allow_pickle=False)
    except OSError as error:
        raise ValueError(
            f"{job.out}: no tile can be kept beside it ({error.strerror}); the same command goes on from the "
            f"{len(job.tiles) - len(job.missing())} of {len(job.tiles)} that are there"
        ) from None


@dataclass(frozen=True)
class Result:
    """What a map says: pixels of every class (K,), pixels without data, mean uncertainty in per cent."""

    counts: np.ndarray
    nodata: int
    uncertainty: float
    pixel_km2: float | None


def assemble(job: Job, name: str, when: datetime | None) -> Result:
    """All tiles to one COG, with its picture and STAC item; the map takes its name last. Raises ValueError."""
    model = opened_model(job.model, job.device)
    scheme, grid = model.scheme, job.scene.grid
    counts, total = np.zeros(256, np.int64), 0
    plain = job.work / "plain.tif"
    tags = {
        TAG: job.digest, "TITLE": f"{scheme.title} land cover", "MODEL": job.model_sha256[:16],
        "STORE": model.card.store, "SOFTWARE": f"cromss {provenance.collect(seed=0)['packages'].get('cromss', '')}".strip(),
        "INPUTS": " ".join(part.path.name for part in job.scene.parts),
    }  # fmt: skip
    with _gdal(), _said(job.out):
        plain.unlink(missing_ok=True)  # a torn one of a full disk, which GDAL would look into before it replaces it
        with rasterio.open(plain, "w", **cog.profile(grid, len(BANDS), np.uint8, IGNORE)) as file:
            cog.describe(file, BANDS, scheme, tags)
            for tile in job.tiles:
                pixels = _read(job.part(tile), tile)
                assert pixels is not None, "assembled before every tile was there"
                file.write(pixels, window=Window(tile.left, tile.top, *reversed(tile.size)))
                counts += np.bincount(pixels[0].ravel(), minlength=256)
                total += int(pixels[1][pixels[1] != IGNORE].sum(dtype=np.int64))
        if not np.array_equal(_histogram(plain, job.tiles), counts):
            raise OSError(
                "not all of it reached the disk; is it full?"
            )  # GDAL does not always say so when it closes a file
        picture = job.out.with_suffix(".png")
        with cog.written_aside(picture) as aside:
            _glance(job, model, plain).savefig(aside, format="png", dpi=110)
        data = int(counts[: len(scheme)].sum())
        result = Result(counts[: len(scheme)], int(counts[IGNORE]), total / max(data, 1), _pixel_km2(grid))
        _item(job, name, when, model, result, picture)
        with cog.reopened(plain) as file:
            cog.as_cog(file, job.out, scheme)
    shutil.rmtree(job.work, ignore_errors=True)
    return result


def _histogram(path: Path, tiles: Sequence[Box]) -> np.ndarray:
    counts = np.zeros(256, np.int64)
    with cog.reopened(path) as file:
        for tile in tiles:
            pixels = file.read(1, window=Window(tile.left, tile.top, *reversed(tile.size)))
            counts += np.bincount(pixels.ravel(), minlength=256)
    return counts


def _item(job: Job, name: str, when: datetime | None, model: Model, result: Result, picture: Path) -> None:
    made = stac.item(
        name, job.scene.grid, when or stac.date_in(job.scene.texts),
        {
            "cromss:model": job.model_sha256, "cromss:store": model.card.store, "cromss:scheme": model.scheme.name,
            "cromss:inputs": [part.path.name for part in job.scene.parts], "cromss:settled": list(job.scene.notes),
            "cromss:window": job.windows.window, "cromss:overlap": job.windows.overlap,
            "cromss:pixels": dict(zip(model.scheme.classes, result.counts.tolist(), strict=True)),
            "cromss:mean_uncertainty": round(result.uncertainty / 100, 4),
        },
    )  # fmt: skip
    made.add_asset("map", stac.asset(f"./{job.out.name}", "land cover and its uncertainty", scheme=model.scheme))
    made.add_asset("thumbnail", stac.asset(f"./{picture.name}", "a glance", ("thumbnail",), kind="image/png"))
    stac.finish(made, job.out.with_suffix(".json"))


def _glance(job: Job, model: Model, plain: Path) -> Figure:
    from cromss.plot.scenes import overview

    height, width = job.scene.grid.size
    scale = max(1.0, max(height, width) / _GLANCE)
    shape = (max(1, round(height / scale)), max(1, round(width / scale)))
    with cog.reopened(plain) as file:
        classes, uncertainty = file.read(out_shape=(2, *shape))
    with job.scene.opened() as scene:
        seen = scene.thinned(shape, {name: model.bands(name) for name in model.modalities})
    return overview(seen, classes, uncertainty, model.scheme)


def _pixel_km2(grid: cog.Grid) -> float | None:
    """Of a grid in metres."""
    if not grid.crs or not (crs := rasterio.CRS.from_string(grid.crs)).is_projected:
        return None
    a, b, _, d, e, _ = grid.transform
    return abs(a * e - b * d) * crs.linear_units_factor[1] ** 2 / 1e6


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read(path: Path, tile: Box) -> np.ndarray | None:
    """A tile that is whole; anything else counts as missing."""
    try:
        pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == (len(BANDS), *tile.size) and pixels.dtype == np.uint8 else None


@functools.lru_cache(maxsize=2)
def opened_model(path: Path, device: str) -> Model:
    return Model.open(path, device)


def _gdal() -> rasterio.Env:
    return rasterio.Env(GDAL_CACHEMAX=_CACHE)  # GDAL's own choice is a share of the machine, in every process


@contextlib.contextmanager
def _said(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, *cog.GDAL_ERRORS) as error:
        said = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{out}: cannot be written ({said}); its tiles are kept, the same command goes on") from None
