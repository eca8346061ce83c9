"""The one door of configuration: plain dicts, merged left to right, validated once.

    defaults (= the paper)  <-  preset  <-  YAML file  <-  --set a.b=c  <-  a Tune sample

Every part of the configuration is a small frozen class that lives beside the code it configures. Unknown keys are
errors that name the valid ones.
"""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import annotated_types
import pydantic
import yaml


class Settings(pydantic.BaseModel):
    """Base of every configuration class: immutable, strict about names."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Settings)


def overlay(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested dicts, later layers winning.

    A union is told apart by its `kind`: a layer that sets another `kind` drops the earlier layers' keys of that union,
    which belonged to a sibling class.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if not isinstance(value, Mapping):
                merged[key] = value
                continue
            below = merged.get(key)
            below = below if isinstance(below, Mapping) else {}
            if "kind" in value and value["kind"] != below.get("kind", value["kind"]):
                below = {}
            merged[key] = overlay(below, value)
    return merged


def assignments(items: Iterable[str]) -> dict[str, Any]:
    """`["optim.lr=1e-3", "model.fusion.kind=late"]` as a nested dict; values are read as YAML.

    Raises ValueError for an item without `=`.
    """
    layers = []
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(f"--set {item}: expected key.sub=value, for example --set optim.lr=1e-3")
        try:
            value = _scalar(text)
        except ValueError as error:
            raise ValueError(f"--set {key}: {error}") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        layers.append(value)
    return overlay(*layers)


def _scalar(text: str) -> Any:
    value = _plain(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping as a dict. Raises ValueError naming the file when it is missing or no mapping."""
    path = Path(path)
    try:
        value = _plain(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a mapping (key: value), holds {type(value).__name__}")
    return value


_MOST = 100_000  # values in one text; a whole configuration has some hundred


def _plain(text: str) -> Any:
    """The plain values of a YAML text. Raises ValueError for tags that make objects, and where aliases multiply."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if _size(value, {}) > _MOST:
        raise ValueError(f"holds more than {_MOST:,} values once its aliases are followed")
    return value


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values are in it, each alias counted in full; what holds itself holds too many."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST + 1  # until it is counted, for whoever meets it inside of itself
        known[id(value)] = 1 + sum(_size(one, known) for one in (value.values() if isinstance(value, dict) else value))
    return known[id(value)]


def validate(cls: type[Kind], *layers: Mapping[str, Any]) -> Kind:
    """The settings that the merged layers describe.

    Raises ValueError with one line per mistake: the key, the value, what is valid, what was probably meant.
    """
    data = overlay(
        _defaults(cls), *layers
    )  # from the defaults on, so that `head.head_depth=5` finds its default `kind`
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as errors:
        raise ValueError("\n".join(dict.fromkeys(_explain(cls, error) for error in errors.errors()))) from None


def _defaults(cls: type[Settings]) -> dict[str, Any]:
    required = any(field.is_required() for field in cls.model_fields.values())
    return {} if required else cls().model_dump(mode="json")


def suggest(word: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a valid word is near, then the valid ones."""
    valid = [str(v) for v in valid]
    near = difflib.get_close_matches(str(word), valid, n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" valid: {', '.join(valid)}"


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict flattened to dotted keys (lists stay whole)."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def as_yaml(settings: Settings) -> str:
    """The whole resolved configuration, in the order of its classes."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=120)


# --- error messages ---------------------------------------------------------------------------------------------------


def _explain(cls: type[Settings], error: Any) -> str:
    location = [part for part in error["loc"] if not str(part).startswith("function-")]
    owner, field, names = _walk(cls, location)
    key, value, kind = ".".join(names), error.get("input"), error["type"]
    if kind == "extra_forbidden":
        near = suggest(names[-1], owner.model_fields if owner else [])
        return f"{key}: unknown key{near}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [tag.strip(" '\"") for tag in error["ctx"].get("expected_tags", "").split(",") if tag.strip()]
        tags = tags or _tags(field)
        tag = error["ctx"].get("tag", "")
        return f"{key}.kind={tag}: unknown{suggest(tag, tags)}"
    if kind == "literal_error":
        valid = [v.strip(" '\"") for v in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{key}={value}: unknown{suggest(str(value), valid)}"
    default = _default(field)
    if interval := _interval(field) if kind.startswith(("greater", "less")) else "":
        return f"{key}={value}: must lie in {interval}{default}"
    if kind == "value_error":  # raised by a validator of ours, which finishes the sentence itself
        return str(error["ctx"]["error"])
    if kind == "missing":
        return f"{key}: is required"
    message = error["msg"].removeprefix("Input ")
    return f"{key}={value!r}: {message[0].lower()}{message[1:]}{default}"


def _walk(cls: Any, location: list[Any]) -> tuple[Any, Any, list[str]]:
    """Follow a pydantic error location; union tags in it are no part of the key the user typed."""
    owner, field, names = cls, None, []
    current: Any = cls
    for part in location:
        if isinstance(current, type) and issubclass(current, pydantic.BaseModel):
            owner = current
            field = current.model_fields.get(part)
            names.append(str(part))
            current = _strip(field.annotation) if field else None
        elif members := _members(current):
            tagged = [member for member in members if _tag(member) == part]
            current = tagged[0] if tagged else (members[0] if len(members) == 1 else None)
            if not tagged and current is None:
                names.append(str(part))
        else:
            names.append(str(part))
            current = None
        while current is not None and len(_members(current)) == 1:
            current = _members(current)[0]
    return owner, field, names


def _strip(annotation: Any) -> Any:
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _members(annotation: Any) -> list[Any]:
    annotation = _strip(annotation)
    if typing.get_origin(annotation) in (Union, types.UnionType):
        found = [_strip(arg) for arg in typing.get_args(annotation)]
        return [arg for arg in found if isinstance(arg, type) and issubclass(arg, pydantic.BaseModel)]
    return []


def _tag(member: Any) -> Any:
    field = member.model_fields.get("kind")
    return typing.get_args(field.annotation)[0] if field else None


def _tags(field: Any) -> list[str]:
    return [str(_tag(member)) for member in _members(field.annotation)] if field else []


def _default(field: Any) -> str:
    if field is None or field.is_required() or isinstance(field.default, pydantic.BaseModel) or field.default is None:
        return ""
    return f"; the default is {field.default}"


def _interval(field: Any) -> str:
    low, high = "(-inf", "inf)"
    for bound in getattr(field, "metadata", ()):
        match bound:
            case annotated_types.Gt(gt=value):
                low = f"({value}"
            case annotated_types.Ge(ge=value):
                low = f"[{value}"
            case annotated_types.Lt(lt=value):
                high = f"{value})"
            case annotated_types.Le(le=value):
                high = f"{value}]"
    return "" if (low, high) == ("(-inf", "inf)") else f"{low}, {high}"
