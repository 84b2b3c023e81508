"""`compress compare`: the reports of several runs, as one table and one page."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from compress.console import plain
from compress.errors import ArtifactError, CompressError, ConfigError
from compress.files import durable
from compress.files.run_folder import require_sound
from compress.report import Report, read
from compress.report.comparison import Comparison, compare
from compress.report.comparison_page import NETS_NUMERIC, RUNS_NUMERIC, nets, render, runs
from compress.report.json import FILE
from compress.report.tables import Table
from compress.spelling import nearest_file

WIDE = 10_000  # columns off a terminal, where nothing wraps
PAGE = Path("compare.html")
# Columns that a narrow terminal can do without, the least wanted first; the page has them all.
SPARED = ("Parameters", "MACs", "Student", "Role", "95 %", "Result", "Teacher's", "Verdict", "Teacher")
# Characters that turn the direction of what follows.
TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Put the reports in these run folders side by side.

    Raises ConfigError for a folder that is given twice or has no report.json, ArtifactError for one that is damaged;
    all such folders are named at once.
    """
    reports: dict[Path, Report] = {}
    problems: list[CompressError] = []
    for folder in folders:
        try:
            if folder.resolve() in {given.resolve() for given in reports}:
                raise ConfigError(f"{folder} is given twice")
            reports[folder] = _read(folder)
        except CompressError as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))
    return compare(named(reports))


def named(reports: Mapping[Path, Report]) -> dict[str, Report]:
    """Reports by the shortest name that tells them apart: the pipeline's, else the folder's, else its path."""
    for name_of in (lambda path: reports[path].name, lambda path: path.resolve().name, str):
        found = {name_of(path): report for path, report in reports.items()}
        if len(found) == len(reports):
            return found
    raise AssertionError("paths differ")


def write_page(comparison: Comparison, file: Path) -> None:
    """Write the page; raises ConfigError for a name that is no page's, ResourceError where it cannot be written."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {file}: should be a file that ends in .html")
    durable.write(file, render(comparison))


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print the tables and the warnings: coloured in a terminal, plain and unwrapped elsewhere."""
    console = console or Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    front = [entry.smallest or entry.fastest for entry in comparison.entries]
    console.print(_fitting(console, runs(comparison), RUNS_NUMERIC, [False] * len(comparison.runs)))
    console.print()
    console.print(_fitting(console, nets(comparison), NETS_NUMERIC, front))
    for warning in comparison.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(_line(warning))}", soft_wrap=True)


def _read(folder: Path) -> Report:
    if not (folder / "report.json").exists():
        what = "has no report.json: give the folder of a finished run" if folder.is_dir() else "is no run folder"
        near = "" if folder.is_dir() else nearest_file(folder, folder=True)
        raise ConfigError(f"{folder} {what}{'.' if near else ''}{near}")
    require_sound(folder, FILE)
    report = read(folder)
    for row in (*report.rows, *report.alternatives):
        figures = (row.top1_onnx, row.throughput, row.latency_ms.p50)
        if not all(map(math.isfinite, figures)) or not 0 <= row.top1_onnx <= 100:
            raise ArtifactError(
                f"{folder / 'report.json'} is damaged: the accuracy or speed of {row.net} is no such number. "
                "Run the pipeline again; what is done is kept."
            )
    return report


def _fitting(console: Console, table: Table, numeric: Sequence[int], marked: Sequence[bool]) -> Grid:
    """The table for a terminal, without the columns that it has no room for."""
    columns = [*range(len(table.head))]
    grid = _grid(table, columns, numeric, marked)
    for name in SPARED:
        if console.measure(grid, options=console.options.update_width(WIDE)).maximum <= console.width:
            break
        columns = [i for i in columns if table.head[i] != name]
        grid = _grid(table, columns, numeric, marked)
    return grid


def _grid(table: Table, columns: Sequence[int], numeric: Sequence[int], marked: Sequence[bool]) -> Grid:
    grid = Grid(title=escape(table.caption), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i in columns:
        name = table.head[i]
        grid.add_column(name, justify="right" if i in numeric else "left", no_wrap=i in numeric, overflow="fold")
    for cells, bold in zip(table.body, marked, strict=True):
        grid.add_row(*(escape(_line(cells[i])) for i in columns), style="bold" if bold else None)
    return grid


def _line(text: str) -> str:
    """Text on one line, without characters that could write to a terminal behind one's back."""
    return TURNING.sub("�", plain(" ".join(text.split())))
