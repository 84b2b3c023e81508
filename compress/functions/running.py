"""A whole pipeline as a function."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from compress.config import near
from compress.distributed.joining import start
from compress.distributed.launch import pick_device
from compress.errors import ConfigError, ExportError
from compress.events import Listener, ignore
from compress.files import durable
from compress.pipeline import Pipeline, parsed, read
from compress.plugins import load_plugins
from compress.report.content import Report
from compress.row import Row
from compress.running import runner
from compress.verbs.catalogue import check_members
from compress.yamlfile import apply_override


@dataclass(frozen=True, repr=False)
class Rows(Sequence[Row]):
    """The rows of a run's report in order, by number or by the net's name: `rows[-1]`, `rows["quantize"].bytes`.

    `report` has all the rest of it, `folder` is where it stands, `exit_code` what the command line would end with (0,
    or 5 for a missed budget), and `failure` what is wrong with a file that was written all the same, None mostly.
    """

    report: Report
    folder: Path
    exit_code: int = 0
    failure: ExportError | None = field(default=None)

    @property
    def verdict(self) -> str:
        """`pass`, `fail` or `untrained`."""
        return self.report.verdict

    @property
    def alternatives(self) -> tuple[Row, ...]:
        """Variants beside the way, such as the post-training quantized net."""
        return self.report.alternatives

    @property
    def budget(self) -> tuple[Any, ...]:
        """The limits, each with `limit`, `value`, `measured` and `ok`."""
        return tuple(self.report.budget)

    @overload
    def __getitem__(self, which: int | str) -> Row: ...
    @overload
    def __getitem__(self, which: slice) -> Sequence[Row]: ...
    def __getitem__(self, which: int | str | slice) -> Row | Sequence[Row]:
        if not isinstance(which, str):
            return self.report.rows[which]
        named = {row.net: row for row in (*self.report.rows, *self.report.alternatives)}
        if which not in named:
            raise KeyError(f"no net {which!r}.{near(which, named)}")
        return named[which]

    def __len__(self) -> int:
        return len(self.report.rows)

    def __repr__(self) -> str:
        lines = [
            f"{row.net:16} {row.top1_onnx:6.2f} %  {row.bytes:>11,} bytes  {row.macs:>13,} MACs  "
            f"{row.latency_ms.p50:8.3f} ms  {row.onnx}"
            for row in self
        ]
        return "\n".join([f"{self.report.name}: {self.verdict}, {self.folder}", *lines])


def run(
    pipeline: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    device: str = "auto",
    start_from: str | None = None,
    smoke: bool = False,
    seeds: int = 1,
    plugins: Iterable[str | Path] = (),
    emit: Listener = ignore,
) -> Rows:
    """Run a pipeline, a file or a mapping with the same keys, and return the rows of its report.

    `overrides` change single values: `{"stages.prune.keep_macs": 0.4}`, or `["stages.prune.keep_macs=0.4"]` as on the
    command line. `out` is the run folder (left out: `reports/<name>`); what was finished there is taken over. `device`
    is `auto`, `cpu` or `cuda`. `smoke` runs the same flow on a handful of images. `seeds` is how often the student is
    made. `plugins` are files with your own models, data, losses, stages and importances. `emit` is called with each
    event, a dictionary with the key `event`. Processes that `torchrun` started share the work; all get the rows, and
    the first has the events.

    A missed budget is a result, see `Rows.exit_code`. Raises ConfigError, DataError, ModelError, ResourceError and
    BusyError, all of them CompressError, where the command line would end with 2, 3, 4, 6 and 7.
    """
    files = [Path(plugin) for plugin in plugins]
    load_plugins(files)
    check_members()
    loaded = _read(pipeline, _as_words(overrides))
    folder = Path(out) if out is not None else Path("reports") / (loaded.slug + ("-smoke" if smoke else ""))
    with start(pick_device(_known(device))) as group, nullcontext() if group.leads else durable.reading_only():
        outcome = runner.run(
            loaded, folder, device=device, start_from=start_from, smoke=smoke, seeds=seeds, plugins=files,
            emit=emit if group.leads else ignore,
        )  # fmt: skip
    return Rows(outcome.report, outcome.folder, outcome.exit_code, outcome.failure)


def _read(pipeline: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Pipeline:
    if not isinstance(pipeline, Mapping):
        return read(Path(pipeline), overrides)
    raw = json.loads(json.dumps({"name": "run", **pipeline}))  # of its own, and of what a file could hold
    for override in overrides:
        apply_override(raw, override)
    return parsed(raw, "the mapping")


def _as_words(overrides: Iterable[str] | Mapping[str, Any]) -> list[str]:
    if isinstance(overrides, str):
        return [overrides]
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]  # all JSON is YAML
    return list(overrides)


def _known(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device should be auto, cpu or cuda, not {device!r}")
    return device
