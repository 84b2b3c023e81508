"""Where the label of a point goes so that it hides nothing. Counts in pixels, y downwards."""

from collections.abc import Sequence

# Widths between the axes on a phone and on a desk, the height of both, of a line, the width of a letter.
PLOT_WIDTHS = (270, 440)
PLOT_HEIGHT = 270
LETTER, LINE = 6.6, 15
LONGEST = 22

Offset = tuple[float, float]
Box = tuple[float, float, float, float]
Spot = tuple[float, float, float, float]
Obstacles = dict[int, list[Box]]

# So many of the candidates, beside the point and one step around it, count as near.
NEAR = 16


def shortened(name: str, longest: int = LONGEST) -> str:
    """A name short enough to stand in a picture."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def touches(offset: Offset) -> bool:
    """True where the label stands right beside its point, so that no line has to lead to it."""
    return offset[0] == 0 or offset[1] == 0


def place(spots: Sequence[Spot], texts: Sequence[str], rules: Sequence[Box] = ()) -> list[Offset]:
    """The middle of each label relative to its point, clear of other labels with their lines, points and whiskers.

    A spot is a point's (x, y) and the ends (low, high) of its whisker as fractions of the plot, counted from
    its upper left corner; `rules` are the lines of the plot, (left, upper, right, lower) in the same way. Greedy, in
    the order given; free means free at every width in PLOT_WIDTHS.
    """
    fixed = {width: [_marker(spot, width) for spot in spots] for width in PLOT_WIDTHS}
    thin = {width: [_whisker(s, width) for s in spots] + [_rule(r, width) for r in rules] for width in PLOT_WIDTHS}
    leaders: Obstacles = {width: [] for width in PLOT_WIDTHS}
    offsets = []
    for spot, text in zip(spots, texts, strict=True):
        length = LETTER * len(text)
        offset = _first_free(spot, length, fixed, thin, leaders)
        offsets.append(offset)
        for width in PLOT_WIDTHS:
            fixed[width].append(_box(spot, offset, length, width))
            leaders[width] += _leader(spot, offset, length, width)
    return offsets


def _first_free(spot: Spot, length: float, fixed: Obstacles, thin: Obstacles, leaders: Obstacles) -> Offset:
    """Near and clear of everything; else near, across a thin line; else farther off; else to the right.

    Only where nothing else is left may the line that leads to a label cross another label or line.
    """
    candidates = _candidates(length)
    near = candidates[:NEAR]
    solid = {width: fixed[width] + leaders[width] for width in PLOT_WIDTHS}
    both = {width: solid[width] + thin[width] for width in PLOT_WIDTHS}
    for group, obstacles, crossed in (
        (near, both, solid), (near, solid, solid), (candidates, both, solid), (candidates, solid, solid),
        (near, fixed, None), (candidates, fixed, None),
    ):  # fmt: skip
        for offset in group:
            if _is_free(spot, offset, length, obstacles) and (crossed is None or _leads(spot, offset, length, crossed)):
                return offset
    return candidates[0]


def _candidates(length: float) -> list[Offset]:
    side, above = length / 2 + 9, LINE / 2 + 8
    beside = [(side, 0.0), (-side, 0.0), (0.0, -above), (0.0, above)]
    around = [
        (right * (length / 2 + reach), down * (above + 0.6 * reach))
        for reach in (8, 24, 40, 60, 85)
        for down in (-0.7, 0.7, -1.2, 1.2, -1.8, 1.8)
        for right in (1, -1)
    ]
    steep = [
        (right * length / 4, down * (above + reach))
        for reach in (16, 32, 56, 80)
        for down in (-1, 1)
        for right in (1, -1)
    ]
    return beside + around + steep


def _is_free(spot: Spot, offset: Offset, length: float, taken: Obstacles) -> bool:
    for width, boxes in taken.items():
        box = _box(spot, offset, length, width)
        inside = box[0] >= -4 and box[2] <= width + 4 and box[1] >= 0 and box[3] <= PLOT_HEIGHT
        if not inside or any(_overlap(box, other) for other in boxes):
            return False
    return True


def _leads(spot: Spot, offset: Offset, length: float, taken: Obstacles) -> bool:
    """Whether the line to a label crosses nothing but what lies on the point itself."""
    for width, boxes in taken.items():
        own = _marker(spot, width)
        apart = [box for box in boxes if not _overlap(box, own)]
        if any(_overlap(step, box) for step in _leader(spot, offset, length, width) for box in apart):
            return False
    return True


def _box(spot: Spot, offset: Offset, length: float, width: float) -> Box:
    x, y = spot[0] * width + offset[0], spot[1] * PLOT_HEIGHT + offset[1]
    return x - length / 2, y - LINE / 2, x + length / 2, y + LINE / 2


def _marker(spot: Spot, width: float) -> Box:
    x, y = spot[0] * width, spot[1] * PLOT_HEIGHT
    return x - 6, y - 6, x + 6, y + 6


def _whisker(spot: Spot, width: float) -> Box:
    x = spot[0] * width
    return x - 2, spot[3] * PLOT_HEIGHT, x + 2, spot[2] * PLOT_HEIGHT


def _rule(ends: Box, width: float) -> Box:
    left, upper, right, lower = ends
    return left * width - 1, upper * PLOT_HEIGHT - 1, right * width + 1, lower * PLOT_HEIGHT + 1


def _leader(spot: Spot, offset: Offset, length: float, width: float) -> list[Box]:
    """The line from a point to its label as small boxes, as far as it is drawn outside the label."""
    if touches(offset):
        return []
    x, y = spot[0] * width, spot[1] * PLOT_HEIGHT
    label = _box(spot, offset, length, width)
    count = int(max(abs(offset[0]), abs(offset[1])) / 3) + 1
    steps = ((x + offset[0] * i / count, y + offset[1] * i / count) for i in range(1, count))
    boxes = [(right - 1, down - 1, right + 1, down + 1) for right, down in steps]
    return [box for box in boxes if not _overlap(box, label)]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
