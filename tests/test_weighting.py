"""Weights of losses: numbers and schedules, as a file says them."""

import math

import pytest
import yaml
from pydantic import ValidationError

from compress.config import OneOf, as_named, described
from compress.losses import LOSSES
from compress.losses.kd import KD
from compress.weighting import Decay, WarmUp, Window, at


def read(text: str) -> KD:
    return OneOf(LOSSES).parse({"kd": {"weight": yaml.safe_load(text)}})


WRITTEN = {
    "0.9": 0.9,
    "0": 0.0,
    "3": 3.0,
    "{warm_up: {to: 8, epochs: 20}}": WarmUp(to=8, epochs=20),
    "{warm_up: {to: 8, epochs: 0.5}}": WarmUp(to=8, epochs=0.5),
    "{decay: {start: 1, epochs: 100}}": Decay(start=1, to=0, epochs=100, shape="linear"),
    "{decay: {start: 1, to: 0.1, epochs: 100, shape: cosine}}": Decay(start=1, to=0.1, epochs=100, shape="cosine"),
    "{window: {value: 100, last: 30}}": Window(value=100, first=1, last=30),
    "{window: {value: 1, first: 31}}": Window(value=1, first=31, last=None),
}


@pytest.mark.parametrize(("text", "weight"), WRITTEN.items(), ids=WRITTEN)
def test_a_weight_goes_to_yaml_and_back(text, weight):
    loss = read(text)
    assert loss.weight == weight
    assert type(loss.weight) is type(weight)
    again = OneOf(LOSSES).parse(yaml.safe_load(yaml.safe_dump(as_named(loss))))
    assert again == loss
    assert type(again.weight) is type(weight)


def test_a_loss_can_be_made_with_a_schedule_from_python():
    assert KD(weight=WarmUp(to=8, epochs=20)) == read("{warm_up: {to: 8, epochs: 20}}")


VALUES = {
    "0.9": {0: 0.9, 239: 0.9},
    "{warm_up: {to: 8, epochs: 20}}": {0: 8 / 20, 9: 4.0, 18: 7.6, 19: 8.0, 20: 8.0, 239: 8.0},
    "{warm_up: {to: 8, epochs: 0.5}}": {0: 8.0, 1: 8.0},
    "{decay: {start: 1, epochs: 4}}": {0: 1.0, 1: 0.75, 2: 0.5, 3: 0.25, 4: 0.0, 5: 0.0},
    "{decay: {start: 1, to: 3, epochs: 4}}": {0: 1.0, 1: 1.5, 4: 3.0, 99: 3.0},
    "{decay: {start: 2, to: 1, epochs: 6, shape: cosine}}": {
        0: 2.0,
        1: 1 + (1 + math.sqrt(3) / 2) / 2,
        2: 1.75,
        3: 1.5,
        4: 1.25,
        6: 1.0,
        7: 1.0,
    },
    "{window: {value: 5, first: 2, last: 3}}": {0: 0.0, 1: 5.0, 2: 5.0, 3: 0.0},
    "{window: {value: 5}}": {0: 5.0, 999: 5.0},
    "{window: {value: 5, first: 4}}": {2: 0.0, 3: 5.0, 999: 5.0},
    "{window: {value: 5, first: 4, last: 4}}": {2: 0.0, 3: 5.0, 4: 0.0},
}


@pytest.mark.parametrize(("text", "values"), VALUES.items(), ids=VALUES)
def test_the_value_in_an_epoch(text, values):
    weight = read(text).weight
    assert {epoch: at(weight, epoch) for epoch in values} == pytest.approx(values)


ERRORS = {
    "-1": "kd.weight: should be greater than or equal to 0, not -1",
    "much": "kd.weight: should be a valid number, unable to parse string as a number, not 'much'",
    ".nan": "kd.weight: should be a finite number, not nan",
    ".inf": "kd.weight: should be a finite number, not inf",
    "null": "kd.weight: should be a valid number, not None",
    "[1, 2]": "kd.weight: should be a valid number",
    "{}": "kd.weight: should be a name, or one `name: {key: value}`",
    "{warmup: {to: 8, epochs: 20}}": "kd.weight: no 'warmup' here. Did you mean 'warm_up'?",
    "{warm_up: {to: 8}}": "kd.weight.warm_up.epochs: is missing",
    "{warm_up: {to: 8, epochs: 0}}": "kd.weight.warm_up.epochs: should be greater than 0, not 0",
    "{warm_up: {to: -8, epochs: 20}}": "kd.weight.warm_up.to: should be greater than or equal to 0, not -8",
    "{warm_up: {to: .inf, epochs: 20}}": "kd.weight.warm_up.to: should be a finite number, not inf",
    "{decay: {start: 1, epochs: 5, form: x}}": "kd.weight.decay.form: no such key. Known: epochs, shape, start, to",
    "{decay: {start: 1, epochs: 5, shape: x}}": "kd.weight.decay.shape: should be 'linear' or 'cosine', not 'x'",
    "{window: {value: 1, first: 0}}": "kd.weight.window.first: should be greater than or equal to 1, not 0",
    "{window: {value: 1, first: 1.5}}": (
        "kd.weight.window.first: should be a valid integer, got a number with a fractional part, not 1.5"
    ),
    "{window: {value: 1, first: 9, last: 3}}": (
        "kd.weight.window: the window's last epoch (3) comes before its first (9)"
    ),
}


@pytest.mark.parametrize(("text", "said"), ERRORS.items(), ids=ERRORS)
def test_a_weight_that_cannot_be_is_one_clear_line(text, said):
    with pytest.raises(ValidationError) as caught:
        read(text)
    assert described(caught.value) == [said]
