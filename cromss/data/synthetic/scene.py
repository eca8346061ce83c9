"""Land cover of one place: relief, rivers and lakes, vegetation, fields, towns, small things; one class a pixel."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from cromss.data.synthetic.fields import fields

WATER, TREES, GRASS, FLOODED, CROPS, SHRUB, BUILT, BARE, SNOW = range(9)  # landcover.DYNAMIC_WORLD
_NATURAL = (TREES, GRASS, FLOODED, SHRUB, BARE)  # what grows, or does not, where nobody built, ploughed or drowned it


@dataclass(frozen=True)
class Biome:
    """A kind of landscape. Shares are of the tile's area; each scene draws its own around them."""

    weight: float  # how often
    natural: tuple[float, float, float, float, float]  # log-preference for trees, grass, flooded, shrub, bare
    lake: float = 0.03  # share below the water level
    river: float = 0.3  # probability of one
    farm: float = 0.1  # share under parcels
    town: float = 0.02  # share built over
    snow: float = 0.0  # share above the snow line
    relief: float = 0.3  # how strongly slopes shade the images, 0..1
    dryness: float = 0.4  # mean of the dry season's grip, 0..1


BIOMES: dict[str, Biome] = {
    "farmland": Biome(0.26, (0.9, 0.5, -1.4, 0.2, -0.8), river=0.4, farm=0.75, town=0.05, relief=0.1),
    "forest": Biome(0.10, (2.2, 0.1, -0.6, 0.3, -1.0), lake=0.05, river=0.4, relief=0.6, dryness=0.25),
    "pasture": Biome(0.08, (0.7, 1.6, -1.2, 0.3, -1.0), river=0.4, farm=0.30, town=0.03, dryness=0.3),
    "savanna": Biome(0.14, (0.0, 0.9, -0.9, 1.6, 0.2), farm=0.15, town=0.02, dryness=0.7),
    "desert": Biome(0.08, (-1.6, -0.6, -2.0, 0.8, 2.0), lake=0.0, river=0.1, farm=0.04, dryness=0.9, relief=0.6),
    "wetland": Biome(0.08, (0.4, 0.4, 1.7, -0.2, -0.8), lake=0.18, river=0.8, farm=0.1, relief=0.05, dryness=0.3),
    "coast": Biome(0.12, (0.6, 0.4, 0.2, 0.5, 0.3), lake=0.55, river=0.1, town=0.08, farm=0.12),
    "city": Biome(0.11, (0.8, 0.8, -1.0, 0.1, -0.2), river=0.4, farm=0.12, town=0.55, relief=0.1),
    "alpine": Biome(0.09, (0.7, 0.6, -1.6, 0.3, 0.9), river=0.2, farm=0.0, snow=0.45, relief=1.0, dryness=0.2),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What stays the same over the seasons. Maps are (H, W)."""

    biome: Biome
    classes: np.ndarray  # uint8, numbered as in landcover.DYNAMIC_WORLD
    parcels: np.ndarray  # int, 0 .. the field, street block or patch of wilderness a pixel belongs to
    shade: np.ndarray  # float32, about -1..1: slope towards (+) or away from the sun and the radar


def make_scene(rng: np.random.Generator, size: int) -> Scene:
    """A square scene of `size` pixels of 10 m, one class each."""
    biome = list(BIOMES.values())[rng.choice(len(BIOMES), p=_weights())]
    height, moisture = fields(rng, 2, size, 50, 2.6)
    parcels = _parcels(rng, size)

    classes = _vegetation(rng, biome, height, moisture)
    _plough(rng, biome, classes, parcels, size)
    classes[height > np.quantile(height, 1 - biome.snow * rng.uniform(0.3, 1.5))] = SNOW
    _drown(rng, biome, classes, height)
    _settle(rng, biome, classes)
    _scatter(rng, biome, classes)
    shade = np.gradient(height, axis=1) - np.gradient(height, axis=0)
    return Scene(biome, classes, parcels, biome.relief * np.clip(2.5 * shade, -1, 1))


def _weights() -> np.ndarray:
    weights = np.array([biome.weight for biome in BIOMES.values()])
    return weights / weights.sum()


def _parcels(rng: np.random.Generator, size: int) -> np.ndarray:
    """Voronoi cells around a jittered, rotated, stretched lattice: little jitter gives oblong fields in rows."""
    angle, pitch, stretch = rng.uniform(0, np.pi), rng.uniform(7, 15), rng.uniform(1, 2.2)
    jitter = rng.choice([0.2, 0.35, 0.5])
    along, across = _rotated(size, angle)
    reach = size * 0.75 + 2 * pitch * stretch
    u, v = np.meshgrid(
        np.arange(-reach, reach, pitch * stretch) / stretch, np.arange(-reach, reach, pitch), indexing="ij"
    )
    centres = np.stack([u.ravel(), v.ravel()], 1) + rng.normal(0, jitter * pitch / 2, (u.size, 2))
    pixels = np.stack([along.ravel() / stretch, across.ravel()], 1)
    return cKDTree(centres).query(pixels)[1].reshape(size, size)


def _rotated(size: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:size, :size] - size / 2
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _vegetation(rng: np.random.Generator, biome: Biome, height: np.ndarray, moisture: np.ndarray) -> np.ndarray:
    """The natural class with the highest score: the biome's taste, moisture and height, and chance."""
    size = len(height)
    score = 0.8 * fields(rng, len(_NATURAL), size, 16, 2.2)
    score += (np.array(biome.natural) + rng.normal(0, 0.9, len(_NATURAL))).astype(np.float32)[:, None, None]
    moist = np.array([0.5, 0.1, 0.5, -0.3, -0.5], np.float32)[:, None, None]
    high = np.array([0.0, 0.0, -1.0, 0.1, 0.5], np.float32)[:, None, None]
    return np.array(_NATURAL, np.uint8)[(score + moist * moisture + high * height).argmax(0)]


def _plough(rng: np.random.Generator, biome: Biome, classes: np.ndarray, parcels: np.ndarray, size: int) -> None:
    """Whole parcels become fields, where a smooth suitability is highest; some scenes have hedges between them."""
    suitability = fields(rng, 1, size, 40, 3)[0]
    share = min(biome.farm * rng.uniform(0.5, 1.3), 0.97)
    if share < 0.01:
        return
    of_parcel = np.bincount(parcels.ravel(), suitability.ravel()) / np.maximum(np.bincount(parcels.ravel()), 1)
    farm = (of_parcel > np.quantile(of_parcel[np.unique(parcels)], 1 - share))[parcels]
    crop = rng.choice([CROPS, GRASS, BARE, TREES], len(of_parcel), p=[0.78, 0.13, 0.04, 0.05])
    classes[farm] = crop[parcels][farm]
    if rng.random() < 0.35:
        edge = np.zeros_like(farm)
        edge[:, 1:] |= parcels[:, 1:] != parcels[:, :-1]
        edge[1:] |= parcels[1:] != parcels[:-1]
        classes[edge & farm & (parcels % 3 > 0)] = rng.choice([TREES, SHRUB])


def _drown(rng: np.random.Generator, biome: Biome, classes: np.ndarray, height: np.ndarray) -> None:
    """Lakes and sea fill the lowest ground, reeds or a beach around them; a river meanders through, its banks green."""
    share = min(biome.lake * rng.gamma(2.0, 0.5), 0.9)
    if share > 0.005:
        level = np.quantile(height, share)
        shore = (height < level + 0.12) & (classes != SNOW)
        classes[shore & (classes != CROPS)] = BARE if rng.random() < 0.6 - biome.natural[2] / 4 else FLOODED
        classes[height < level] = WATER
    if rng.random() < biome.river:
        size = len(classes)
        along, across = _rotated(size, rng.uniform(0, np.pi))
        wavelengths, starts = rng.uniform(25, 110, 4), rng.uniform(0, 2 * np.pi, 4)
        course = sum(0.07 * w * np.sin(2 * np.pi * along / w + a) for w, a in zip(wavelengths, starts, strict=True))
        distance = np.abs(across - course - rng.uniform(-0.3, 0.3) * size)
        width = rng.uniform(0.8, 3.5)
        bank = (distance < width + rng.uniform(0, 3)) & (classes != SNOW)
        classes[bank] = rng.choice([TREES, FLOODED, GRASS])
        classes[distance < width] = WATER


def _settle(rng: np.random.Generator, biome: Biome, classes: np.ndarray) -> None:
    """A town around one or two centres, with gardens and parks inside; roads run out of it. Nobody builds on water."""
    share = min(biome.town * rng.gamma(2.0, 0.5), 0.9)
    if share < 0.01:
        return
    size = len(classes)
    along, across = _rotated(size, rng.uniform(0, np.pi))
    centre = rng.uniform(-0.35, 0.35, (2, 2)) * size
    near = np.min([np.hypot(along - a, across - b) for a, b in centre[: rng.integers(1, 3)]], axis=0)
    ragged, patchy = fields(rng, 2, size, 8, 1.5)
    reach = near + 0.12 * np.sqrt(share) * size * ragged
    town = reach < np.quantile(reach, share)
    dry = (classes != WATER) & (classes != SNOW)
    street = (np.minimum((along - centre[0, 0]) % 9, (across - centre[0, 1]) % 7) < 1.2) & town
    park = (patchy > 1.0) & ~street
    classes[town & dry & ~park] = BUILT
    classes[town & dry & park] = rng.choice([TREES, GRASS])
    road = np.abs(across - centre[0, 1] + 4 * np.sin(along / size * 4)) < 0.9
    classes[road & dry] = BUILT


def _scatter(rng: np.random.Generator, biome: Biome, classes: np.ndarray) -> None:
    """Farmsteads, ponds, copses, clearings: squares and discs of 2 to 6 pixels across."""
    size = len(classes)
    tame = biome.farm + biome.town > 0.1
    kinds, odds = (
        [TREES, BUILT, WATER, BARE, SHRUB],
        [0.3, 0.35, 0.12, 0.1, 0.13] if tame else [0.4, 0.0, 0.2, 0.2, 0.2],
    )
    for _ in range(rng.poisson(5 * (size / 64) ** 2)):
        row, column = rng.uniform(0, size, 2)
        radius, number = rng.uniform(1.0, 3.0), rng.choice(kinds, p=odds)
        rows, columns = (np.arange(max(int(c - 4), 0), min(int(c + 5), size)) for c in (row, column))
        dy, dx = np.abs(rows[:, None] - row), np.abs(columns[None] - column)
        inside = (np.maximum(dy, dx) if number == BUILT else np.hypot(dy, dx)) < radius
        window = classes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        window[inside & (window != WATER) & (window != SNOW)] = number
