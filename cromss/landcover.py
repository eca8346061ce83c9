"""Label schemes: the classes, their colours, and what each value found in a file means."""

from dataclasses import dataclass, replace

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
                f"{sorted(self.codes)} and, unlabelled, {sorted(self.unlabelled)}; are these labels of another scheme "
                f"(--scheme, where the layout has it: {', '.join(SCHEMES)})?"
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

SSL4EO_DW = replace(  # the coding of the SSL4EO-S12@DW downstream set: one higher than Dynamic World's own
    DYNAMIC_WORLD,
    name="ssl4eo-dw",
    codes={number + 1: number for number in range(9)},
    unlabelled=frozenset({0, 10, IGNORE}),
)
IGBP = Scheme(
    name="igbp",
    title="IGBP (MODIS)",
    classes=("evergreen needleleaf forest", "evergreen broadleaf forest", "deciduous needleleaf forest",
             "deciduous broadleaf forest", "mixed forest", "closed shrubland", "open shrubland", "woody savanna",
             "savanna", "grassland", "permanent wetland", "cropland", "urban and built-up",
             "cropland and natural vegetation mosaic", "permanent snow and ice", "barren", "water"),
    colours=("#05450A", "#086A10", "#54A708", "#78D203", "#009900", "#C6B044", "#DCD159", "#DADE48", "#FBFF13",
             "#B6FF05", "#27FF87", "#C24F44", "#A5A5A5", "#FF6D4C", "#69FFF8", "#F9FFA4", "#1C0DFF"),
    codes={value + 1: value for value in range(17)},
    unlabelled=frozenset({0, IGNORE}),
)  # fmt: skip
# The simplification of Yokoya et al. 2020 and Schmitt & Wu 2021: IGBP 1..17 to the contest's 1..10. Its first eight
# classes are those of DFC2020, number for number, so that both can be scored against each other.
_SIMPLIFIED = dict(enumerate((1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10), start=1))
IGBP_SIMPLIFIED = Scheme(
    name="igbp-simplified",
    title="IGBP, simplified",
    classes=(*DFC2020.classes, "savanna", "snow and ice"),
    colours=(*DFC2020.colours, "#FBFF13", "#B39FE1"),
    codes={igbp: {**DFC2020.codes, 3: 8, 8: 9}[contest] for igbp, contest in _SIMPLIFIED.items()},
    unlabelled=frozenset({0, IGNORE}),
)

# CORINE Land Cover, level 3: (code, name, its standard colour, its class in the 19-class nomenclature of BigEarthNet,
# "" where that has none: such pixels are unlabelled).
_CLC = (
    (111, "continuous urban fabric", "#E6004D", "urban fabric"),
    (112, "discontinuous urban fabric", "#FF0000", "urban fabric"),
    (121, "industrial or commercial units", "#CC4DF2", "industrial or commercial units"),
    (122, "road and rail networks", "#CC0000", ""),
    (123, "port areas", "#E6CCCC", ""),
    (124, "airports", "#E6CCE6", ""),
    (131, "mineral extraction sites", "#A600CC", ""),
    (132, "dump sites", "#A64D00", ""),
    (133, "construction sites", "#FF4DFF", ""),
    (141, "green urban areas", "#FFA6FF", ""),
    (142, "sport and leisure facilities", "#FFE6FF", ""),
    (211, "non-irrigated arable land", "#FFFFA8", "arable land"),
    (212, "permanently irrigated land", "#FFFF00", "arable land"),
    (213, "rice fields", "#E6E600", "arable land"),
    (221, "vineyards", "#E68000", "permanent crops"),
    (222, "fruit trees and berry plantations", "#F2A64D", "permanent crops"),
    (223, "olive groves", "#E6A600", "permanent crops"),
    (231, "pastures", "#E6E64D", "pastures"),
    (241, "annual crops with permanent crops", "#FFE6A6", "permanent crops"),
    (242, "complex cultivation patterns", "#FFE64D", "complex cultivation patterns"),
    (243, "agriculture with natural vegetation", "#E6CC4D", "agriculture with natural vegetation"),
    (244, "agro-forestry areas", "#F2CCA6", "agro-forestry areas"),
    (311, "broad-leaved forest", "#80FF00", "broad-leaved forest"),
    (312, "coniferous forest", "#00A600", "coniferous forest"),
    (313, "mixed forest", "#4DFF00", "mixed forest"),
    (321, "natural grassland", "#CCF24D", "natural grassland and sparsely vegetated areas"),
    (322, "moors and heathland", "#A6FF80", "heathland and sclerophyllous vegetation"),
    (323, "sclerophyllous vegetation", "#A6E64D", "heathland and sclerophyllous vegetation"),
    (324, "transitional woodland and shrub", "#A6F200", "transitional woodland and shrub"),
    (331, "beaches and dunes", "#E6E6E6", "beaches and dunes"),
    (332, "bare rock", "#CCCCCC", ""),
    (333, "sparsely vegetated areas", "#CCFFCC", "natural grassland and sparsely vegetated areas"),
    (334, "burnt areas", "#000000", ""),
    (335, "glaciers and perpetual snow", "#A6E6CC", ""),
    (411, "inland marshes", "#A6A6FF", "inland wetlands"),
    (412, "peatbogs", "#4D4DFF", "inland wetlands"),
    (421, "salt marshes", "#CCCCFF", "coastal wetlands"),
    (422, "salines", "#E6E6FF", "coastal wetlands"),
    (423, "intertidal flats", "#A6A6E6", ""),
    (511, "water courses", "#00CCF2", "inland waters"),
    (512, "water bodies", "#80F2E6", "inland waters"),
    (521, "coastal lagoons", "#00FFA6", "marine waters"),
    (522, "estuaries", "#A6FFE6", "marine waters"),
    (523, "sea and ocean", "#E6F2FF", "marine waters"),
)
CORINE = Scheme(
    name="corine",
    title="CORINE, level 3",
    classes=tuple(name for _, name, _, _ in _CLC),
    colours=tuple(colour for _, _, colour, _ in _CLC),
    codes={code: number for number, (code, _, _, _) in enumerate(_CLC)},
    unlabelled=frozenset({0, 999, IGNORE}),
)
# in the order of CORINE's codes, which is the nomenclature's own; a class has the colour of its first code
_GROUPS = tuple(dict.fromkeys(group for *_, group in _CLC if group))
BIGEARTHNET = Scheme(
    name="bigearthnet",
    title="BigEarthNet, 19 classes of CORINE",
    classes=_GROUPS,
    colours=tuple(next(colour for *_, colour, group in _CLC if group == name) for name in _GROUPS),
    codes={code: _GROUPS.index(group) for code, *_, group in _CLC if group},
    unlabelled=frozenset({code for code, *_, group in _CLC if not group} | {0, 999, IGNORE}),
)

SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (DYNAMIC_WORLD, DFC2020, TERRAMESH, WATER, OSM, SSL4EO_DW, IGBP, IGBP_SIMPLIFIED, CORINE, BIGEARTHNET)
}


@dataclass(frozen=True)
class ClassMap:
    """What the classes of one scheme mean in another: `sources[k]` = the source classes that target class k consists of."""

    source: Scheme
    target: Scheme
    sources: tuple[tuple[int, ...], ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Target classes that no source class means."""
        return tuple(name for name, own in zip(self.target.classes, self.sources, strict=True) if not own)

    @property
    def unused(self) -> tuple[str, ...]:
        """Source classes without a counterpart."""
        used = {number for own in self.sources for number in own}
        return tuple(name for number, name in enumerate(self.source.classes) if number not in used)


# (source, target): what is called otherwise there; a name that both have is the same class
_MEANINGS = {
    ("dynamic-world", "dfc2020"): {  # snow and ice: not in the contest's tiles, nor among its classes
        "flooded vegetation": "wetland", "shrub and scrub": "shrub", "built": "urban", "bare": "barren",
    },
    ("dynamic-world", "terramesh"): {"grass": "rangeland", "shrub and scrub": "rangeland"},
}  # fmt: skip


def class_map(source: Scheme, target: Scheme) -> ClassMap:
    """How predictions in `source` are read in `target`. Raises ValueError where nobody has said it."""
    meanings: dict[str, str] | None = {} if source.classes == target.classes else None
    for (own, other), row in _MEANINGS.items():
        if (SCHEMES[own].classes, SCHEMES[other].classes) == (source.classes, target.classes):
            meanings = row
    if meanings is None:
        known = ", ".join(f"{own} to {other}" for own, other in _MEANINGS)
        raise ValueError(
            f"no class map from {source.name} to {target.name} (cromss/landcover.py knows {known}): leave zero_shot out of "
            f"transfer.modes, or add the row"
        )
    names = [meanings.get(name, name) for name in source.classes]
    return ClassMap(
        source, target, tuple(tuple(i for i, name in enumerate(names) if name == own) for own in target.classes)
    )


def scheme(name: str) -> Scheme:
    """The scheme of that name. Raises ValueError listing the known ones."""
    if name not in SCHEMES:
        raise ValueError(f"label scheme {name!r}: unknown{suggest(name, SCHEMES)}")
    return SCHEMES[name]
