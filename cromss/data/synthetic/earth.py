"""The synthetic Earth as a source: places with known true classes beside noisy labels."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from cromss.contract import physical
from cromss.data.patch import Patch
from cromss.data.sources.base import Location, Source
from cromss.data.synthetic.imagery import (
    ASCENDING,
    DESCENDING,
    Cover,
    Optical,
    Orbit,
    Radar,
    make_cover,
    optical,
    radar,
)
from cromss.data.synthetic.noise import Clean, DynamicWorld, Noise, near_border
from cromss.data.synthetic.scene import SNOW, Scene, make_scene
from cromss.landcover import DFC2020, DYNAMIC_WORLD, IGNORE
from cromss.sensors import SENSORS

# A random stream's key is (seed, region, place, purpose, season), so that no knob disturbs what another one draws.
_PRETRAINING, _DOWNSTREAM = 0, 1
_SCENE, _COVER, _OPTICAL, _RADAR, _NOISE, _SHIFT, _DESCENDING = range(7)
_PIXEL = 10 / 111_320  # degrees of latitude in 10 m


class SyntheticEarth(Source):
    """Procedural scenes seen by Sentinel-2 (L1C DN, 13 bands) and Sentinel-1 (VV, VH in dB), labelled with noise.

    `downstream=True` is another region: `train` and `test` places, one date each, shifted band gains and offsets,
    DFC2020's classes (which has no snow: unlabelled) without noise. A place depends on (seed, its number) alone, in
    any order and process; changing the noise changes no image.
    """

    kind: Literal["synthetic"] = "synthetic"
    places: int = Field(384, ge=1)  # of the pretraining region
    seasons: int = Field(4, ge=1, le=12)  # acquisitions of each, spread over the year
    size: int = Field(64, ge=32, le=1024)  # px of 10 m
    seed: int = Field(0, ge=0)  # of the world; independent of every training seed
    noise: Noise = DynamicWorld()
    optical: Optical = Optical()
    radar: Radar = Radar()
    descending: bool = False  # Sentinel-1 from its other orbit, too: the modality s1d
    downstream: bool = False
    train: int = Field(64, ge=1)  # places of the downstream region
    test: int = Field(256, ge=1)

    @property
    def scheme(self) -> str:
        """Name of the label scheme."""
        return DFC2020.name if self.downstream else DYNAMIC_WORLD.name

    @property
    def modalities(self) -> tuple[str, ...]:
        """What its patches hold."""
        return ("s1", "s2", "s1d") if self.descending else ("s1", "s2")

    @property
    def encoding(self) -> str:
        """What its patches are stored as unless somebody asks otherwise."""
        return "raw" if self.downstream else "uint8"

    def locations(self) -> list[Location]:
        """Every place; its handle is its number."""
        if not self.downstream:
            return [Location(f"earth-{number:06d}", "train", number) for number in range(self.places)]
        splits = ["train"] * self.train + ["test"] * self.test
        return [Location(f"elsewhere-{number:06d}", split, number) for number, split in enumerate(splits)]

    def read(self, location: Location) -> Iterator[Patch]:
        """The patches of a place in time order, `clean` filled in, all of one size."""
        place = location.handle
        phases = np.arange(self.seasons) / self.seasons
        if self.downstream:
            phases = phases[[place % self.seasons]]
        lon, lat = self._position(place)
        scene = make_scene(self._random(place, _SCENE), self.size)
        cover = make_cover(self._random(place, _COVER), scene)
        # January is winter in the north and summer in the south.
        years = (phases + (0.5 if lat < 0 else 0.0)) % 1
        optics = [
            optical(self._random(place, _OPTICAL, season), scene, cover, year, self.optical)
            for season, year in enumerate(years)
        ]
        backscatter = self._backscatter(place, scene, cover, years, _RADAR, ASCENDING)
        other_orbit = self._backscatter(place, scene, cover, years, _DESCENDING, DESCENDING) if self.descending else []
        images, hidden = (np.stack(maps) for maps in zip(*optics, strict=True))
        noise = Clean() if self.downstream else self.noise
        labels = noise.corrupt(scene.classes, images, hidden, self._random(place, _NOISE))
        for season, phase in enumerate(phases):
            acquisition = f"2021-{1 + int(12 * phase):02d}"
            pixels = {"s1": backscatter[season], "s2": images[season]}
            if self.descending:
                pixels["s1d"] = other_orbit[season]
            yield Patch(
                patch_id=f"{location.id}/{acquisition}",
                location_id=location.id,
                acquisition=acquisition,
                images=self._shifted(pixels) if self.downstream else pixels,
                contracts={name: physical(name, SENSORS[name].bands) for name in pixels},
                label=self._classes(labels[season]),
                clean=self._classes(scene.classes),
                split=location.split,
                crs="EPSG:4326",
                transform=self._transform(lon, lat),
                lon=lon,
                lat=lat,
            )

    def _backscatter(
        self, place: int, scene: Scene, cover: Cover, years: np.ndarray, purpose: int, orbit: Orbit
    ) -> list[np.ndarray]:
        return [
            radar(self._random(place, purpose, season), scene, cover, year, self.radar, orbit)
            for season, year in enumerate(years)
        ]

    def _random(self, place: int, purpose: int, season: int = 0) -> np.random.Generator:
        region = _DOWNSTREAM if self.downstream else _PRETRAINING
        return np.random.default_rng([self.seed, region, place, purpose, season])

    def _classes(self, labels: np.ndarray) -> np.ndarray:
        return np.where(labels == SNOW, IGNORE, labels).astype(np.uint8) if self.downstream else labels

    def _shifted(self, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Another region's instruments: per band a gain (optical: factor; radar: dB) and an offset in DN."""
        rng = np.random.default_rng([self.seed, _DOWNSTREAM, 0, _SHIFT])
        gain, offset = rng.uniform(0.88, 1.12, (13, 1, 1)), rng.uniform(-60, 60, (13, 1, 1))
        offset[10] = 0  # B10 is a few DN: an offset would look like another processing baseline
        optical_dn = np.clip(np.rint(images["s2"] * gain + offset), 1, 65535).astype(np.uint16)
        looks = {
            name: images[name] + rng.uniform(-1, 1, (2, 1, 1)).astype(np.float32) for name in images if name != "s2"
        }
        return {**looks, "s2": optical_dn}

    def _position(self, place: int) -> tuple[float, float]:
        """Centre (lon, lat). The additive recurrence of the plastic number keeps places far apart, however many."""
        across, along = (0.5 + place * 0.7548776662) % 1, (0.5 + place * 0.5698402910) % 1
        west, width = (-15.0, 60.0) if self.downstream else (60.0, 240.0)
        lon = west + width * across
        return (lon + 180) % 360 - 180, -55 + 110 * along

    def _transform(self, lon: float, lat: float) -> tuple[float, ...]:
        dx, dy = _PIXEL / np.cos(np.radians(lat)), _PIXEL
        return (float(dx), 0.0, float(lon - dx * self.size / 2), 0.0, -dy, float(lat + dy * self.size / 2))


@dataclass(frozen=True)
class NoiseReport:
    """How wrong the labels of a set of patches are. Shares of the pixels that have both a label and a true class."""

    pixels: int
    rate: float
    every_season: float  # of the pixels labelled in every season of their place: wrong in all of them
    at_borders: float
    inside: float
    unlabelled: float  # of all pixels with a true class
    per_class: dict[str, float]  # by true class; NaN where it does not occur
    shares: dict[str, float]  # true classes

    def __str__(self) -> str:
        head = (
            f"wrong labels {self.rate:.1%} (at class borders {self.at_borders:.1%}, inside {self.inside:.1%}), "
            f"wrong in every season {self.every_season:.1%}, unlabelled {self.unlabelled:.1%}"
        )
        rows = [
            f"  {name:20s} {share:6.1%} of the land, {self.per_class[name]:6.1%} wrong"
            for name, share in self.shares.items()
            if share > 0
        ]
        return "\n".join([head, *rows])


def describe_noise(patches: Iterable[Patch], classes: tuple[str, ...] = DYNAMIC_WORLD.classes) -> NoiseReport:
    """Measure the label noise of patches that carry `clean`. Raises ValueError when one does not."""
    places: dict[str, list[Patch]] = {}
    for patch in patches:
        if patch.clean is None:
            raise ValueError(f"{patch.patch_id}: has no clean labels, so its noise cannot be measured")
        places.setdefault(f"{patch.location_id} {patch.split}", []).append(patch)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    always, steady, true_pixels = 0, 0, 0
    border = np.zeros((2, 2), np.int64)  # rows: inside, border; columns: right, wrong
    for seasons in places.values():
        clean, label = np.stack([p.clean for p in seasons]), np.stack([p.label for p in seasons])
        usable = (clean != IGNORE) & (label != IGNORE)
        wrong = usable & (clean != label)
        np.add.at(confusion, (clean[usable], label[usable]), 1)
        edge = np.stack([near_border(p.clean) for p in seasons])
        np.add.at(border, (edge[usable].astype(int), wrong[usable].astype(int)), 1)
        always, steady = always + wrong.all(0).sum(), steady + usable.all(0).sum()
        true_pixels += int((clean != IGNORE).sum())
    total = int(confusion.sum())
    if not total:
        raise ValueError("no pixel has both a label and a true class")
    of_class = confusion.sum(1)
    hits = np.divide(confusion.diagonal(), of_class, out=np.full(len(classes), np.nan), where=of_class > 0)
    return NoiseReport(
        pixels=total,
        rate=1 - confusion.trace() / total,
        every_season=always / max(steady, 1),
        at_borders=border[1, 1] / max(border[1].sum(), 1),
        inside=border[0, 1] / max(border[0].sum(), 1),
        unlabelled=1 - total / true_pixels,
        per_class=dict(zip(classes, (1 - hits).tolist(), strict=True)),
        shares=dict(zip(classes, (of_class / total).tolist(), strict=True)),
    )
