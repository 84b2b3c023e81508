"""Every page: links and their anchors lead somewhere, what is named in code quotes is there, verbs and flags exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from compress.cli import app

ROOT = Path(__file__).parent.parent
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
TEXTS = {
    page.relative_to(ROOT).as_posix(): FENCED.sub("", page.read_text(encoding="utf-8"))
    for page in (*ROOT.glob("*.md"), ROOT / "pipelines" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
FOLDERS = ("compress", "tests", "docs", "benchmarks", "pipelines", "examples", "reports/published")
SUFFIXES = (".py", ".md", ".json", ".yaml", ".ipynb", ".txt", ".cpp")
NAMES = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES}
# What a run writes, or a reader.
WRITTEN = re.compile(
    r"(checksums|stage|net|proof|robustness|pi|device)\.json|(mine|theirs|flowers)\.(py|yaml)|models/README\.md"
)
COMMAND = typer.main.get_command(app)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


def named(text: str) -> Iterator[str]:
    """Paths in code quotes that belong to this repository, by their first folder or their ending."""
    for quoted in re.findall(r"`([^`\s]+)`", text):
        path = quoted.rstrip("/")
        if re.search(r"[<>{}*…=$]|^FILE", path) or WRITTEN.fullmatch(path):
            continue
        if path.startswith(tuple(f"{folder}/" for folder in FOLDERS)) or path.endswith(SUFFIXES):
            yield path


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_anchors_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", TEXTS[page]):
        place = here.parent / target if target else here
        assert place.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(place), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_a_page_names_are_there(page: str) -> None:
    # A path may leave out the package, and a bare name its folder, which a sentence names.
    places = (ROOT, ROOT / "compress", (ROOT / page).parent)
    missing = [
        path for path in named(TEXTS[page])
        if path not in NAMES and not any((place / path).exists() for place in places)
    ]  # fmt: skip
    assert not missing, f"{page} names {missing}"


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "docs/LOG.md"])
def test_verbs_and_flags_that_a_page_names_exist(page: str) -> None:
    verbs = COMMAND.commands  # type: ignore[attr-defined]
    for quoted in re.findall(r"`(?:\.venv/bin/)?compress ([^`]+)`", TEXTS[page]):
        verb, *words = quoted.split()
        if verb.startswith("--"):
            continue
        assert verb in verbs, f"{page}: compress {quoted}"
        known = {option for each in verbs[verb].params for option in each.opts}
        unknown = {word for word in words if word.startswith("--")} - known - {"--help"}
        assert not unknown, f"{page}: compress {quoted}"
