"""Bars of progress that fit the terminal: a name, a bar, and as many figures as there is room for."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

NARROWEST_BAR, WIDEST_BAR = 6, 24
GAP = 2


@dataclass(frozen=True)
class Bar:
    """One line: `share` is what is done, from 0 to 1, None where nobody knows; figures stand with the dearest first."""

    name: str
    share: float | None
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Bars:
    """Lines one below the other, their columns aligned; none is ever wider than the terminal."""

    bars: Sequence[Bar]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.bars:
            return
        width = options.max_width - 1  # some terminals go on to the next line when the last column is written
        name, bar = widths([each.name for each in self.bars], width)
        grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        grid.add_column(width=name, no_wrap=True, overflow="crop")
        if bar:
            grid.add_column(width=bar, no_wrap=True)
        grid.add_column(no_wrap=True, overflow="crop")
        for each in self.bars:
            text = "  ".join(fitting(each.figures, width - name - GAP - (bar + GAP if bar else 0)))
            drawn = ProgressBar(total=1.0, completed=each.share or 0.0, width=bar)
            label = Text(set_cell_size(each.name, name), style="bold")
            grid.add_row(label, *([drawn] if bar else []), Text(text))
        yield from console.render(grid, options.update(width=max(width, 1)))


def widths(names: Sequence[str], width: int) -> tuple[int, int]:
    """Columns of the names and of the bars, the latter 0 where there is no room for one."""
    name = min(max(map(cell_len, names)), max(width // 4, 6))
    bar = min(WIDEST_BAR, width // 6)
    return name, bar if bar >= NARROWEST_BAR else 0


def fitting(figures: Sequence[str], width: int) -> list[str]:
    """The figures from the first on that fit side by side."""
    chosen: list[str] = []
    for figure in figures:
        if sum(map(cell_len, chosen)) + GAP * len(chosen) + cell_len(figure) > width:
            break
        chosen.append(figure)
    return chosen
