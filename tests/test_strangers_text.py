"""Names that are orders to a terminal, a browser, Markdown, a spreadsheet or a file system: none is obeyed."""

import csv
import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from browser import CHROMIUM, Browser
from commandline import as_it_was
from injections import ALL, INJECTIONS
from made_reports import FULL, records, row
from markdown_it import MarkdownIt
from page import Page
from rich.console import Console
from tiny import raw_pipeline

import compress.console as console
import compress.report.page as page
from compress import cli
from compress.config import Config
from compress.console import explain, one_line, plain, say, show_rows
from compress.errors import ConfigError, DataError
from compress.measure.confusion import changes
from compress.pipeline import parsed
from compress.report import Curve, Layer, LeftFloat, Report, Rounding, html, markdown, pictures, read, write
from compress.report.comparison import compare
from compress.report.comparison_page import render as render_comparison
from compress.report.legible import legible
from compress.row import Control, Distribution
from compress.running.proof import write_predictions
from compress.showing.screen import Screen
from compress.verbs.catalogue import TABLES, check_members
from compress.verbs.comparing import show

ORDERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ROWS = 16


def report(texts: tuple[str, ...], name: str) -> Report:
    """A report that has the texts wherever a stranger's words can come to stand."""
    nets = [replace(row(f"net{i}", 90 - i, 10**6 + i, 1.0 + i), net=text) for i, text in enumerate(texts[:ROWS])]
    labels = np.arange(len(texts))
    return Report(
        name=name, verdict="pass", budget=(), rows=(FULL.rows[1], *nets[:-2]), alternatives=tuple(nets[-2:]),
        baseline="baseline", teacher=None,
        environment={"cpu": texts[0], "threads": 1, **{f"key {i} {text}": text for i, text in enumerate(texts)}},
        data={"name": texts[1], "class_names": list(texts), "classes": len(texts), "sizes": {"train": 1, "test": 1}},
        layers=tuple(Layer(f"{text} {i}", 8, 4, 20, 10, 1.5) for i, text in enumerate(texts)),
        rounding=tuple(Rounding(f"{text} {i}", 20.0 + i) for i, text in enumerate(texts)),
        left_float=tuple(LeftFloat(text, text, text) for text in texts),
        changes=changes((texts[2], texts[3]), labels, labels, np.roll(labels, 1), texts),
        timings=tuple(Distribution(net.net, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6), 9) for net in nets),
        control=Control(texts[4], 1.0, 0.01),
        curves=tuple(Curve(f"{text} {i}", records(1)) for i, text in enumerate(texts[:ROWS])),
        warnings=texts, notes=texts, pipeline_yaml="\n".join(texts), command=" ".join(texts),
    )  # fmt: skip


def harmless(count: int) -> tuple[str, ...]:
    return tuple(f"name{i}" for i in range(count))


# So that each kind has its turn as a name of nets, of which a report has few.
HOSTILE = report(ALL[::-1], ALL[0])
TURNED = [report((*ALL[i:], *ALL[:i]), ALL[i]) for i in range(0, len(ALL), ROWS)]


@pytest.fixture
def no_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without 4.8 MB of plotly.js, which no name comes near."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "/* plotly.js */")


def shape(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """A page's elements with the names of their attributes; of JSON inside scripts nothing."""
    return [(tag, tuple(sorted(attributes))) for tag, attributes in Page(text).tags]


# Pages


def test_there_are_200_injections_of_every_kind() -> None:
    assert len(ALL) >= 200
    assert len(set(ALL)) == len(ALL)
    assert sum("window.touched" in text for text in ALL) >= 100
    assert all(len(group) >= 15 for group in INJECTIONS.values())


def test_no_name_makes_an_element_or_an_attribute_of_a_report(no_plotly: None) -> None:
    expected = shape(html.render(legible(report(harmless(len(ALL)), "name"))))
    for hostile in (HOSTILE, TURNED[0], TURNED[-1]):
        text = html.render(legible(hostile))
        found = Page(text)
        assert shape(text) == expected
        assert len(found.scripts) == 3
        assert found.scripts[1] == "/* plotly.js */"
        figures = json.loads(found.scripts[0])
        assert "<" not in found.scripts[0]
        assert "\u2028" not in found.scripts[0]
        assert set(figures) >= {"accuracy-size", "accuracy-latency", "channels"}


def test_a_page_shows_every_name_as_it_is(no_plotly: None) -> None:
    shown = Page(html.render(legible(HOSTILE))).text
    for text in ALL:
        assert re.sub(r"\s+", " ", plain(text)).strip() in shown


def test_what_plotly_is_given_has_no_markup_but_ours(no_plotly: None) -> None:
    text = html.render(legible(HOSTILE))
    figures = json.loads(Page(text).scripts[0])

    def texts(value: Any) -> Any:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from texts(inner)

    found = set(texts(figures))
    assert len(found) > len(ALL)
    for each in found:
        assert not re.search(r"[<>$]", re.sub(r"</?b>|<br>", "", each)), each


def test_no_name_makes_an_element_of_a_comparison(no_plotly: None) -> None:
    runs = {f"run {i} {text}": replace(FULL, name=text) for i, text in enumerate(ALL[::12])}
    elsewhere = FULL.environment | {"cpu": "x", "data_fingerprint": "y"}
    calm = {"a": FULL, "b": replace(FULL, name="x", environment=elsewhere)}
    for hostile in (runs, {"a": HOSTILE, "b": TURNED[3]}):
        text = render_comparison(compare({plain(name): legible(each) for name, each in hostile.items()}))
        assert {tag for tag, _ in Page(text).tags} <= {tag for tag, _ in Page(render_comparison(compare(calm))).tags}
        assert len(Page(text).scripts) == 3
        assert "<" not in Page(text).scripts[0]


# Whatever waits for a person: moved over, clicked, focused. What acts although this page does not say so.
PROVOKE = """new Promise((done) => setTimeout(() => {
  const all = [...document.querySelectorAll("*")];
  for (const each of all.filter((each) => !each.closest(".chart")))
    for (const kind of ["mouseover", "mouseenter", "click", "focus", "toggle", "animationstart", "error", "load"])
      each.dispatchEvent(new Event(kind));
  const acting = all.filter((each) => [...each.attributes].some((name) => /^on|href|srcdoc|action/.test(name.name)));
  const found = acting.filter((each) => !each.closest(".chart defs, .chart use, nav")).map((each) => each.tagName);
  done([window.touched === undefined, location.href, ...found].join(" "));
}, 500))"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_runs_none_of_them(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html.render(legible(HOSTILE)))
    with Browser(tmp_path / "user") as browser:
        browser.open(file)
        assert browser.value(PROVOKE) == f"true {file.as_uri()}"
        assert browser.complaints == []  # nothing was refused by the content security policy either
        assert browser.value("document.querySelectorAll('.chart.js-plotly-plot').length") > 0


# Files


def test_markdown_has_no_element_that_a_name_made() -> None:
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def kinds(text: str) -> list[str]:
        tokens = reader.parse(text)
        inner = [child.type for token in tokens for child in token.children or ()]
        return [token.type for token in tokens if "t" not in token.type[:1]] + sorted({*inner} - {"text_special"})

    calm = report(harmless(len(ALL)), "name")
    expected = kinds(markdown.render(calm, ["accuracy-size.svg"]))
    for hostile in (HOSTILE, TURNED[1], TURNED[-2]):
        found = kinds(markdown.render(legible(hostile), ["accuracy-size.svg"]))
        assert {*found} <= {*expected, "softbreak"}
        assert found.count("heading_open") == expected.count("heading_open")
        assert found.count("html_block") == expected.count("html_block")
        assert found.count("bullet_list_open") == expected.count("bullet_list_open")
        assert found.count("list_item_open") == expected.count("list_item_open")


@pytest.mark.parametrize("address", ["https://example.invalid", "see www.example.invalid", "HTTP://x", "ftp://x"])
def test_addresses_in_names_lead_nowhere(address: str) -> None:
    assert not re.search(r"://|www\.", markdown.escaped(address), re.IGNORECASE)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the report that has all of them."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "get_plotlyjs", lambda: "")
        write(HOSTILE, folder)
    return folder


def test_pictures_are_xml_without_anything_that_acts(written: Path) -> None:
    calm = pictures.render(report(harmless(ROWS), "name"))
    for name, picture in calm.items():
        found, expected = ET.parse(written / "pictures" / name).getroot(), ET.fromstring(picture)
        assert {each.tag for each in found.iter()} == {each.tag for each in expected.iter()}
        attributes = {key for each in found.iter() for key in each.attrib}
        assert attributes == {key for each in expected.iter() for key in each.attrib}
        assert not any(key.lower().startswith("on") for key in attributes)


def test_a_report_is_written_and_read_again_whatever_it_is_called(written: Path) -> None:
    assert read(written) == legible(HOSTILE)
    assert sorted(path.name for path in written.iterdir()) == ["pictures", "report.html", "report.json", "report.md"]
    for path in (written / "report.json", written / "report.md", *written.glob("pictures/*")):
        assert not ORDERS.search(path.read_text(encoding="utf-8")), path


def test_a_strangers_report_json_is_cleaned_when_it_is_read(tmp_path: Path) -> None:
    write(FULL, tmp_path)
    text = (tmp_path / "report.json").read_text().replace('"mobilenet"', json.dumps("\x1b]0;x\x07\x9b2Jok"))
    (tmp_path / "report.json").write_text(text)
    assert read(tmp_path).name == "�]0;x��2Jok"


def test_predictions_are_numbers_alone(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", np.array([0, 1]), np.array([1, 1]), np.array([0, 1]))
    head, *rows = csv.reader(io.StringIO((tmp_path / "p.csv").read_text()))
    assert head == ["sample", "label", "torch", "onnx"]
    assert all(cell.isdigit() for line in rows for cell in line)


# Paths


def test_names_make_folder_names_that_every_system_takes() -> None:
    refused = [text for text in ALL if plain(text) != text or len(text) > 100 or len(text.splitlines()) != 1]
    for text in refused:
        with pytest.raises(ConfigError, match=r"name: should (be one line|have at (least|most)|be a valid string)"):
            parsed(raw_pipeline(name=text), "p.yaml")
    slugs = {text: parsed(raw_pipeline(name=text), "p.yaml").slug for text in ALL if text not in refused}
    assert len(slugs) > 150
    for text, slug in slugs.items():
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", slug), (text, slug)
        assert not slug.endswith(".")
        assert slug.split(".")[0].lower() not in ("con", "nul", "aux", "prn", "com1")
        assert len(slug) <= 120


def test_names_in_other_letters_have_folders_of_their_own() -> None:
    names = ["数字", "文字", "ü", "é", "run"]
    slugs = [parsed(raw_pipeline(name=name), "p.yaml").slug for name in names]
    assert len({*slugs}) == len(names)
    # The same name, typed on two systems.
    assert parsed(raw_pipeline(name="e\u0301"), "p.yaml").slug == slugs[3]


ODD_MEMBERS = ["../x", "x/y", "", "x y", "\x1b[31m", "=1+1", "x" * 65, "-x"]


@pytest.mark.parametrize("name", ODD_MEMBERS)
def test_members_of_plugins_are_called_by_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    member = type("Member", (Config,), {"name": name, "__annotations__": {"name": ClassVar[str]}, "__call__": print})
    monkeypatch.setitem(TABLES["models"], name, member)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="should be called by one word"):
        check_members()


# The terminal


def printed(act: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> str:
    act()
    out, err = capsys.readouterr()
    return out + err


EVENTS: list[dict[str, Any]] = [
    {"event": "stage", "stage": "TEXT"},
    {"event": "unchanged", "stage": "TEXT", "folder": "TEXT"},
    {"event": "stage finished", "stage": "TEXT", "seconds": 3},
    {"event": "exporting", "net": "TEXT"},
    {"event": "warning", "text": "TEXT"},
    {"event": "resumed", "stage": "TEXT", "step": 3},
    {"event": "mended", "stage": "TEXT", "text": "TEXT"},
    {"event": "taken over", "host": "TEXT", "pid": 3, "started": "TEXT"},
    {"event": "changed", "fields": ["TEXT"], "rerun": ["TEXT"], "kept": ["TEXT"]},
    {"event": "progress", "stage": "TEXT", "doing": "TEXT", "done": 1, "of": 1, "figures": "TEXT"},
    {
        "event": "epoch", "stage": "TEXT", "epoch": 1, "epochs": 1, "step": 1, "steps": 1, "loss": 1.0, "accuracy": 1.0,
        "images_per_s": 1.0, "left_s": 1.0, "val_accuracy": 1.0,
    },
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=[event["event"] for event in EVENTS])
@pytest.mark.parametrize("live", [False, True])
def test_events_are_shown_and_not_obeyed(event: dict[str, Any], live: bool) -> None:
    for text in ALL:
        told = io.StringIO()
        screen = Screen()
        screen.console = Console(file=told, highlight=False, emoji=False, width=20_000)
        screen.live = live
        words = {"TEXT": text, "['TEXT']": [text]}
        screen({key: words.get(str(value), value) for key, value in event.items()})
        if live:
            screen.console.print(screen.bars())
        assert not ORDERS.search(told.getvalue()), text
        if not live and event["event"] != "warning":
            assert one_line(text) in told.getvalue()


def test_results_and_errors_hold_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ALL:
        for error in (DataError(text), OSError(28, "No space left on device", text), RuntimeError(text)):
            assert not ORDERS.search(explain(error)[0])
        found = printed(lambda text=text: say(text), capsys)
        assert not ORDERS.search(found)
        assert plain(text) in found
        told = SimpleNamespace(rows=[replace(FULL.rows[0], net=text)], alternatives=[])
        assert not ORDERS.search(printed(lambda told=told: show_rows(told), capsys))


def test_a_comparison_on_the_terminal_holds_no_orders() -> None:
    for i, hostile in enumerate(TURNED):
        told = io.StringIO()
        show(compare({ALL[i]: hostile, "calm": FULL}), Console(file=told, highlight=False))
        assert not ORDERS.search(told.getvalue())


def test_rich_takes_no_name_for_markup() -> None:
    told = io.StringIO()
    shown = Console(file=told, width=20_000, force_terminal=True, color_system="truecolor", highlight=False)
    for text in ALL:
        shown.print(console.marked(text), soft_wrap=True)
    assert "\x1b" not in told.getvalue()


def spoken(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit code and all that is printed."""
    with pytest.MonkeyPatch.context() as patch, as_it_was():
        patch.setattr(sys, "argv", ["compress", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    out, err = capsys.readouterr()
    return caught.value.code, out + err


NAME = "\x1b[31m\u202ex"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ls", "pipelines"], 0), (["validate", f"{NAME}.yaml"], 0), (["validate", f"{NAME}bad.yaml"], 2),
        (["show", f"{NAME}.yaml"], 0), (["run", f"--{NAME}"], 2), (["verify", f"{NAME}.onnx"], 4),
        (["report", NAME], 4), (["compare", NAME], 2), (["benchmark", f"{NAME}.onnx"], 4),
    ],
    ids=str,
)  # fmt: skip
def test_no_verb_prints_orders(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / f"{NAME}.yaml").write_text(f"# {NAME}\nname: x\n")
    (tmp_path / f"{NAME}.yaml").write_text(yaml.safe_dump(raw_pipeline()))
    (tmp_path / f"{NAME}bad.yaml").write_text("zzz: 1\n")
    found, said = spoken(words, capsys)
    assert found == code
    assert said
    assert not ORDERS.search(said)
