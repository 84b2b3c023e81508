"""report.html in a real browser: drawn, quiet, quick, readable on a phone, and open to everyone."""

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from made_reports import DETAILED, FULL, VARIANTS

from compress.report import html, plots
from compress.report.comparison import compare
from compress.report.comparison_page import render

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
REPORTS = {"hostile": VARIANTS["hostile"], **DETAILED}
COMPARISON = "comparison"
FIRST_CHART_S = 2.0
PHONE = 390


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Browser(Path(profile)) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each report's page, and a comparison's."""
    folder = tmp_path_factory.mktemp("pages")
    texts = {name: html.render(report) for name, report in REPORTS.items()}
    texts[COMPARISON] = render(compare({"one": FULL, "two": FULL}))
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [("rich", 1280, True), *((name, PHONE, False) for name in (*REPORTS, COMPARISON))],
)
def test_every_chart_is_drawn_without_complaint_or_request(
    name: str, width: int, dark: bool, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [pages[name].as_uri()]
    drawn = browser.value("[...document.querySelectorAll('.chart')].filter((c) => c.querySelector('.main-svg')).length")
    assert drawn == browser.value("document.querySelectorAll('.chart').length")
    if name in REPORTS:
        assert drawn == len(plots.figures(REPORTS[name]))
    assert browser.value("document.documentElement.scrollWidth") == width
    outside = "[...document.querySelectorAll('.chart')].filter((c) => c.getBoundingClientRect().right > innerWidth)"
    assert browser.value(f"{outside}.length") == 0


def test_the_first_chart_comes_soon(browser: Browser, pages: dict[str, Path]) -> None:
    assert min(browser.open(pages["rich"]) for _ in range(2)) <= FIRST_CHART_S


def test_paper_has_every_chart_and_the_pipeline(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["rich"])
    browser("Emulation.setEmulatedMedia", media="print")
    browser.value("dispatchEvent(new Event('beforeprint'))")
    assert browser.value("[...document.querySelectorAll('details.printed')].every((d) => d.open)")
    browser.wait("charts.every((chart) => chart.layout.width === 660)")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.value("dispatchEvent(new Event('afterprint'))")
    assert browser.value("[...document.querySelectorAll('details.printed')].every((d) => !d.open)")
    assert len(browser("Page.printToPDF")["data"]) > 50_000
    browser("Emulation.setEmulatedMedia", media="screen")


def test_all_can_be_reached_with_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["rich"], width=PHONE)
    scrolling = "[...document.querySelectorAll('*')].filter((e) => e.scrollWidth > e.clientWidth + 1 &&"
    hidden = f"{scrolling} getComputedStyle(e).overflowX == 'auto' && e.tabIndex < 0).length"
    assert browser.value(hidden) == 0
    links = "[...document.querySelectorAll('nav a')]"
    assert browser.value(f"{links}.every((a) => document.querySelector(a.getAttribute('href')))")
    assert browser.value(f"{links}.length") == 9
    browser.value("document.querySelector('summary').focus()")
    for kind in ("keyDown", "keyUp"):
        key: dict[str, Any] = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        browser("Input.dispatchKeyEvent", type=kind, text="\r" if kind == "keyDown" else "", **key)
    assert browser.value("document.querySelector('details').open")


def axe() -> str:
    """The engine that finds what keeps people out (github.com/dequelabs/axe-core)."""
    found = find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("axe-core is not installed")
    return Path(found.origin).with_name("axe.min.js").read_text()


@pytest.mark.parametrize(("name", "dark"), [("rich", False), ("rich", True), (COMPARISON, True)])
def test_nobody_is_kept_out(name: str, dark: bool, browser: Browser, pages: dict[str, Path]) -> None:
    engine = axe()
    browser.open(pages[name], dark=dark)
    browser("Runtime.evaluate", expression=engine)
    run = "axe.run(document, {resultTypes: ['violations']})"
    named = "violations.map((v) => [v.impact, v.id, v.nodes.length, v.nodes[0].html])"
    found = browser.value(f"{run}.then((r) => r.{named})")
    assert [each for each in found if each[0] in ("serious", "critical")] == []


def test_the_engine_does_see_what_is_wrong(browser: Browser, pages: dict[str, Path]) -> None:
    engine = axe()
    browser.open(pages[COMPARISON])
    browser("Runtime.evaluate", expression=engine)
    pale = '<p id="pale" style="color:#999;background:#aaa">pale</p>'
    browser.value(f"document.querySelector('main').insertAdjacentHTML('beforeend', '{pale}')")
    run = "axe.run('#pale', {runOnly: ['color-contrast']})"
    assert browser.value(f"{run}.then((r) => r.violations.map((v) => v.id))") == ["color-contrast"]
