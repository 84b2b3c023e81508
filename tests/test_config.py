from typing import Annotated, ClassVar

import pytest
from pydantic import Field, ValidationError

from compress.config import Config, OneOf, as_named, described, fingerprint, near


class Apple(Config):
    name: ClassVar[str] = "apple"
    weight: Annotated[float, Field(gt=0)] = 0.1
    label: str = ""


class Pear(Config):
    name: ClassVar[str] = "pear"
    inner: tuple[Annotated[Config, OneOf({"apple": Apple})], ...] = ()


FRUIT = {"apple": Apple, "pear": Pear}


class Basket(Config):
    also: ClassVar[tuple[str, ...]] = ("handle",)
    first: Annotated[Config, OneOf(FRUIT)]
    others: tuple[Annotated[Config, OneOf(FRUIT)], ...] = ()
    count: int = 1


def problems(raw: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Basket.model_validate(raw)
    return described(caught.value)


@pytest.mark.parametrize("raw", ["apple", {"apple": {}}, {"apple": None}])
def test_a_bare_name_takes_all_defaults(raw: object) -> None:
    assert Basket.model_validate({"first": raw}).first == Apple()


def test_named_is_the_inverse_of_parsing() -> None:
    basket = Basket.model_validate(
        {"first": {"apple": {"weight": 2}}, "others": ["pear", {"pear": {"inner": ["apple"]}}]}
    )
    assert as_named(basket.first) == {"apple": {"weight": 2.0, "label": ""}}
    assert Basket.model_validate(basket.model_dump(mode="json")) == basket


def test_numbers_become_text_where_text_is_wanted() -> None:
    assert Apple(label=3).label == "3"  # type: ignore[arg-type]


def test_a_number_as_yaml_reads_it_is_taken_as_text() -> None:
    assert Apple.model_validate({"weight": "1e-3"}).weight == 0.001


def test_all_problems_come_at_once_with_their_places() -> None:
    raw = {"frist": 1, "first": {"apple": {"weight": -4, "wieght": 1}}, "others": ["aple", "pear", 7], "count": "x"}
    assert problems(raw) == [
        "frist: no such key. Did you mean 'first'?",
        "first.apple.wieght: no such key. Did you mean 'weight'?",
        "first.apple.weight: should be greater than 0, not -4",
        "others.0: no 'aple' here. Did you mean 'apple'?",
        "others.2: should be a name, or one `name: {key: value}`",
        "count: should be a valid integer, unable to parse string as an integer, not 'x'",
    ]


def test_a_missing_key_is_said_to_be_missing() -> None:
    assert problems({}) == ["first: is missing"]


def test_problems_inside_two_levels_of_names_keep_their_place() -> None:
    assert problems({"first": {"pear": {"inner": [{"apple": {"weight": "heavy"}}]}}}) == [
        "first.pear.inner.0.apple.weight: should be a valid number, unable to parse string as a number, not 'heavy'"
    ]


def test_keys_besides_the_fields_are_suggested_too() -> None:
    assert problems({"first": "apple", "hande": 1}) == ["hande: no such key. Did you mean 'handle'?"]


@pytest.mark.parametrize("raw", [3, [], None])
def test_what_is_no_mapping_is_refused(raw: object) -> None:
    assert problems({"first": {"apple": raw}} if raw is not None else {"first": None})


def test_braces_in_a_name_are_shown_as_they_are() -> None:
    assert problems({"first": "{0}{name}"}) == ["first: no '{0}{name}' here. Known: apple, pear"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Apple(weight=value)


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Apple().weight = 1.0


def test_near() -> None:
    assert near("mobilnet_v2", ["mobilenet_v2", "resnet18"]) == " Did you mean 'mobilenet_v2'?"
    assert near("xyz", ["b", "a"]) == " Known: a, b"
    assert near("xyz", []) == " There are none."
    assert near("@", [f"name{i}" for i in range(31)]) == " `compress ls` lists what there is."


def test_fingerprint_is_that_of_canonical_json() -> None:
    assert fingerprint({"b": 1, "a": [1.5, None]}) == fingerprint({"a": [1.5, None], "b": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint("x")) == 12
    assert int(fingerprint("x"), 16) >= 0
