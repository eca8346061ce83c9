"""The one door: layers merge, unions switch, mistakes are named with the way out."""

from typing import Annotated, Literal

import pydantic
import pytest

from cromss.settings import Settings, as_yaml, assignments, leaves, overlay, read_yaml, validate


class Round(Settings):
    kind: Literal["round"] = "round"
    radius: float = pydantic.Field(1.0, gt=0, le=10)


class Square(Settings):
    kind: Literal["square"] = "square"
    side: int = 2


class Whole(Settings):
    name: Literal["red", "green"] = "red"
    shape: Annotated[Round | Square, pydantic.Field(discriminator="kind")] = Round()
    sizes: dict[str, int] = {}
    number: int | None = pydantic.Field(None, ge=1)


def test_later_layers_win_and_the_rest_stays():
    assert overlay({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


def test_another_kind_drops_the_siblings_keys_and_the_same_kind_keeps_them():
    below = {"shape": {"kind": "round", "radius": 3}}
    assert overlay(below, {"shape": {"kind": "square"}}) == {"shape": {"kind": "square"}}
    assert overlay(below, {"shape": {"kind": "round"}}) == below
    assert overlay(below, {"shape": {"radius": 4}}) == {"shape": {"kind": "round", "radius": 4}}


def test_a_key_of_the_default_kind_needs_no_kind_beside_it():
    assert validate(Whole, {"shape": {"radius": 3}}).shape == Round(radius=3)
    assert validate(Whole, {"shape": {"kind": "square"}}).shape == Square()


def test_overlay_leaves_its_arguments_alone():
    below = {"a": {"b": 1}}
    overlay(below, {"a": {"b": 2}})
    assert below == {"a": {"b": 1}}


def test_assignments_are_read_as_yaml():
    assert assignments(["a.b=1e-3", "a.c=[1, 2]", "a.d=true", "e=x"]) == {
        "a": {"b": 0.001, "c": [1, 2], "d": True},
        "e": "x",
    }


@pytest.mark.parametrize("item", ["a.b", "=1", "a..b=1"])
def test_a_malformed_assignment_shows_how_it_is_written(item):
    with pytest.raises(ValueError, match="expected key.sub=value"):
        assignments([item])


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"nmae": "red"}, "nmae: unknown key; did you mean 'name'? valid: name, shape, sizes, number"),
        ({"shape": {"kind": "rond"}}, "shape.kind=rond: unknown; did you mean 'round'? valid: round, square"),
        ({"shape": {"kind": "round", "radios": 2}}, "shape.radios: unknown key; did you mean 'radius'?"),
        ({"shape": {"kind": "round", "radius": 11}}, "shape.radius=11: must lie in (0, 10]; the default is 1.0"),
        ({"number": 0}, "number=0: must lie in [1, inf)"),
        ({"name": "reed"}, "name=reed: unknown; did you mean 'red'? valid: red, green"),
        ({"shape": {"kind": "square", "side": "wide"}}, "shape.side='wide': should be a valid integer"),
        ({"sizes": {"big": "x"}}, "sizes.big='x': should be a valid integer"),
    ],
)
def test_a_mistake_is_named_with_its_key_value_and_the_valid_ones(layer, said):
    with pytest.raises(ValueError) as error:
        validate(Whole, layer)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_every_mistake_gets_a_line():
    with pytest.raises(ValueError) as error:
        validate(Whole, {"nmae": 1, "number": 0})
    assert len(str(error.value).splitlines()) == 2


def test_yaml_that_is_no_mapping_is_refused_by_file_name(tmp_path):
    path = tmp_path / "c.yaml"
    for text in ("- 1\n- 2\n", "a: [1"):
        path.write_text(text)
        with pytest.raises(ValueError, match="c.yaml"):
            read_yaml(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")


def test_as_yaml_comes_back_through_the_door(tmp_path):
    path = tmp_path / "c.yaml"
    whole = validate(Whole, {"shape": {"kind": "square", "side": 5}, "number": 3})
    path.write_text(as_yaml(whole))
    assert validate(Whole, read_yaml(path)) == whole


def test_leaves_are_dotted():
    assert leaves({"a": {"b": {"c": 1}}, "d": [1]}) == {"a.b.c": 1, "d": [1]}
