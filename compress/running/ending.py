"""What becomes of a net at the end of its pipeline: the later stages without training, and the file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from compress.data.base import Data
from compress.distributed.group import current
from compress.export.onnx import Exporter
from compress.files import durable
from compress.measure.latency import TURN_S, measure_latency
from compress.measure.profile import layer_times
from compress.net import Net
from compress.pipeline import Pipeline
from compress.running.proof import Prover
from compress.stages import Env, Quantize, Stage, untrained

IMAGES = 32
BLOCKS, BLOCK_S = 5, 0.6
FEWEST_ROUNDS, MOST_ROUNDS = 3, 15


@dataclass
class FileEnding:
    """Makes the file that a net would end as, and measures it: see `compress.stages.base.Ending`.

    `later` are the stages that follow. Size and time of a file do not depend on the values of its weights, so what
    was measured once for a net is remembered for all nets of the same description. `metadata` is what a file says of
    itself. Of several processes the first measures, while the others wait.
    """

    exporter: Exporter
    later: Sequence[Stage]
    env: Env
    threads: int
    batch: int
    metadata: Callable[[Net], Mapping[str, str]] = field(default=lambda net: {})
    remembered: dict[tuple[object, ...], Mapping[str, float]] = field(default_factory=dict)

    @property
    def int8(self) -> bool:
        """Whether the pipeline ends with an int8 file."""
        return any(isinstance(stage, Quantize) for stage in self.later)

    def bytes(self, net: Net) -> int:
        """The size of the net's final file."""
        return int(current().first(partial(self._bytes, net)))

    def milliseconds(self, nets: Mapping[str, Net], *, glance: bool = False) -> Mapping[str, float]:
        """Median milliseconds of each net's final file, all taking turns; at a `glance` in a fifth of the time."""
        found: Mapping[str, float] = current().first(partial(self._milliseconds, nets, 1 if glance else BLOCKS))
        return found

    def layers(self, net: Net) -> Mapping[str, float]:
        """Milliseconds of each layer of the net's final file; under an empty name what belongs to none."""
        found: Mapping[str, float] = current().first(partial(self._layers, net))
        return found

    def _bytes(self, net: Net) -> int:
        final = self.final(net)
        return len(self.exporter(final, self.metadata(final)).SerializeToString())

    def _milliseconds(self, nets: Mapping[str, Net], count: int) -> Mapping[str, float]:
        key = ("milliseconds", count, *((name, net.spec.key) for name, net in nets.items()))
        if key not in self.remembered:
            with durable.temporary() as folder:
                # The smallest first: it is the one whose graph is likely to be asked for again.
                order = sorted(nets, key=lambda name: nets[name].params)
                written = {name: self.written(nets[name], folder / f"{i}.onnx") for i, name in enumerate(order)}
                files = {name: written[name] for name in nets}
                rounds = self.rounds(files)
                blocks = [
                    measure_latency(files, threads=self.threads, batch=self.batch, rounds=rounds) for _ in range(count)
                ]
            # Whatever else the machine does only adds time, and for a while: the quietest of the blocks counts.
            self.remembered[key] = {name: min(block[name][0].p50 for block in blocks) for name in files}
        return self.remembered[key]

    def rounds(self, files: Mapping[str, Path]) -> int:
        """Rounds of a block: as many as small nets need and large ones have time for."""
        once = measure_latency(files, threads=self.threads, batch=self.batch, rounds=1)
        round_s = float(sum(max(times.sum() / 1e3, TURN_S) for _, times in once.values()))
        return min(max(round(BLOCK_S / round_s), FEWEST_ROUNDS), MOST_ROUNDS)

    def _layers(self, net: Net) -> Mapping[str, float]:
        key = ("layers", net.spec.key)
        if key not in self.remembered:
            with durable.temporary() as folder:
                file = self.written(net, folder / "net.onnx")
                self.remembered[key] = layer_times(file, threads=self.threads, batch=self.batch)
        return self.remembered[key]

    def final(self, net: Net) -> Net:
        """The net behind the later stages."""
        for stage in self.later:
            net = untrained(stage)(net, self.env)
        return net

    def written(self, net: Net, path: Path) -> Path:
        """A file that takes as long as the net's final one, its weights as they are."""
        net = self.final(net)
        durable.write(path, self.exporter.sketch(net).SerializeToString())
        return path


def int8_in_the_end(pipeline: Pipeline) -> bool:
    """Whether a pipeline ends with an int8 file."""
    return any(isinstance(stage, Quantize) for stage in pipeline.stages)


def endings_of(pipeline: Pipeline, data: Data, prover: Prover) -> list[FileEnding]:
    """What becomes of the net that each stage of a pipeline makes."""
    few = data.smaller(IMAGES)
    env = Env(data=few, teachers=(), device=torch.device("cpu"), seed=pipeline.seed, stage="ending")
    bench, stages = pipeline.benchmark, pipeline.stages

    def metadata(net: Net) -> Mapping[str, str]:
        return prover.metadata(net, stages[-1].name)

    return [
        FileEnding(prover.exporter, stages[i + 1 :], env, bench.threads, bench.batch, metadata)
        for i, _ in enumerate(stages)
    ]
