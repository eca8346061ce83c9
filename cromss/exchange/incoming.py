"""A checkpoint of other people, in one of the layouts, as our encoder with its card. Where two sides differ it is refused."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
from safetensors import SafetensorError, safe_open

from cromss.contract import Contract
from cromss.exchange.bands import readers
from cromss.exchange.layouts import AUTO, LAYOUTS, Layout, layout
from cromss.exchange.libraries import timm_model, timm_names
from cromss.files import sha256
from cromss.journal import read_json
from cromss.networks.encoders import (
    EncoderCard,
    Published,
    State,
    build_encoder,
    check_shapes,
    encoder_state,
    read_checkpoint,
    some,
)
from cromss.networks.scaling import Scaling
from cromss.sensors import sensor

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_SCALING = pydantic.TypeAdapter(EncoderCard.model_fields["scaling"].annotation)


@dataclasses.dataclass(frozen=True)
class Stated:
    """What the user says of a file, None = nothing: compared with what the layout and the file's header say."""

    modality: str | None = None
    bands: tuple[str, ...] | None = None
    unit: str | None = None
    scaling: Scaling | None = None
    architecture: str | None = None
    depth: int | None = None


def bring(path: str | Path, name: str, stated: Stated = Stated()) -> Iterator[tuple[State, EncoderCard]]:
    """(state, card) of every encoder in the checkpoint `path`, of the layout `name` (`auto`: recognised by its names).

    Raises ValueError where the file cannot be read safely, is of another layout or of several, holds tensors missing, unknown
    or of another shape, and where the user, the file's header and the layout differ, naming both sides.
    """
    path = Path(path)
    tensors, header = read_checkpoint(path), _header(path)
    row = _recognised(tensors, header, path, stated) if name == AUTO else layout(name)
    if row.generic and header:  # an export of ours: the encoder alone, without a network around it
        row = dataclasses.replace(row, prefixes={header.get("modality", ""): ""})
    found = [modality for modality in row.prefixes if _under(tensors, row.prefixes[modality])]
    wanted = stated.modality or (header.get("modality") if row.generic else None) or None
    if wanted is not None:
        sensor(wanted)
        if wanted not in row.prefixes and not row.generic:
            raise ValueError(f"{path}: the layout {row.name} has {', '.join(row.prefixes)}, --modality says {wanted}")
        found = [wanted]
    elif len({row.prefixes[modality] for modality in found}) < len(found):  # the same names: the channels tell
        found = [modality for modality in found if _channels(tensors, row, modality) in map(len, row.bands[modality])]
    others = [prefix for prefix in row.absent if _under(tensors, prefix)]
    lacking = {row.prefixes[modality] for modality in row.prefixes} - {row.prefixes[modality] for modality in found}
    if not found or others or (lacking and stated.modality is None):
        raise ValueError(
            f"{path}: is not of the layout {row.name}, whose names begin with {_quoted(row.prefixes.values())}"
            f"{' alone' if row.absent else ''}; it has {_beginnings(tensors)}"
        )
    for modality in found:
        yield _brought(path, tensors, header, row, modality, stated)


def _recognised(tensors: State, header: Mapping[str, str], path: Path, stated: Stated) -> Layout:
    """The one layout whose digest, or names and channels, the file has. Raises ValueError with the candidates otherwise."""
    if header.get("names") in LAYOUTS:
        return LAYOUTS[header["names"]]
    digest = sha256(path)
    for row in LAYOUTS.values():
        if any(digest.startswith(known) for known in row.digests):
            return row
    candidates = [row for row in LAYOUTS.values() if _fits(tensors, row, stated)]
    if len(candidates) == 1:
        return candidates[0]
    said = ", ".join(row.name for row in candidates) or f"none of {', '.join(LAYOUTS)}"
    raise ValueError(
        f"{path}: --from auto: by its names ({_beginnings(tensors)}) it can be {said}; name one with --from"
        + (", which decides bands and input scaling" if candidates else "")
    )


def _fits(tensors: State, row: Layout, stated: Stated) -> bool:
    if any(_under(tensors, name) for name in row.absent):
        return False
    asked = [stated.modality] if stated.modality in row.prefixes else list(row.prefixes)
    distinct = len(set(row.prefixes.values())) == len(row.prefixes)
    fits = [
        _channels(tensors, row, modality) in map(len, row.bands[modality])
        and bool(stated.architecture or _resnet(_stripped(tensors, row.prefixes[modality])))
        for modality in asked
    ]
    return all(fits) if distinct else any(fits)


def _brought(
    path: Path, tensors: State, header: Mapping[str, str], row: Layout, modality: str, stated: Stated
) -> tuple[State, EncoderCard]:
    prefix = row.prefixes.get(modality, next(iter(row.prefixes.values())))
    architecture = stated.architecture or header.get("architecture") or _timm_config(path).get("architecture") \
        or _resnet(_stripped(tensors, prefix))  # fmt: skip
    if not architecture:
        raise ValueError(f"{path}: its tensors are those of none of {', '.join(RESNETS)}; state --architecture")
    depth = stated.depth or (int(header["depth"]) if header.get("depth", "").isdecimal() else 5)
    if row.name == "timm":
        architecture, tensors = _as_ours(path, str(architecture), tensors, depth)
    first = readers(architecture, depth)[0]
    below = _stripped(tensors, prefix)
    bands = _bands(path, header, row, modality, stated, below[first].shape[1] if first in below else 0)
    expected = build_encoder(architecture, len(bands), depth).state_dict()
    state = encoder_state(tensors, expected, [prefix], f"{path}: as {architecture} of {modality}, layout {row.name}")
    check_shapes(expected, state, str(path), bands)
    told = {"imported_from": row.name, "imported_file": path.name, "imported_sha256": sha256(path)}
    method = "" if row.generic else row.method
    if row.digests:
        published = any(told["imported_sha256"].startswith(one) for one in row.digests)
        told["imported_is"] = "the published file" if published else "not the published file, by its sha256"
        method += "" if published else ", as stated"
    _agreed("unit", (f"{sensor(modality).title}", sensor(modality).unit), ("the file's header", header.get("unit")),
            ("--unit", stated.unit), owner=path)  # fmt: skip
    scaling = _scaling(path, header, row, modality, stated, bands)
    known = not row.generic or bool(header.get("product"))
    try:
        card = EncoderCard(
            architecture=architecture, depth=depth, modality=modality, bands=bands, scaling=scaling.model_dump(),
            contract=Contract.of(modality, bands, "raw", header.get("product", "")) if known else None,
            method=header.get("method") or method, store=header.get("store", ""), epoch=header.get("epoch") or None,
            seed=header.get("seed") or None, extra=_extra(header) | told,
        )  # fmt: skip
    except pydantic.ValidationError as error:
        raise ValueError(f"{path}: its header cannot be read: {' '.join(str(error).split())}") from None
    return {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, card


def _bands(
    path: Path, header: Mapping[str, str], row: Layout, modality: str, stated: Stated, channels: int
) -> tuple[str, ...]:
    """The bands in the order of the weights, by whoever says so: layout, header, user."""
    sets = row.bands.get(modality, ())
    published = next((one for one in sets if len(one) == channels), None)
    if published is None and sets and not row.generic:
        raise ValueError(
            f"{path}: its first convolution reads {channels} channels; the layout {row.name} has "
            f"{' or '.join(str(len(one)) for one in sets)} for {modality} ({'; '.join(', '.join(one) for one in sets)})"
        )
    in_header = tuple(header["bands"].split(",")) if header.get("bands") else None
    overruled = row.generic and (header or stated.scaling)  # they are somebody's own, not ImageNet's
    bands = _agreed(
        "bands (in order)", (f"the layout {row.name}", None if overruled else published), ("the file's header", in_header),
        ("--bands", stated.bands), owner=path,
    )  # fmt: skip
    bands = bands or published
    if bands is None:
        raise ValueError(
            f"{path}: its first convolution reads {channels} channels and nothing says which bands they are (the layout "
            f"{row.name} by itself is {', '.join(next(iter(row.bands.values()))[0])}); state --modality, --bands and --scaling"
        )
    return sensor(modality).select(bands)


def _scaling(
    path: Path, header: Mapping[str, str], row: Layout, modality: str, stated: Stated, bands: tuple[str, ...]
) -> Scaling | Published:
    try:
        in_header = _SCALING.validate_json(header["scaling_parameters"]) if "scaling_parameters" in header else None
    except pydantic.ValidationError as error:
        raise ValueError(f"{path}: its header cannot be read: {' '.join(str(error).split())}") from None
    scaling = _agreed(
        "input scaling", (f"the layout {row.name}", None if row.generic else row.scalings.get(modality)),
        ("the file's header", in_header), ("--scaling", stated.scaling), owner=path,
    )  # fmt: skip
    if scaling is None:
        scaling = _timm_statistics(path, row, modality) or row.scalings.get(modality)
    if isinstance(scaling, Published):
        scaling.of(bands)
    if scaling is None:
        raise ValueError(f"{path}: nothing says how its input is scaled; state --scaling mean_2std|reflectance|zscore")
    return scaling


def _agreed(what: str, *said: tuple[str, Any], owner: Path) -> Any:
    """What everybody who says anything says. Raises ValueError naming the first two who differ."""
    known = [(who, value) for who, value in said if value is not None]
    for who, value in known[1:]:
        if value != known[0][1]:
            raise ValueError(
                f"{owner}: {what} differ: {known[0][0]} has {_words(known[0][1])}, {who} has {_words(value)}"
            )
    return known[0][1] if known else None


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else getattr(value, "kind", str(value))


# --- what a file says -------------------------------------------------------------------------------------------------


def _header(path: Path) -> Mapping[str, str]:
    """The flat keys that an export of ours put into the header; empty for any other file."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
    except (SafetensorError, OSError):  # whoever reads the tensors says it
        return {}
    return found if found.get("library", "").startswith("cromss") else {}


def _extra(header: Mapping[str, str]) -> dict[str, str]:
    try:
        found = json.loads(header.get("extra") or "{}")
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _timm_config(path: Path) -> dict[str, Any]:
    """timm's own config.json beside the weights, as its downloads have it."""
    found = read_json(path.with_name("config.json")) or {}
    name = found.get("architecture")
    return found if isinstance(name, str) and isinstance(found.get("pretrained_cfg"), dict) else {}


def _timm_statistics(path: Path, row: Layout, modality: str) -> Published | None:
    """ImageNet's usual statistics replaced by those that the weights' own config.json names."""
    config, usual = _timm_config(path).get("pretrained_cfg", {}), row.scalings.get(modality)
    mean, std = config.get("mean"), config.get("std")
    if row.name != "timm" or usual is None or not _three(mean) or not _three(std):
        return None
    one = usual.clip[1]
    return usual.model_copy(update={"mean": tuple(one * m for m in mean), "std": tuple(one * s for s in std)})


def _three(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(v, (int, float)) and v >= 0 for v in values)


def _as_ours(path: Path, architecture: str, tensors: State, depth: int) -> tuple[str, State]:
    """A timm model's tensors under the names that its encoder has here."""
    architecture = architecture if architecture in RESNETS or architecture.startswith("tu-") else f"tu-{architecture}"
    names = timm_names(
        build_encoder(architecture, 3, depth).state_dict(), timm_model(architecture, 3).state_dict(), architecture
    )
    back = {theirs: ours for ours, theirs in names.items()}
    if missing := [theirs for theirs in back if theirs not in tensors and not theirs.endswith("num_batches_tracked")]:
        raise ValueError(
            f"{path}: as {architecture} of timm: {len(back) - len(missing)} of {len(back)} tensors matched; missing: "
            f"{some(missing)}"
        )
    return architecture, {ours: tensors[theirs] for theirs, ours in back.items() if theirs in tensors}


def _quoted(prefixes: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(repr(prefix) for prefix in prefixes))


def _beginnings(tensors: State) -> str:
    """The first two parts of the names: `net.encoder1`, `net.decoder` and 2 more."""
    return some({".".join(name.split(".")[:2]) for name in tensors})


def _under(tensors: State, prefix: str) -> bool:
    return any(name.startswith((prefix, f"module.{prefix}")) for name in tensors)


def _stripped(tensors: State, prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix("module.").removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.removeprefix("module.").startswith(prefix)
    }


def _channels(tensors: State, row: Layout, modality: str) -> int:
    """What the first convolution of a ResNet below the prefix reads; 0 where there is none."""
    first = _stripped(tensors, row.prefixes.get(modality, next(iter(row.prefixes.values())))).get("conv1.weight")
    return 0 if first is None else first.shape[1]


def _resnet(below: Mapping[str, Any]) -> str:
    """Which of the ResNets has these tensors, by their names alone; empty for none."""
    if "layer4.0.conv1.weight" not in below:
        return ""
    blocks = [len({name.split(".")[1] for name in below if name.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
    bottleneck = "layer1.0.conv3.weight" in below
    known = {
        (False, (2, 2, 2, 2)): "resnet18",
        (False, (3, 4, 6, 3)): "resnet34",
        (True, (3, 4, 6, 3)): "resnet50",
        (True, (3, 4, 23, 3)): "resnet101",
        (True, (3, 8, 36, 3)): "resnet152",
    }
    return known.get((bottleneck, tuple(blocks)), "")
