"""Label schemes: the classes, their colours, and what each value found in a file means."""

from dataclasses import dataclass

import numpy as np

from cromss.settings import suggest

IGNORE = 255  # the class number of a pixel without a usable label, everywhere in cromss


@dataclass(frozen=True)
class Scheme:
    """`classes` are numbered 0.. in order. `codes` maps a file's values to class numbers; values in `unlabelled` become
    IGNORE; any other value is an error."""

    name: str
    title: str
    classes: tuple[str, ...]
    colours: tuple[str, ...]
    codes: dict[int, int]
    unlabelled: frozenset[int] = frozenset({IGNORE})

    def __len__(self) -> int:
        return len(self.classes)

    def read(self, values: np.ndarray) -> np.ndarray:
        """File values (H,W), any integer type, to class numbers uint8 (H,W).

        Raises ValueError naming the values that the scheme does not know.
        """
        out = np.full(values.shape, IGNORE, np.uint8)
        known = np.zeros(values.shape, bool)
        for value, number in self.codes.items():
            out[hit := values == value] = number
            known |= hit
        for value in self.unlabelled:
            known |= values == value
        if not known.all():
            strange = sorted(set(np.unique(values[~known]).tolist()))[:8]
            raise ValueError(
                f"label values {strange} are outside the scheme {self.name!r}: it knows "
                f"{sorted(self.codes)} and, unlabelled, {sorted(self.unlabelled)}"
            )
        return out

    def rgb(self, labels: np.ndarray) -> np.ndarray:
        """Class numbers (...) to colours uint8 (...,3); ignored pixels are light grey."""
        table = np.full((256, 3), 230, np.uint8)
        for number, colour in enumerate(self.colours):
            table[number] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return table[labels]


def _own(classes: int) -> dict[int, int]:
    return {number: number for number in range(classes)}


DYNAMIC_WORLD = Scheme(
    name="dynamic-world",
    title="Dynamic World",
    classes=("water", "trees", "grass", "flooded vegetation", "crops", "shrub and scrub", "built", "bare", "snow and ice"),
    colours=("#419BDF", "#397D49", "#88B053", "#7A87C6", "#E49635", "#DFC35A", "#C4281B", "#A59B8F", "#B39FE1"),
    codes=_own(9),
)  # fmt: skip
DFC2020 = Scheme(
    name="dfc2020",
    title="DFC2020",
    classes=("water", "trees", "grass", "wetland", "crops", "shrub", "urban", "barren"),
    colours=("#419BDF", "#397D49", "#88B053", "#7A87C6", "#E49635", "#DFC35A", "#C4281B", "#A59B8F"),
    codes={10: 0, 1: 1, 4: 2, 5: 3, 6: 4, 2: 5, 7: 6, 9: 7},
    unlabelled=frozenset({0, 3, 8, IGNORE}),
)
TERRAMESH = Scheme(
    name="terramesh",
    title="TerraMesh land cover",
    classes=("water", "trees", "flooded vegetation", "crops", "built", "bare", "snow and ice", "rangeland"),
    colours=("#419BDF", "#397D49", "#7A87C6", "#E49635", "#C4281B", "#A59B8F", "#B39FE1", "#DFC35A"),
    codes={1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 9: 7},
    unlabelled=frozenset({0, 8, IGNORE}),
)
WATER = Scheme(
    name="water",
    title="surface water",
    classes=("land", "water"),
    colours=("#D9C9A3", "#419BDF"),
    codes=_own(2),
    unlabelled=frozenset({-1, IGNORE}),
)
OSM = Scheme(
    name="osm",
    title="OpenStreetMap, 13 classes",
    classes=("urban fabric", "industrial", "mine or dump", "artificial vegetation", "arable land", "permanent crops",
             "pastures", "forests", "shrub", "open space", "inland wetlands", "coastal wetlands", "water"),
    colours=("#C4281B", "#A64D79", "#8E7CC3", "#93C47D", "#E49635", "#BF9000", "#88B053", "#397D49", "#DFC35A",
             "#A59B8F", "#7A87C6", "#A2C4C9", "#419BDF"),
    codes={value + 1: value for value in range(13)},
    unlabelled=frozenset({0, IGNORE}),
)  # fmt: skip

SCHEMES: dict[str, Scheme] = {s.name: s for s in (DYNAMIC_WORLD, DFC2020, TERRAMESH, WATER, OSM)}


def scheme(name: str) -> Scheme:
    """The scheme of that name. Raises ValueError listing the known ones."""
    if name not in SCHEMES:
        raise ValueError(f"label scheme {name!r}: unknown{suggest(name, SCHEMES)}")
    return SCHEMES[name]
