"""Label noise: how the labels that a network gets differ from the classes that are there.

Every kind turns the true classes of a place into one noisy label map a season. Rates are the share of wrong pixels, in every
season alike, and are met tile by tile but for what is said of a kind:

    symmetric            any rate; single pixels by chance (standard deviation .008 on 64 px), regions exactly
    class_confusion      any rate, by chance as above
    season_swap          up to .8, exactly
    missing_objects      up to .5; tiles with few objects fall short: at .5 all in all .47
    border_displacement  up to .4; tiles with few borders fall short: at .4 all in all .38
    dynamic_world        up to .6; single tiles lie far around it, all in all within .04 up to .5, at .6 .54
    model                about a third, whatever it is
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, maximum_filter, minimum_filter

from cromss.data.synthetic.fields import fields
from cromss.data.synthetic.imagery import DRY, GREEN, HAZE
from cromss.data.synthetic.scene import make_scene
from cromss.landcover import DYNAMIC_WORLD, IGNORE
from cromss.sensors import SENTINEL2
from cromss.settings import Settings

CLASSES = len(DYNAMIC_WORLD)
# What Dynamic World tends to say instead (columns), by true class (rows); rows sum to 1. By description, not fitted.
CONFUSION = np.array([
    # water trees grass flood crops shrub built bare  snow
    [0.00, 0.08, 0.04, 0.45, 0.03, 0.05, 0.05, 0.22, 0.08],  # water
    [0.04, 0.00, 0.16, 0.14, 0.18, 0.40, 0.06, 0.01, 0.01],  # trees
    [0.02, 0.10, 0.00, 0.06, 0.38, 0.36, 0.02, 0.06, 0.00],  # grass
    [0.22, 0.18, 0.24, 0.00, 0.18, 0.13, 0.01, 0.04, 0.00],  # flooded vegetation
    [0.02, 0.07, 0.30, 0.05, 0.00, 0.26, 0.08, 0.22, 0.00],  # crops
    [0.01, 0.18, 0.27, 0.03, 0.22, 0.00, 0.04, 0.25, 0.00],  # shrub and scrub
    [0.04, 0.12, 0.08, 0.01, 0.22, 0.14, 0.00, 0.38, 0.01],  # built
    [0.05, 0.01, 0.07, 0.03, 0.30, 0.32, 0.16, 0.00, 0.06],  # bare
    [0.22, 0.03, 0.02, 0.00, 0.03, 0.05, 0.05, 0.60, 0.00],  # snow and ice
])  # fmt: skip
# How readily it errs, by true class; about 1 over the synthetic Earth.
RISK = np.array([0.45, 0.7, 1.5, 1.7, 0.85, 1.3, 0.95, 0.95, 0.5], np.float32)
# One wrong class for each, for noise that is systematic.
PARTNER = np.array([3, 5, 4, 1, 2, 7, 7, 6, 7], np.uint8)


class Clean(Settings):
    """No noise."""

    kind: Literal["none"] = "none"

    def corrupt(
        self, clean: np.ndarray, optical: np.ndarray, hidden: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """(n, H, W) uint8 noisy labels of n seasons, from the true classes (H, W), the Sentinel-2 DN (n, 13, H, W) and
        where clouds hide the ground (n, H, W)."""
        return np.repeat(clean[None], len(hidden), axis=0)


class Symmetric(Settings):
    """Any other class, each as likely: single pixels, or, with `region` > 0, patches about that many pixels wide."""

    kind: Literal["symmetric"] = "symmetric"
    rate: float = Field(0.4, ge=0, le=0.9)
    region: float = Field(0.0, ge=0, le=64)

    def corrupt(
        self, clean: np.ndarray, optical: np.ndarray, hidden: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """As `Clean.corrupt`."""
        n, shape = len(hidden), hidden.shape
        if self.region:
            where = fields(rng, n, shape[-1], self.region)
            wrong = np.stack([_highest(field, self.rate) for field in where])
            step = 1 + fields(rng, n * (CLASSES - 1), shape[-1], self.region).reshape(n, -1, *shape[1:]).argmax(1)
        else:
            wrong = rng.random(shape, dtype=np.float32) < self.rate
            step = rng.integers(1, CLASSES, shape)
        return np.where(wrong, (clean + step) % CLASSES, clean).astype(np.uint8)


class ClassConfusion(Settings):
    """Systematic: a wrong pixel of a class always gets the same other class; independent pixels."""

    kind: Literal["class_confusion"] = "class_confusion"
    rate: float = Field(0.4, ge=0, le=0.9)

    def corrupt(
        self, clean: np.ndarray, optical: np.ndarray, hidden: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """As `Clean.corrupt`."""
        return np.where(rng.random(hidden.shape, dtype=np.float32) < self.rate, PARTNER[clean], clean)


class _Reaching(Settings):
    """A kind of error that cannot make as many pixels wrong as anybody asks for: up to `most` of them, `because` ..."""

    most: ClassVar[float]
    because: ClassVar[str]

    @field_validator("rate", check_fields=False)
    @classmethod
    def _within_reach(cls, rate: float) -> float:
        if rate > cls.most:
            raise ValueError(
                f"noise.rate={rate:g}: must lie in [0, {cls.most:g}] for {cls.because}; for more take symmetric with a region"
            )
        return rate


class BorderDisplacement(_Reaching):
    """Borders lie elsewhere: labels are fetched from a smoothly varying distance away, as far as the rate asks for.

    Measured over 200 scenes of 64 px: drifts of 8 px (standard deviation) make .51 wrong, in a tenth of the tiles less than
    .32. Further away labels have nothing to do with a border any more.
    """

    most: ClassVar[float] = 0.4
    because: ClassVar[str] = "border_displacement: there are not more pixels near a border"
    kind: Literal["border_displacement"] = "border_displacement"
    rate: float = Field(0.2, ge=0)
    length: float = Field(12.0, gt=0, le=64)  # px over which the drift changes

    def corrupt(
        self, clean: np.ndarray, optical: np.ndarray, hidden: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """As `Clean.corrupt`."""
        n, size = len(hidden), len(clean)
        drifts = fields(rng, 2 * n, size, self.length, 2.6).reshape(n, 2, size, size)
        return np.stack([_displaced(clean, self._reach(clean, drift) * drift) for drift in drifts])

    def _reach(self, clean: np.ndarray, drift: np.ndarray) -> float:
        """px, at most 8: the least that makes enough wrong, by bisection."""
        low, high = 0.0, 8.0
        for _ in range(10):
            middle = (low + high) / 2
            enough = (_displaced(clean, middle * drift) != clean).mean() >= self.rate
            low, high = (low, middle) if enough else (middle, high)
        return high if self.rate else 0.0


class MissingObjects(_Reaching):
    """Connected pieces of a class vanish, the small ones first, and what lies nearest takes their place: a map with a
    minimum mapping unit. A tile's largest piece stays. The last to go, larger than what is still wanted, goes by chance, so
    that the rate is met over many tiles.

    Measured over 200 scenes of 64 px: .66 lie outside the largest piece, in a tenth of the tiles less than .41.
    """

    most: ClassVar[float] = 0.5
    because: ClassVar[str] = "missing_objects: without more objects nothing of the land would be left"
    kind: Literal["missing_objects"] = "missing_objects"
    rate: float = Field(0.2, ge=0)

    def corrupt(
        self, clean: np.ndarray, optical: np.ndarray, hidden: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """As `Clean.corrupt`."""
        pieces = _pieces(clean)
        areas = np.bincount(pieces.ravel())
        return np.stack([_filled(clean, self._vanish(areas, rng)[pieces]) for _ in range(len(hidden))])

    def _vanish(self, areas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(pieces,) bool. Another map, another order among pieces of about the same size."""
        gone = np.zeros(len(areas), bool)
        left = self.rate * areas.sum()
        order = np.argsort(areas * np.exp(0.5 * rng.standard_normal(len(areas))))
        for piece in order[order != areas.argmax()]:
            if rng.random() * areas[piece] >= left:
                break
            gone[piece] = True
            left -= areas[piece]
        return gone


class SeasonSwap(_Reaching):
    """The label map belongs to another acquisition than the images. Here the land itself does not change over the year, so
    the other acquisition shows another state of the place: a landscape drawn anew, whose classes stand in whole regions, with
    fields, shores and towns that look right and lie wrong. Where both states agree the label is right by chance."""

    most: ClassVar[float] = 0.8
    because: ClassVar[str] = "season_swap: two states of a place agree in the rest"
    kind: Literal["season_swap"] = "season_swap"
    rate: float = Field(0.4, ge=0)
    region: float = Field(16.0, gt=0, le=64)  # px, about the width of what has changed

    def corrupt(
        self, clean: np.ndarray, optical: np.ndarray, hidden: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """As `Clean.corrupt`."""
        where = fields(rng, len(hidden), len(clean), self.region)
        labels = np.empty(hidden.shape, np.uint8)
        for season, field in enumerate(where):
            other = self._other(clean, rng)
            changed = _highest(np.where(other != clean, field, -np.inf), self.rate)
            # Beside the regions, what both states share is right either way.
            labels[season] = np.where(changed, other, clean)
        return labels

    def _other(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Another state of the land: of a few, the first that differs in enough pixels, else the most different."""
        states = []
        for _ in range(8):
            states.append(make_scene(rng, len(clean)).classes)
            if (states[-1] != clean).mean() >= self.rate:
                return states[-1]
        return max(states, key=lambda state: (state != clean).mean())


class Model(Settings):
    """Labels made by another, weak model from Sentinel-2 alone: the nearest class spectrum, given the land cover of
    the region. About a third is wrong, and looks right in one modality: the failure case of selecting labels."""

    kind: Literal["model"] = "model"

    def corrupt(
        self, clean: np.ndarray, optical: np.ndarray, hidden: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """As `Clean.corrupt`."""
        spectra = np.concatenate([GREEN, (GREEN + DRY) / 2, DRY])[..., None, None]
        seen = _shape_and_brightness(optical.astype(np.float32))
        log_share = np.log(np.bincount(clean.ravel(), minlength=CLASSES) / clean.size + 1e-3)
        cost = [
            np.square(seen - centre).sum(1) / 0.1 - log_share[number % CLASSES]
            for number, centre in enumerate(_shape_and_brightness(spectra))
        ]
        nearest = (np.argmin(cost, axis=0) % CLASSES).astype(np.uint8)
        return np.stack([_smoothed(labels, 0.8) for labels in nearest])


class DynamicWorld(Settings):
    """Errors like those of Dynamic World's labels.

    Borders are displaced and smoothed, small objects vanish, regions are taken for a similar class; part of every
    error stays over the year (`persistence`), the rest flips between seasons. Thick clouds are unlabelled. Single
    patches lie around `rate`, some far from it.
    """

    kind: Literal["dynamic_world"] = "dynamic_world"
    rate: float = Field(0.22, ge=0, le=0.6)
    persistence: float = Field(0.3, ge=0, le=1)
    displacement: float = Field(0.8, ge=0, le=5)  # px, standard deviation of a border's shift
    smoothing: float = Field(1.0, ge=0, le=5)  # px, sigma of the vote that swallows small objects

    def corrupt(
        self, clean: np.ndarray, optical: np.ndarray, hidden: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """As `Clean.corrupt`."""
        n, size = len(hidden), len(clean)
        where = self._shared(rng, 1, n, size, 14)[:, 0] + np.log(RISK)[clean]
        taste = self._shared(rng, CLASSES, n, size, 18)
        drift = self.displacement * self._shared(rng, 2, n, size, 8)
        swallowed = _smoothed(clean, self.smoothing)
        shares = np.clip(self.rate * RISK[clean].mean() * rng.gamma(8.0, 0.125) * rng.gamma(8.0, 0.125, n), 0, 0.75)
        with np.errstate(divide="ignore"):
            prior = np.log(CONFUSION).astype(np.float32)[clean]  # (H, W, classes)
        labels = np.empty(hidden.shape, np.uint8)
        for season, share in enumerate(shares):
            moved = _displaced(swallowed, drift[season])
            blurred = moved != clean
            confused = (prior.transpose(2, 0, 1) + taste[season]).argmax(0)
            # Borders take at most half of the wrong pixels, so that the rate is what was asked for.
            blurred &= _highest(np.where(blurred, where[season], -np.inf), min(share / 2, blurred.mean()))
            rest = _highest(np.where(blurred, -np.inf, where[season]), share - blurred.mean())
            labels[season] = np.where(rest, confused, np.where(blurred, moved, clean))
        labels[hidden] = IGNORE
        return labels

    def _shared(self, rng: np.random.Generator, count: int, seasons: int, size: int, length: float) -> np.ndarray:
        """(seasons, count, H, W) unit-variance fields of which a part is the same in every season."""
        always = fields(rng, count, size, length, 2.6)
        season = fields(rng, count * seasons, size, length, 2.6).reshape(seasons, count, size, size)
        return np.sqrt(self.persistence) * always + np.sqrt(1 - self.persistence) * season


Noise = Annotated[
    DynamicWorld | Clean | Symmetric | ClassConfusion | BorderDisplacement | MissingObjects | SeasonSwap | Model,
    Field(discriminator="kind"),
]


def _pieces(classes: np.ndarray) -> np.ndarray:
    """(H, W) int: the number, from 0, of the connected piece (eight neighbours) that a pixel belongs to."""
    pieces, count = np.empty(classes.shape, int), 0
    for one in np.unique(classes):
        numbered, found = label(classes == one, np.ones((3, 3)))
        pieces[numbered > 0] = numbered[numbered > 0] - 1 + count
        count += found
    return pieces


def _filled(classes: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """`classes` with the nearest other class that stays, where `gone`."""
    filled = classes.copy()
    for one in np.unique(classes[gone]):
        others = ~gone & (classes != one)
        if not others.any():
            others = classes != one
        rows, columns = distance_transform_edt(~others, return_distances=False, return_indices=True)
        hole = gone & (classes == one)
        filled[hole] = classes[rows[hole], columns[hole]]
    return filled


def _highest(score: np.ndarray, share: float) -> np.ndarray:
    """Bool map of the `share` of pixels with the highest score."""
    count = round(share * score.size)
    chosen = np.zeros(score.size, bool)
    if count > 0:
        chosen[np.argpartition(score.ravel(), -count)[-count:]] = True
    return chosen.reshape(score.shape)


def _smoothed(labels: np.ndarray, sigma: float) -> np.ndarray:
    """Majority vote in a Gaussian window; 0 leaves the labels as they are."""
    if not sigma:
        return labels
    present = np.unique(labels)
    votes = (labels == present[:, None, None]).astype(np.float32)
    return present[gaussian_filter(votes, (0, sigma, sigma), truncate=3).argmax(0)]


def _displaced(labels: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """Labels fetched from `drift` (2, H, W) pixels away, never from outside the tile."""
    size = len(labels)
    rows, columns = np.clip(np.rint(np.mgrid[:size, :size] + drift), 0, size - 1).astype(int)
    return labels[rows, columns]


def near_border(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels with another class among their eight neighbours."""
    return maximum_filter(labels, 3) != minimum_filter(labels, 3)


def _shape_and_brightness(optical: np.ndarray) -> np.ndarray:
    """DN (n, 13, H, W) to (n, 10, H, W): logarithms of nine bands above the haze about their mean, and that mean."""
    bands = SENTINEL2.indices("9")
    logarithm = np.log(np.maximum(optical[:, bands] - HAZE[bands][:, None, None], 50))
    mean = logarithm.mean(1, keepdims=True)
    return np.concatenate([logarithm - mean, 0.7 * mean], axis=1)
