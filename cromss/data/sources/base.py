"""What every on-disk layout offers: its locations, and the patches of one location.

A source is a frozen `Settings` with a `kind`, so the command line, the manifest and the tests derive from it.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cromss.data.patch import Patch
from cromss.settings import Settings


@dataclass(frozen=True)
class Location:
    """One place on Earth with all its acquisitions. `handle` is the source's own business (paths, a seed)."""

    id: str
    split: str = "train"
    handle: Any = None


@dataclass(frozen=True)
class Skipped:
    """A patch or a location that was left out, and why, in one line. What is no text in a file's name (bytes that are not
    UTF-8) is written as an escape: it can be printed and kept."""

    name: str
    reason: str

    def __post_init__(self) -> None:
        for part in ("name", "reason"):
            object.__setattr__(self, part, getattr(self, part).encode("utf-8", "backslashreplace").decode())


@dataclass(frozen=True)
class Survey:
    """What the headers of a location's files promise, before a pixel is decoded: acquisitions in time order, (H, W),
    centre in WGS 84 degrees (NaN where the files do not say).

    grids     (CRS, transform) of each acquisition
    skipped   acquisitions that cannot be used, as far as headers tell
    digest    of all that the headers say; "" where nobody reads them apart
    """

    acquisitions: tuple[str, ...]
    size: tuple[int, int]
    lon: float
    lat: float
    grids: tuple[tuple[str, tuple[float, ...]], ...] = ()
    skipped: tuple[Skipped, ...] = ()
    digest: str = ""


class Source(Settings):
    """Base of the layouts. A subclass has `kind: Literal[...]` and `scheme`, the name of its label scheme.

    `encoding` is what its patches are stored as unless somebody asks otherwise: `uint8` for pretraining, `raw` for
    downstream sets, which encoders of any input scaling must be able to read.
    """

    encoding: ClassVar[str] = "uint8"

    @abstractmethod
    def locations(self) -> list[Location]:
        """Every location, in a fixed order. Raises ValueError when the folder is missing, unreadable or empty."""

    @abstractmethod
    def read(self, location: Location) -> Iterator[Patch | Skipped]:
        """All acquisitions of one location in time order. What cannot be used comes out as Skipped, never as an
        exception. Patches of one location share their size; `patch_id` is `<location>/<acquisition>`."""

    def read_one(self, location: Location, acquisition: str) -> Patch:
        """One acquisition. Raises ValueError with the reason when it cannot be used."""
        for found in self.read(location):
            if isinstance(found, Patch) and found.acquisition == acquisition:
                return found
            if isinstance(found, Skipped) and found.name == f"{location.id}/{acquisition}":
                raise ValueError(found.reason)
        raise ValueError("is not there any more")

    def survey(self, location: Location) -> Survey:
        """What a location holds. Raises ValueError when it cannot be used at all.

        Decodes it unless the layout knows a cheaper way.
        """
        found = list(self.read(location))
        patches = [one for one in found if isinstance(one, Patch)]
        if not patches:
            raise ValueError(found[0].reason if found else "holds no acquisition")
        first = patches[0]
        return Survey(
            acquisitions=tuple(patch.acquisition for patch in patches),
            size=first.size,
            lon=first.lon,
            lat=first.lat,
            grids=tuple((patch.crs, patch.transform) for patch in patches),
            skipped=tuple(one for one in found if isinstance(one, Skipped)),
        )

    def files(self, location: Location, acquisitions: Sequence[str]) -> list[Path]:
        """The files that these acquisitions are read from; none where the layout does not tell. Raises ValueError when
        an acquisition is not there any more."""
        return []


def paths(source: Source) -> dict[str, Path]:
    """Its fields that are paths, by name."""
    return {name: value for name in type(source).model_fields if isinstance(value := getattr(source, name), Path)}


def absolute(source: Source) -> Source:
    """The source with absolute paths: it is read from other folders, by other processes and on other machines."""
    return source.model_copy(update={name: path.absolute() for name, path in paths(source).items()})


def require_text(location: str, acquisition: str = "") -> None:
    """Raises ValueError when the name of a location or an acquisition is no text: a file's name may hold any bytes, a store
    holds UTF-8."""
    name = f"{location}/{acquisition}" if acquisition else location
    try:
        name.encode()
    except UnicodeEncodeError:
        pattern = location.encode("utf-8", "replace").decode()
        raise ValueError(
            f"{name!r}: is not UTF-8 and cannot be kept in a store; rename its files, or leave the location out: "
            f"--exclude '{pattern}'"
        ) from None
