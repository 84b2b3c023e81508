"""Runs whose latencies nobody looks at, without the time that good figures take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from onnx import ModelProto

from compress.running.proof import Prover

Graphs = dict[Any, dict[str, ModelProto]]


@contextmanager
def hasty_timing() -> Iterator[None]:
    """Time files without warm-up and once, and take no plan for slower, which such times would say of any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress.measure.latency.WARM_UP_S", 0.0)
        patch.setattr("compress.running.ending.BLOCKS", 1)
        patch.setattr("compress.running.ending.FEWEST_ROUNDS", 1)
        patch.setattr("compress.running.ending.MOST_ROUNDS", 1)
        patch.setattr("compress.stages.pruning_target.SLOWER", 1000.0)
        patch.setattr("compress.stages.pruning_target.CLEARLY_FASTER", 1000.0)
        yield


@contextmanager
def shared_graphs() -> Iterator[Graphs]:
    """Let all runs share what torch.onnx made of a net's shape, as each run does by itself; gives what is shared."""
    graphs: Graphs = {}
    separate = Prover.__post_init__

    def shared(prover: Prover) -> None:
        separate(prover)
        exporter = prover.exporter
        key = exporter.config.model_dump_json(), exporter.mean, exporter.std
        exporter.graphs = graphs.setdefault(key, {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prover, "__post_init__", shared)
        yield graphs
