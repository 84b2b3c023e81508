"""Pipeline files that nobody meant well: exit code 2, every problem at once, no traceback, within a second."""

import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_pipelines import CANARY, VALID, Answer, answers, bad_pipelines, file
from commandline import as_it_was
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.config import MOST_PROBLEMS
from compress.errors import ConfigError
from compress.pipeline import Pipeline, read
from compress.yamlfile import MOST_LEVELS, MOST_VALUES, apply_override

# The whole is run by `make faults`; here are all that are broken as a whole, and some of each kind by key.
QUICK = 320


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch, as_it_was():
        patch.chdir(folder)
        return [*answers(bad_pipelines(seed=0, count=QUICK), Path("p.yaml"))]


def test_there_are_more_than_a_thousand_and_always_the_same() -> None:
    cases = bad_pipelines(seed=1, count=1200)
    assert len(cases) >= 1000
    assert len({content for _, content in cases}) == len(cases)
    assert cases == bad_pipelines(seed=1, count=1200)
    assert cases != bad_pipelines(seed=2, count=1200)


def test_what_they_are_made_of_is_good(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(file())
    assert read(tmp_path / "p.yaml").name == "valid"


def test_every_bad_pipeline_is_refused(answered: list[Answer]) -> None:
    assert len(answered) == QUICK
    assert [each for each in answered if each.code != 2] == []


def test_every_refusal_is_in_words(answered: list[Answer]) -> None:
    for each in answered:
        assert each.said.startswith("error: p.yaml "), each
        assert not re.search(r"Traceback|bug of compress|Error:|<class|object at 0x", each.said), each
        assert len(each.said.splitlines()) <= MOST_PROBLEMS + 3, each
        assert len(each.said) < 40_000, each.name
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", each.said), each


def test_refusals_come_within_a_second(answered: list[Answer]) -> None:
    seconds = sorted(each.seconds for each in answered)
    assert seconds[math.ceil(0.99 * len(seconds)) - 1] < 1
    assert seconds[-1] < 10


def test_no_bad_pipeline_runs_anything(answered: list[Answer], tmp_path_factory: pytest.TempPathFactory) -> None:
    assert sum(CANARY in content.decode(errors="replace") for _, content in bad_pipelines(count=QUICK)) >= 5
    assert not [*tmp_path_factory.getbasetemp().rglob(CANARY)]


# Files that are none


SPECIAL: list[tuple[str, Callable[[Path], Any], str]] = [
    ("a folder", Path.mkdir, "p.yaml cannot be read: Is a directory; give a YAML file"),
    ("a pipe", os.mkfifo, "p.yaml is a pipe or a device; give a YAML file"),
    ("zeros without end", lambda p: p.symlink_to("/dev/zero"), "p.yaml is a pipe or a device"),
    ("nothing", lambda p: p.symlink_to("/dev/null"), "p.yaml is a pipe or a device"),
    ("a dead link", lambda p: p.symlink_to("gone.yaml"), "no pipeline file"),
    ("a link to itself", lambda p: p.symlink_to("p.yaml"), "p.yaml cannot be read: Too many levels of symbolic links"),
    ("missing", lambda p: None, "no pipeline file"),
    ("a sparse gigabyte", lambda p: (p.touch(), os.truncate(p, 10**9)), "p.yaml is larger than 500,000 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), [case[1:] for case in SPECIAL], ids=[case[0] for case in SPECIAL])
def test_files_that_are_none(make: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    make(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match=re.escape(said)):
        read(tmp_path / "p.yaml")


@pytest.mark.parametrize("name", ["x" * 300 + ".yaml", "x/" * 3000 + "p.yaml", "a\0b.yaml"])
def test_names_that_no_file_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pipeline file|cannot be read: File name too long|cannot be a file"):
        read(tmp_path / name)


# What is odd and good


GOOD = {
    "a date as a name": (file(name=None) + b"name: 2026-01-31\n", "name", "2026-01-31"),
    "a number as a name": (file(name=7), "name", "7"),
    "a mark of the byte order": (b"\xef\xbb\xbf" + file(), "name", "valid"),
    "another system's line ends": (file().replace(b"\n", b"\r\n"), "name", "valid"),
    "JSON": (yaml.safe_dump(VALID, default_flow_style=True).encode(), "name", "valid"),
    "a merge": (b"seed: 5\n<<: {seed: 6, name: merged}\n" + file(name=None), "seed", 5),
    "other letters": (file(name="数字 é"), "name", "数字 é"),
    "a power as a word": (file(budget={"max_bytes_ratio": "1e-3"}), "budget", None),
}  # fmt: skip


@pytest.mark.parametrize(("content", "key", "value"), GOOD.values(), ids=GOOD)
def test_what_is_odd_and_good(content: bytes, key: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    found = read(tmp_path / "p.yaml")
    assert value is None or getattr(found, key) == value
    (tmp_path / "again.yaml").write_text(found.as_yaml(), encoding="utf-8")
    assert read(tmp_path / "again.yaml") == found


def test_aliases_may_repeat_what_is_said_once(tmp_path: Path) -> None:
    text = file(teacher=None, stages=None).decode() + "teacher: {model: mobilenet_v1, training: &t {epochs: 1}}\n"
    (tmp_path / "p.yaml").write_text(text + "stages: [{distill: {training: *t}}, {prune: {training: *t}}]\n")
    found = read(tmp_path / "p.yaml")
    assert [stage.training.epochs for stage in found.stages] == [1, 1]  # type: ignore[attr-defined]


# The bounds, just met and just missed


def nested(levels: int) -> bytes:
    return file() + b"zzz: " + b"[" * levels + b"]" * levels + b"\n"


BOUNDS = [
    (nested(MOST_LEVELS - 1), "zzz: no such key"),
    (nested(MOST_LEVELS), f"it is nested too deep, {MOST_LEVELS} levels are the most"),
    (b"zzz: [" + b"1," * (MOST_VALUES - 3) + b"]", "zzz: no such key"),
    (b"zzz: [" + b"1," * MOST_VALUES + b"]", f"it holds more than {MOST_VALUES:,} values"),
    (file(seed=int("9" * 100)), "seed: should be less than 2147483648"),
    (b"seed: 1" + b"9" * 100, "an integer of 101 characters, where 100 are the most"),
    (file(seed=True), "seed: should be a number, not true"),
    (file(data={"synthetic": {"channels": True}}), "data.synthetic.channels: should be a number, not true"),
    (file(data={"synthetic": {"samples": 2**53 + 1}}), "samples: should be less than or equal to 9007199254740992"),
    (file(stages=["quantize"] * 101), "stages: should have at most 100 items, not 101"),
    (file(name="a\nb"), "name: should be one line of visible characters, not 'a\\nb'"),
    (file(name="a\u202eb"), "name: should be one line of visible characters"),
    (file(name="a\x1bb"), "the character U+001B stands in a text, where only visible ones should"),
    (b"seed: &a [*a]\n", "what an anchor (&) names holds an alias (*) of itself"),
    (b"seed: !!int ''\n", "a value does not fit its tag"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), BOUNDS, ids=[said[:40] for _, said in BOUNDS])
def test_bounds(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "p.yaml")
    assert said in str(caught.value)


def test_all_problems_come_at_once_and_very_many_are_counted(tmp_path: Path) -> None:
    keys = {f"key{i}": i for i in range(MOST_PROBLEMS + 20)}
    (tmp_path / "p.yaml").write_bytes(file(seed=True, stages=[{"prune": {"steps": 0}}, "zzz"], **keys))
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "p.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == MOST_PROBLEMS + 2
    assert lines[1] == "  key0: no such key. Known: " + ", ".join(sorted(Pipeline.model_fields))
    assert lines[-1] == "  and 23 more"


# Whatever hypothesis thinks of


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=8) | st.dates()
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
BOUNDED = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def refusal(act: Callable[[], Any]) -> str:
    """What ConfigError says, empty where there is none; any other exception ends the test."""
    try:
        act()
    except ConfigError as error:
        return str(error)
    return ""


LONGEST = 40_000  # characters of all problems together


def dumped(raw: object) -> bytes:
    """As YAML, lone surrogates included."""
    return yaml.safe_dump(raw, allow_unicode=True).encode("utf-8", "surrogatepass")


def answer(path: Path, content: bytes) -> str:
    """What is said of a file with this content, empty where it is read."""
    path.write_bytes(content)
    return refusal(lambda: read(path))


@BOUNDED
@given(key=st.sampled_from([*Pipeline.model_fields]), junk=JUNK)
def test_junk_under_a_key(key: str, junk: object, tmp_path: Path) -> None:
    raw = {**VALID, key: junk}
    assert len(answer(tmp_path / "p.yaml", dumped(raw))) < LONGEST


@BOUNDED
@given(stage=st.sampled_from(["distill", "prune", "quantize", "search"]), junk=st.dictionaries(st.text(), JUNK))
def test_junk_in_a_stage(stage: str, junk: object, tmp_path: Path) -> None:
    raw = {**VALID, "stages": [{stage: junk}]}
    assert len(answer(tmp_path / "p.yaml", dumped(raw))) < LONGEST


@BOUNDED
@given(content=st.binary(max_size=200) | st.text(alphabet="{}[]:,-&*!%|>?'\"#@ \n\tab1", max_size=200).map(str.encode))
def test_junk_for_a_file(content: bytes, tmp_path: Path) -> None:
    assert len(answer(tmp_path / "p.yaml", content)) < LONGEST


@BOUNDED
@given(start=st.integers(0, 400), length=st.integers(0, 40), patch=st.binary(max_size=20))
def test_a_good_file_with_a_spoilt_part(start: int, length: int, patch: bytes, tmp_path: Path) -> None:
    whole = file()
    start = min(start, len(whole))
    assert len(answer(tmp_path / "p.yaml", whole[:start] + patch + whole[start + length :])) < LONGEST


@BOUNDED
@given(path=st.text(max_size=30) | st.sampled_from(["stages.²=1", "stages.99=1", "a." * 200 + "b=1"]), value=JUNK)
def test_junk_for_set(path: str, value: object) -> None:
    raw: dict[str, Any] = yaml.safe_load(file())
    for override in (path, f"{path}={value!r}", f"stages.{path}={value}", f"stages.0.distill.{path}=1"):
        assert refusal(partial(apply_override, raw, override))[:6] in ("--set ", "")
