"""How much a network suffers where it is narrowed in one place: the measurement behind every choice of where to cut.

Two questions, because coupled layers measured one by one look more robust than they are: what if the least important
channels of a coupled group go, in all its layers, and what if filters of a single layer are zeroed.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from compress import __version__
from compress.config import fingerprint
from compress.data.base import Data
from compress.errors import ModelError
from compress.net import Net
from compress.pruning.channels import Prunable
from compress.pruning.judging import Batches, Judged, for_judging, judged, prepared
from compress.pruning.masking import Masked
from compress.pruning.sensitivity_table import Row, Table

By = Literal["groups", "layers"]
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
IMAGES = 500
WHOLE = "net"  # the kind of the first row: nothing removed
Tell = Callable[[Row, int, int], None]


@dataclass(frozen=True)
class Case:
    """One thing to try: `removed` of the `channels` of a coupled group, or of the filters of a layer."""

    kind: str
    name: str
    channels: int
    ratio: float
    removed: int


class Analysis:
    """The sensitivity of one network, measured row by row.

    `by` names what is narrowed, one at a time: `groups`, of which the least important channels by |w|² are removed, and
    `layers`, convolutions of which the filters with the smallest mean |w| are zeroed, floor(ratio · filters) of them
    (Li et al. 2017, arXiv:1608.08710, sec. 3.2). Biases and batch-norms stay as they are, and nothing is trained.
    `images` validation images are judged by, training images where there are fewer than 100 of those; they are prepared
    once. Raises ModelError for a network whose channels cannot be followed, ConfigError where no group can be cut.
    """

    def __init__(
        self,
        net: Net,
        data: Data,
        device: torch.device,
        *,
        ratios: Sequence[float] = RATIOS,
        by: Sequence[By] = ("groups", "layers"),
        images: int = IMAGES,
    ) -> None:
        self.data, self.device, self.images = data, device, images
        grouped = "groups" in by
        prunable = Prunable(net.module, net.example(1)) if grouped else None
        module = prunable.module if prunable is not None else net.module
        self.groups = prunable.groups if prunable is not None else []
        self.masked = Masked(module, self.groups, prunable.scored if prunable is not None else [])
        self.masked.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.cases = [Case(WHOLE, "", 0, 0.0, 0), *self._cases(ratios, by)]
        self.key = fingerprint(
            __version__, torch.__version__, net.spec.model_dump(mode="json"), weights_hash(net.module),
            data.fingerprint, list(ratios), sorted(by), images,
        )  # fmt: skip
        self._found: dict[tuple[str, str, int], Judged] = {}

    def rows(self, table: Table | None = None, tell: Tell = lambda row, done, total: None) -> list[Row]:
        """All rows; those that the table has are taken over, the others written to it one by one.

        Raises ModelError where the network gives no numbers.
        """
        rows = [] if table is None else table.start(self.key)
        known = {(row.kind, row.name, row.ratio) for row in rows}
        for row in rows:
            self._found.setdefault((row.kind, row.name, row.removed), Judged(row.loss, row.accuracy))
        for case in self.cases:
            if (case.kind, case.name, case.ratio) in known:
                continue
            rows.append(self._row(case))
            if table is not None:
                table.append(rows[-1])
            tell(rows[-1], len(rows), len(self.cases))
        return rows

    def _row(self, case: Case) -> Row:
        whole, found = self._judged(self.cases[0]), self._judged(case)
        return Row(
            case.kind, case.name, case.channels, case.ratio, case.removed,
            accuracy=round(found.accuracy, 4), drop=round(whole.accuracy - found.accuracy, 4),
            loss=round(found.loss, 6),
        )  # fmt: skip

    def _judged(self, case: Case) -> Judged:
        """What is left of the network; the same number removed from the same place is measured once."""
        key = (case.kind, case.name, case.removed) if case.removed else (WHOLE, "", 0)
        if key not in self._found:
            with self._narrowed(case):
                self._found[key] = judged(self.masked.module, self._batches)
            if case.kind == WHOLE and not math.isfinite(self._found[key].loss):
                raise ModelError(
                    "the network's outputs are not finite on its own images, so its sensitivity cannot be measured. "
                    "Train it again with a smaller learning rate."
                )
        return self._found[key]

    @cached_property
    def _batches(self) -> Batches:
        return prepared(self.data, for_judging(self.data, self.images), self.device)

    def _cases(self, ratios: Sequence[float], by: Sequence[By]) -> Iterator[Case]:
        for group in self.groups:
            for ratio in ratios:
                bundles = share(ratio, group.width // group.bundle)
                yield Case("group", group.name, group.width, ratio, bundles * group.bundle)
        for path, layer in self.masked.module.named_modules() if "layers" in by else ():
            for ratio in ratios if isinstance(layer, nn.Conv2d) else ():
                yield Case("layer", path, layer.out_channels, ratio, share(ratio, layer.out_channels))

    @contextmanager
    def _narrowed(self, case: Case) -> Iterator[None]:
        if case.kind == "group":
            widths = [group.width - case.removed * (group.name == case.name) for group in self.groups]
            self.masked.narrow(widths)
            try:
                yield
            finally:
                self.masked.narrow(self.masked.widths)
        elif case.kind == "layer":
            with zeroed_filters(self.masked.module.get_submodule(case.name), case.removed):
                yield
        else:
            yield


def share(ratio: float, count: int) -> int:
    """floor(ratio · count) in decimal arithmetic: 0.29 of 100 is 29, though the nearest binary fraction gives 28."""
    return math.floor(ratio * count + 1e-9)


@contextmanager
def zeroed_filters(layer: nn.Module, count: int) -> Iterator[None]:
    """A convolution without its filters of smallest mean |w| for the while; of equals, those of lower index."""
    assert isinstance(layer, nn.Conv2d)
    before: Tensor = layer.weight.data
    order = np.argsort(before.abs().flatten(1).mean(1).cpu().numpy(), kind="stable")
    layer.weight.data = before.clone()
    layer.weight.data[torch.from_numpy(order[:count]).to(before.device)] = 0
    try:
        yield
    finally:
        layer.weight.data = before


def weights_hash(module: nn.Module) -> str:
    """Changes with any weight or statistic of a network."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
