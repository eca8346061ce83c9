"""What Sentinel-2 and Sentinel-1 see of a scene in one season."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.ndimage import gaussian_filter, shift

from cromss.data.synthetic.fields import fields
from cromss.data.synthetic.scene import BARE, BUILT, CROPS, GRASS, SHRUB, TREES, WATER, Scene
from cromss.settings import Settings

# Top-of-atmosphere DN by class, rows as in landcover.DYNAMIC_WORLD, columns as in sensors.SENTINEL2:
# the growing season, then the dry or cold one (turbid water, bare crowns, stubble, thin snow). Magnitudes after medians
# of real L1C pixels per Dynamic World class; snow is old and shaded, since fresh snow leaves the 8-bit range.
GREEN = np.array([
    #  B1    B2    B3    B4    B5    B6    B7    B8   B8A    B9  B10   B11   B12
    [1360, 1100,  940,  700,  680,  560,  530,  480,  420,  250,  12,  250,  180],
    [1300, 1020,  900,  660,  950, 2050, 2550, 2450, 2800,  800,  12, 1350,  650],
    [1390, 1150, 1150,  900, 1420, 2600, 3000, 2950, 3250,  900,  12, 2150, 1200],
    [1360, 1090, 1020,  820, 1080, 1600, 1850, 1800, 1950,  560,  12, 1000,  500],
    [1420, 1180, 1180,  900, 1420, 3000, 3800, 3700, 4000,  950,  12, 1900,  950],
    [1400, 1210, 1190, 1200, 1560, 2080, 2300, 2300, 2600,  800,  12, 2450, 1600],
    [1720, 1580, 1540, 1600, 1760, 2050, 2200, 2200, 2400,  880,  13, 2250, 1900],
    [1640, 1590, 1800, 2180, 2420, 2720, 2900, 2850, 3150,  950,  14, 3800, 3150],
    [3050, 2950, 2850, 2950, 3000, 2980, 2950, 2850, 2750, 1250,  18,  700,  550],
], np.float32)  # fmt: skip
DRY = np.array([
    [1480, 1290, 1330, 1200, 1140,  880,  820,  700,  600,  350,  12,  350,  250],
    [1310, 1060,  960,  830, 1080, 1700, 1980, 1950, 2220,  720,  12, 1650,  950],
    [1450, 1270, 1370, 1480, 1780, 2180, 2420, 2420, 2720,  850,  12, 2950, 1950],
    [1400, 1180, 1160, 1150, 1350, 1620, 1780, 1760, 1920,  600,  12, 1500,  880],
    [1490, 1350, 1430, 1660, 1920, 2230, 2420, 2420, 2720,  850,  12, 3100, 2250],
    [1440, 1310, 1370, 1580, 1830, 2120, 2320, 2350, 2640,  800,  12, 3050, 2150],
    [1740, 1620, 1590, 1740, 1880, 2060, 2180, 2180, 2360,  850,  13, 2420, 2080],
    [1720, 1710, 1960, 2420, 2680, 2960, 3120, 3060, 3360, 1000,  14, 4150, 3550],
    [2600, 2480, 2380, 2420, 2480, 2500, 2500, 2420, 2420, 1100,  16, 1150,  900],
], np.float32)  # fmt: skip
HAZE = np.array([1150, 850, 600, 400, 350, 280, 240, 200, 150, 60, 8, 20, 10], np.float32)  # the air's share of it
CLOUD = np.array([3700, 3600, 3500, 3600, 3650, 3750, 3850, 3750, 3900, 1700, 60, 2900, 2300], np.float32)
PSF = np.array([3.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 3.0, 3.0, 1.0, 1.0])  # sigma, px: 10, 20 and 60 m bands
BACKSCATTER = np.array([  # dB by class: VV, VH; columns as in sensors.SENTINEL1
    [-19.5, -26.5], [-8.8, -14.0], [-13.2, -19.4], [-7.6, -17.6], [-10.2, -17.6],
    [-11.8, -16.6], [-4.6, -12.4], [-14.8, -23.0], [-16.8, -20.6],
], np.float32)  # fmt: skip


class Optical(Settings):
    """How hard Sentinel-2 is to read."""

    spread: float = Field(1.0, ge=0)  # scale of the variation within a class
    noise: float = Field(25.0, ge=0)  # DN, sensor noise
    clouds: float = Field(0.15, ge=0, le=1)  # share of acquisitions with clouds


class Radar(Settings):
    """How hard Sentinel-1 is to read."""

    spread: float = Field(1.0, ge=0)  # scale of the variation within a class
    looks: float = Field(5.0, gt=0)  # speckle: intensity times Gamma(looks) / looks; 4.4 to 5 in ground range products


@dataclass(frozen=True)
class Orbit:
    """From which side and how steeply Sentinel-1 looks. No slope is steep enough for layover."""

    side: int  # +1, or -1: slopes that face the one turn away from the other
    darker_db: float  # at a flatter angle of incidence


ASCENDING, DESCENDING = Orbit(1, 0.0), Orbit(-1, 0.8)
RELIEF_DB = np.array([3.0, 2.1], np.float32)[:, None, None]  # VV, VH: of a slope of shade 1


@dataclass(frozen=True)
class Cover:
    """How the classes of one scene look: what differs from field to field and place to place but not over the year."""

    dryness: float  # 0 always green .. 1 desert
    swing: np.ndarray  # (9,) how much of the seasonal cycle each class takes part in
    sown: np.ndarray  # (parcels,) shift of a field's calendar, years
    vigour: np.ndarray  # (parcels,) how green a field gets
    partner: np.ndarray  # (H, W) the class that each pixel is mixed with
    mixing: np.ndarray  # (H, W) 0..1, and how much, at spread 1
    brightness: np.ndarray  # (H, W) logarithm, at spread 1
    roughness_db: np.ndarray  # (2, H, W) departure from the class's backscatter, at spread 1


def make_cover(rng: np.random.Generator, scene: Scene) -> Cover:
    """The looks of a scene, drawn once for all its seasons."""
    size, parcels = len(scene.classes), int(scene.parcels.max()) + 1
    soft, texture, wet = fields(rng, 3, size, 9, 1.8)
    of_parcel = rng.normal(0, 1, (4, parcels)).astype(np.float32)[:, scene.parcels]
    partner = rng.choice([TREES, GRASS, CROPS, SHRUB, BARE], parcels, p=[0.2, 0.3, 0.1, 0.25, 0.15])[scene.parcels]
    pure = np.array([0.15, 0.8, 1.1, 0.8, 0.7, 1.2, 0.9, 0.7, 0.3], np.float32)[scene.classes]
    by_class = rng.normal(0, [[0.12], [0.10]], (2, 9)).astype(np.float32)
    swing = np.array([0.8, rng.uniform(0.1, 1.0), 1.0, 0.8, 0.0, 0.8, 0.5, 0.5, 0.6], np.float32)
    tilt = np.array([[1.0], [0.7]], np.float32)[..., None]
    return Cover(
        dryness=float(np.clip(scene.biome.dryness + rng.normal(0, 0.12), 0, 1)),
        swing=swing,
        sown=rng.normal(0, 0.14, parcels).astype(np.float32),
        vigour=rng.uniform(0.6, 1.0, parcels).astype(np.float32),
        partner=partner,
        mixing=np.clip(0.2 * np.abs(of_parcel[0] + soft) * pure, 0, 0.8),
        brightness=0.10 * of_parcel[1] + 0.08 * texture + by_class[0][scene.classes] + 0.25 * scene.shade,
        roughness_db=tilt * (0.6 * of_parcel[2] + 0.4 * wet + 4 * by_class[1][scene.classes] + 3 * scene.shade)
        + 0.4 * of_parcel[3] * np.array([0.3, 1.0], np.float32)[:, None, None],
    )


def greenness(rng: np.random.Generator, scene: Scene, cover: Cover, phase: float) -> np.ndarray:
    """(H, W) 0..1: how far each pixel is from its dry spectrum at `phase` of the year (0 midwinter, 0.5 midsummer).

    Cold lands are green in summer, dry lands in winter; every field has its own calendar.
    """
    warmth = 0.5 - 0.5 * np.cos(2 * np.pi * phase)
    drought = cover.dryness * (0.4 + 0.6 * warmth) if cover.dryness > 0.5 else (0.5 + cover.dryness) * (1 - warmth)
    green = (1 - cover.swing * (drought + rng.normal(0, 0.06)))[scene.classes]
    growth = cover.vigour * np.clip(0.5 + 0.75 * np.cos(2 * np.pi * (phase - 0.45 + cover.sown)), 0, 1)
    crops = scene.classes == CROPS
    green[crops] = growth[scene.parcels][crops]
    return np.clip(green + 0.1 * fields(rng, 1, len(green), 10)[0], 0, 1).astype(np.float32)


def optical(
    rng: np.random.Generator, scene: Scene, cover: Cover, phase: float, knobs: Optical
) -> tuple[np.ndarray, np.ndarray]:
    """Sentinel-2 L1C DN (13, H, W) uint16, and where thick cloud or its shadow hides the ground: (H, W) bool."""
    size, spread = len(scene.classes), knobs.spread
    green = greenness(rng, scene, cover, phase)
    mixing = spread * cover.mixing
    ground = _spectra(scene.classes, green) * (1 - mixing) + _spectra(cover.partner, green) * mixing
    haze = HAZE[:, None, None] * rng.uniform(0.85, 1.15)
    tint = np.exp(rng.normal(0, 0.03 * spread, 13)).astype(np.float32)[:, None, None]  # sun, air, soil of the day
    grain = rng.standard_normal((size, size), dtype=np.float32)
    grain *= np.where(scene.classes == BUILT, 0.2, 0.05)
    light = np.exp(spread * (cover.brightness + grain)) * tint
    image = haze + np.maximum(ground - HAZE[:, None, None], 20) * light
    opacity, shadow = _clouds(rng, size) if rng.random() < knobs.clouds else (None, None)
    if opacity is not None:
        image = image * (1 - 0.45 * shadow) * (1 - opacity) + CLOUD[:, None, None] * opacity
    for band, sigma in zip(image, PSF, strict=True):
        gaussian_filter(band, sigma, output=band, truncate=2.5)
    image += knobs.noise * rng.standard_normal(image.shape, dtype=np.float32)
    image[10] = np.where(image[10] < 8, 8, image[10])  # B10 sees no ground: a floor of a few DN, as in real products
    hidden = np.zeros((size, size), bool) if opacity is None else (opacity > 0.45) | (shadow > 0.7)
    return np.clip(np.rint(image), 1, 65535).astype(np.uint16), hidden


def _spectra(classes: np.ndarray, green: np.ndarray) -> np.ndarray:
    """(13, H, W) DN of classes (H, W) at greenness (H, W)."""
    return DRY.T[:, classes] + (GREEN - DRY).T[:, classes] * green


def _clouds(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Opacity and shadow, each (H, W) 0..1, of clouds over 5 to 35 % of the tile."""
    field = fields(rng, 1, size, 20, 2.2)[0]
    edge = np.quantile(field, 1 - rng.uniform(0.05, 0.35))
    opacity = np.clip((field - edge) * 1.6, 0, 1).astype(np.float32)
    offset = rng.integers(4, 10, 2) * (1, -1)
    return opacity, shift(opacity, offset, order=0, mode="nearest") * (1 - opacity)


def radar(
    rng: np.random.Generator, scene: Scene, cover: Cover, phase: float, knobs: Radar, orbit: Orbit = ASCENDING
) -> np.ndarray:
    """Sentinel-1 VV, VH in dB, (2, H, W) float32, speckled."""
    size = len(scene.classes)
    season_db = rng.normal(0, 0.5, (2, 1)) + rng.normal(0, 0.4, (1, 9))  # soil moisture; each class's own weather
    season_db[:, WATER] += rng.gamma(2.0, 0.8)  # wind roughens water
    green = greenness(rng, scene, cover, phase) - 0.5
    growing = np.array([[0, 1, 1, 1, 2, 1, 0, 0, 0], [0, 1, 1.5, 1, 3, 1, 0, 0, 0]], np.float32)  # dB
    level = (BACKSCATTER.T + knobs.spread * season_db.astype(np.float32))[:, scene.classes]
    level = level + growing[:, scene.classes] * green + knobs.spread * cover.roughness_db
    if orbit.side < 0:  # `roughness_db` has the slopes as the ascending orbit sees them
        level = level - 2 * knobs.spread * RELIEF_DB * scene.shade - orbit.darker_db
    grain = rng.standard_normal((size, size), dtype=np.float32)
    level = level + np.where(scene.classes == BUILT, 4.0, 0.5) * grain  # corner reflectors beside flat roofs
    intensity = gaussian_filter(10 ** (level / 10), (0, 0.7, 0.7), truncate=3)
    speckle = rng.standard_gamma(knobs.looks, intensity.shape, dtype=np.float32) / knobs.looks
    noise_floor = np.array([10**-2.6, 10**-3.2], np.float32)[:, None, None]  # of the instrument, -26 and -32 dB
    return (10 * np.log10((intensity + noise_floor) * speckle)).astype(np.float32)
