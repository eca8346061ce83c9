"""The LMDBs that the authors of CromSS train from.

    0k_251k_uint8_s1.lmdb/       S1 (4, 2, 264, 264)      in 8 bits each, mean +- 2 std, the bands in the tables' order
    0k_251k_uint8_s2c.lmdb/      S2 (4, 13, 264, 264)
    dw_labels.lmdb/              labels (4, 264, 264)     Dynamic World 0..8

Key `str(i)`, i the row of their csv; value a pickle of (bytes, shape, id of the location). The three are joined by key
and must agree in the id, as in their data set. Pickles are read as plain data (`plain_pickle`); the pages of the file
itself are trusted to the LMDB library, which was not made for hostile ones.

What was lost when they were written stays lost: neither product nor date nor place on Earth is told, labels were resized
with a bicubic filter (classes that are not there appear at borders) and clipped (no data became 0 or snow).
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from cromss.data.plain_pickle import read_plain_pickle
from cromss.data.raster import MAX_BYTES, Raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import ImagerySource, Scene
from cromss.sensors import SENTINEL1, SENTINEL2

_BANDS = {"s1": SENTINEL1.bands, "s2": SENTINEL2.bands}
_lock = threading.Lock()
_open: dict[Path, tuple[tuple[int, ...], Any]] = {}  # of this process

Entry = tuple[memoryview, tuple[int, ...], int]  # pixels, shape, id


class AuthorsLmdb(ImagerySource):
    """the CromSS authors' LMDBs of 8-bit S1, S2 and Dynamic World labels"""

    kind: Literal["authors-lmdb"] = "authors-lmdb"
    scheme: ClassVar[str] = "dynamic-world"
    eight_bit: ClassVar[bool] = True

    s1: str = pydantic.Field("0k_251k_uint8_s1.lmdb", description="name of the LMDB of Sentinel-1 in the folder")
    s2: str = pydantic.Field("0k_251k_uint8_s2c.lmdb", description="name of the LMDB of Sentinel-2 in the folder")
    label: str = pydantic.Field("dw_labels.lmdb", description="name of the LMDB of labels in the folder")

    @pydantic.field_validator("s1", "s2", "label")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if Path(value).name != value:
            raise ValueError(f"{value}: must be a name in the folder, for example dw_labels.lmdb")
        return value

    def locations(self) -> list[Location]:
        """One for each entry of the labels, named by its id; the pixels are not read. An entry whose id cannot be read
        comes as `key-<i>`, to be skipped with its reason."""
        found: dict[str, Location] = {}
        faults: list[Location] = []
        with _reading(self.path / self.label) as get:
            for key in _keys(self.path / self.label):
                try:
                    place = f"{_entry(get, key, self.label)[2]:07d}"
                    if place in found:
                        raise ValueError(
                            f"{self.label}: id {place} stands under the keys {found[place].handle} and {key}"
                        )
                    found[place] = Location(place, handle=key)
                except ValueError as error:
                    faults.append(Location(f"key-{key}", handle=str(error)))
        if not found and not faults:
            raise ValueError(f"{self.path / self.label}: is empty")
        return [found[place] for place in sorted(found)] + faults

    def acquisitions(self, location: Location) -> list[tuple[str, int]]:
        """The seasons, `0` to `3`, in the order of the authors' csv. Raises ValueError unless the three entries belong
        together."""
        if isinstance(location.handle, str):
            raise ValueError(location.handle)
        shapes: dict[str, tuple[int, ...]] = {}
        for what in ("label", "s1", "s2"):
            with _reading(self.path / getattr(self, what)) as get:
                _, shape, number = _entry(get, location.handle, getattr(self, what))
            if f"{number:07d}" != location.id:
                raise ValueError(f"key {location.handle} is {location.id} in the labels, {number:07d} in {what}")
            bands = len(_BANDS.get(what, ()))
            if len(shape) != (4 if bands else 3) or (bands and shape[1] != bands):
                expected = f"(seasons, {bands}, height, width)" if bands else "(seasons, height, width)"
                raise ValueError(f"{what} has shape {shape}, expected {expected}")
            shapes[what] = (shape[0], *shape[-2:])
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"seasons and sizes differ: {', '.join(f'{what} {shape}' for what, shape in shapes.items())}"
            )
        return [(str(season), season) for season in range(shapes["label"][0])]

    def load(self, location: Location, handle: int) -> Scene:
        """Reads one season of the three entries."""
        pixels: dict[str, np.ndarray] = {}
        for what in ("label", "s1", "s2"):
            with _reading(self.path / getattr(self, what)) as get:
                values, shape, _ = _entry(get, location.handle, getattr(self, what))
                size = math.prod(shape[1:])
                season = values[handle * size : (handle + 1) * size]
                pixels[what] = np.frombuffer(bytes(season), np.uint8).reshape(shape[1:])
        return Scene(
            s1=Raster(pixels["s1"], SENTINEL1.bands),
            s2=Raster(pixels["s2"], SENTINEL2.bands),
            label=Raster(pixels["label"][None], ("",)),
        )


def _entry(get: Callable[[bytes], Any], key: int, name: str) -> Entry:
    """An entry, checked, without copying its pixels. Raises ValueError with the fault."""
    value = get(str(key).encode())
    if value is None:
        raise ValueError(f"{name}: has no key {key}")
    if len(value) > MAX_BYTES:
        raise ValueError(f"{name}: key {key} has {len(value):,} bytes, more than {MAX_BYTES:,}")
    try:
        found = read_plain_pickle(value)
    except ValueError as error:
        raise ValueError(f"{name}: key {key} holds {error}") from None
    match found:
        case (memoryview() as pixels, tuple() as shape, (int() | str()) as number):
            pass
        case _:
            raise ValueError(f"{name}: key {key} holds no (bytes, shape, id)")
    if not str(number).isdecimal() or len(str(number)) > 9:
        raise ValueError(f"{name}: key {key} has the id {ascii(number)[:40]}, expected a number")
    if not all(type(length) is int and length > 0 for length in shape) or math.prod(shape) != len(pixels):
        raise ValueError(f"{name}: key {key} has {len(pixels):,} bytes, which shape {str(shape)[:60]} does not fit")
    return pixels, shape, int(number)


def _keys(path: Path) -> list[int]:
    """The numbers that entries stand under, in order. Raises ValueError for a key that is no number."""
    with _transaction(path) as transaction:
        keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
    if strange := [key for key in keys if not key.isdigit() or len(key) > 9]:
        raise ValueError(f"{path}: has the key {strange[0]!r}, expected 0, 1, 2, ...")
    return sorted(map(int, keys))


@contextmanager
def _reading(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """A function that gives a key's value as a view of the file, which holds as long as the context."""
    with _transaction(path) as transaction:
        yield transaction.get


@contextmanager
def _transaction(path: Path) -> Iterator[Any]:
    try:
        import lmdb
    except ImportError:
        raise ValueError(f"{path}: needs lmdb; pip install 'cromss[formats]'") from None
    file = path / "data.mdb" if path.is_dir() else path
    try:
        stat = file.stat()
        environment = _opened(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
        pages, page = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
        if stat.st_size < pages * page:  # reading beyond the end would kill the process
            raise ValueError(f"{path}: truncated, {stat.st_size:,} of {pages * page:,} bytes; copy it again")
        with environment.begin(buffers=True) as transaction:
            yield transaction
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except lmdb.Error as error:
        raise ValueError(f"{path}: not a readable LMDB ({error})") from None


def _opened(path: Path, version: tuple[int, ...]) -> Any:
    """The LMDB at `path`, kept open until the file changes: the library refuses to open one twice in a process."""
    import lmdb

    with _lock:
        known, environment = _open.get(path, (None, None))
        if known != version:
            if environment is not None:
                del _open[path]
                environment.close()
            environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, create=False
            )
            _open[path] = version, environment
    return environment
