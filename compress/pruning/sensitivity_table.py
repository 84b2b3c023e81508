"""The rows of a sensitivity analysis, on disk: a CSV file that an interrupted analysis goes on from, and a ranking."""

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from compress.files import durable

DIGITS = 16  # of a row's SHA-256


@dataclass(frozen=True)
class Row:
    """What is left of a network without `removed` of the `channels` of a group or layer.

    `kind` is `group`, `layer`, or `net` for the whole network; `ratio` is the share that was asked for. `accuracy` is
    top-1 in per cent, `drop` the points that the whole network has more, `loss` the mean cross-entropy in nats.
    """

    kind: str
    name: str
    channels: int
    ratio: float
    removed: int
    accuracy: float
    drop: float
    loss: float


HEADER = tuple(field.name for field in fields(Row))


class Table:
    """A CSV file of rows and, beside it, the key of what they were measured on and a digest of each row.

    Each row is on disk before the next is measured. A file with another key is started anew, and rows that are not as
    they were written are measured again with all after them, which `say` is told; so is, silently, what an interruption
    left half written. Raises ResourceError where the files cannot be written.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.path, self.say = path, say
        self.key_path = path.with_suffix(".key")
        self.chain = hashlib.sha256()

    def start(self, key: str) -> list[Row]:
        """The rows that are there already; the file ends with the last of them."""
        first, *digests = durable.lines(self.key_path) or [""]
        if self.path.exists() and first != key:
            self.say(f"{self.path.name} was of another net, other data or other settings; it was started anew")
        rows = self._trusted(key, digests) if first == key else []
        self.chain = hashlib.sha256(key.encode())
        known = [key, *(self._digest(row) for row in rows)]
        # The key comes last: a file without one is never taken for finished work.
        durable.remove(self.key_path)
        durable.write(self.path, "".join(map(line, [HEADER, *map(astuple, rows)])))
        durable.write(self.key_path, "\n".join(known) + "\n")
        return rows

    def append(self, row: Row) -> None:
        """Write a row, at once."""
        durable.append(self.path, line(astuple(row)).rstrip("\n"))
        durable.append(self.key_path, self._digest(row))

    def _trusted(self, key: str, digests: Sequence[str]) -> list[Row]:
        """The rows of the file up to the first that is not as it was written."""
        rows = read(self.path)
        self.chain = hashlib.sha256(key.encode())
        for i, digest in enumerate(digests):
            if i >= len(rows) or self._digest(rows[i]) != digest:
                self.say(f"{self.path.name} is damaged at row {i + 1}; it is measured again from there")
                return rows[:i]
        return rows[: len(digests)]

    def _digest(self, row: Row) -> str:
        """Of a row and all before it."""
        self.chain.update(line(astuple(row)).encode())
        return self.chain.hexdigest()[:DIGITS]


def read(path: Path) -> list[Row]:
    """The rows of a file as far as they are whole; none where there is no such file."""
    rows = []
    for values in csv.reader(durable.lines(path)[1:]):
        try:
            kind, name, channels, ratio, removed, *figures = values
            accuracy, drop, loss = map(float, figures)
            rows.append(Row(kind, name, int(channels), float(ratio), int(removed), accuracy, drop, loss))
        except ValueError:
            break
    return rows


def line(values: Sequence[object]) -> str:
    """Values as one line of CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def ranked(rows: Sequence[Row], kind: str) -> list[tuple[str, float]]:
    """Groups or layers with their mean drop over all ratios, in points, the most sensitive first; of equals by loss."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == kind:
            found.setdefault(row.name, []).append(row)
    means = [
        (name, sum(row.drop for row in its) / len(its), sum(row.loss for row in its) / len(its))
        for name, its in found.items()
    ]
    return [(name, drop) for name, drop, loss in sorted(means, key=lambda each: (-each[1], -each[2]))]


def summary(rows: Sequence[Row], most: int = 3) -> list[str]:
    """One sentence for groups and one for layers: the most and the least sensitive."""
    found = []
    for kind, what in (("group", "coupled groups"), ("layer", "single layers")):
        order = ranked(rows, kind)
        if order:
            ends = order[:most], order[most:][-most:]
            first, last = (", ".join(f"{name} ({drop:.1f})" for name, drop in end) for end in ends)
            least = f"; least: {last}" if last else ""
            found.append(f"Sensitivity of {what}, mean points lost over all ratios. Most: {first}{least}.")
    return found
