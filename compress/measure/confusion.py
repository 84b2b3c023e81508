"""What became of the predictions: which classes lost, which confusions grew, which images changed sides."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.errors import ArtifactError

CONFUSIONS = 8
EXAMPLES = 12


@dataclass(frozen=True)
class ClassAccuracy:
    """One class: its test images, and the share of them (per cent) that each of two files gets right."""

    name: str
    samples: int
    before: float
    after: float


@dataclass(frozen=True)
class Confusion:
    """How many images of class `label` two files take for class `predicted`."""

    label: str
    predicted: str
    before: int
    after: int


@dataclass(frozen=True)
class Example:
    """A test image, by its number in the predictions, of which two files say different things.

    `png` is the picture, a PNG file in base64; empty where it is not shown.
    """

    sample: int
    label: str
    before: str
    after: str
    png: str = ""


@dataclass(frozen=True)
class Changes:
    """Two files on the same test images, named by their nets.

    `worse` images only the first gets right, `better` only the second; `other` are wrong in two different ways.
    `p_value` is McNemar's exact one (1947, Psychometrika 12:153): how often chance alone would part `worse` from
    `better` at least as far if neither file were better. `confusions` are those that grew, the most grown first.
    """

    before: str
    after: str
    samples: int
    worse: int
    better: int
    other: int
    p_value: float
    classes: tuple[ClassAccuracy, ...]
    confusions: tuple[Confusion, ...]
    examples: tuple[Example, ...]


def changes(
    names: tuple[str, str], labels: np.ndarray, before: np.ndarray, after: np.ndarray, classes: Sequence[str]
) -> Changes:
    """Compare what two nets' files, `names`, predict: labels and predictions are (n,) class numbers.

    Classes without a test image are left out. Examples are at most twelve: images that got worse come first, then
    those that got better, then the rest, and in each the classes take turns.
    """
    right_before, right_after = before == labels, after == labels
    worse, better = right_before & ~right_after, right_after & ~right_before
    other = (before != after) & ~right_before & ~right_after
    lost, won = int(worse.sum()), int(better.sum())
    found = [k for kind in (worse, better, other) for k in _in_turn(np.flatnonzero(kind), labels)]
    return Changes(
        *names,
        samples=len(labels),
        worse=lost,
        better=won,
        other=int(other.sum()),
        p_value=_mcnemar(lost, won),
        classes=tuple(_by_class(labels, right_before, right_after, classes)),
        confusions=tuple(_grown(labels, before, after, classes)),
        examples=tuple(
            Example(int(k), classes[labels[k]], classes[before[k]], classes[after[k]]) for k in found[:EXAMPLES]
        ),
    )


def read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the file's predictions, both (n,), out of a CSV file of a run; raises ArtifactError."""
    try:
        with path.open(newline="") as file:
            rows = [(int(row["label"]), int(row["onnx"])) for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ArtifactError(f"{path} cannot be read as predictions: {error}; run the pipeline again") from error
    found = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _by_class(labels: np.ndarray, before: np.ndarray, after: np.ndarray, names: Sequence[str]) -> list[ClassAccuracy]:
    counts = np.bincount(labels, minlength=len(names))
    right = [np.bincount(labels, weights=each, minlength=len(names)) for each in (before, after)]
    return [
        ClassAccuracy(name, int(counts[k]), *(float(100 * each[k] / counts[k]) for each in right))
        for k, name in enumerate(names)
        if counts[k]
    ]


def _grown(labels: np.ndarray, before: np.ndarray, after: np.ndarray, names: Sequence[str]) -> list[Confusion]:
    # Only pairs that occur are counted: a table of all would have a million cells for a thousand classes.
    counts: dict[tuple[int, int], list[int]] = {}
    for i, predicted in enumerate((before, after)):
        wrong = predicted != labels
        for pair in zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True):
            counts.setdefault(pair, [0, 0])[i] += 1
    grown = sorted(
        ((pair, was, now) for pair, (was, now) in counts.items() if now > was), key=lambda e: (e[1] - e[2], e[0])
    )
    return [Confusion(names[label], names[said], was, now) for (label, said), was, now in grown[:CONFUSIONS]]


def _in_turn(samples: np.ndarray, labels: np.ndarray) -> list[int]:
    """Samples reordered so that the classes take turns, each in its own order."""
    seen: dict[int, int] = {}
    ranked = []
    for k in samples.tolist():
        label = int(labels[k])
        seen[label] = seen.get(label, 0) + 1
        ranked.append((seen[label], label, k))
    return [k for *_, k in sorted(ranked)]


def _mcnemar(worse: int, better: int) -> float:
    from scipy.stats import binomtest  # here, because reading a report should not wait for it

    return float(binomtest(worse, worse + better).pvalue) if worse + better else 1.0
