"""What the prune stage may be asked for: shares, bytes and milliseconds, in one go or in steps, and never slower."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from tiny import raw_pipeline, tiny_pipeline

from compress.edits.macs import count_macs
from compress.errors import ConfigError, ModelError
from compress.export.onnx import Export, Exporter
from compress.measure.profile import layer_times
from compress.models import MODELS
from compress.net import Net, Spec, build, load
from compress.pipeline import parsed
from compress.pruning.channels import Prunable
from compress.pruning.latency import Sample, read_table, samples, write_table
from compress.pruning.target import latency_costs
from compress.recipe import Training
from compress.running.ending import FileEnding
from compress.running.runner import run
from compress.stages import Env, Prune, Quantize, untrained

SIZE = 32


class Law:
    """An ending in which time is any function of a net, and nothing is exported."""

    int8 = False

    def __init__(self, time: Any, size: Any = None) -> None:
        self.time, self.size = time, size or time
        self.glances: list[bool] = []

    def bytes(self, net: Net) -> int:
        return int(self.size(net))

    def milliseconds(self, nets: Mapping[str, Net], *, glance: bool = False) -> Mapping[str, float]:
        self.glances.append(glance)
        return {name: self.time(net) for name, net in nets.items()}

    def layers(self, net: Net) -> Mapping[str, float]:
        found = {}
        for path, layer in net.module.named_modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                found[path] = 1e-6 * layer.weight.numel() + 0.001
        return found | {"": 0.01}


def mobilenet(size: int = SIZE) -> Net:
    spec = Spec(architecture=MODELS["mobilenet_v2"](), classes=10, image=(3, size, size))
    net = build(spec, seed=0)
    net.module.eval()
    return net


def macs(net: Net) -> int:
    return count_macs(net.module, net.example(1))


@pytest.fixture
def env() -> Env:
    return Env(data=tiny_pipeline().data(0), teachers=(), device=torch.device("cpu"), seed=0, stage="prune")


def noted(env: Env) -> tuple[Env, list[str], list[str]]:
    notes: list[str] = []
    warnings: list[str] = []
    return replace(env, note=notes.append, warn=warnings.append), notes, warnings


def test_left_out_it_is_half_the_macs() -> None:
    assert Prune().keep_macs == 0.5
    assert Prune(keep_params=0.3).keep_macs is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep_macs": 0.5, "keep_params": 0.5}, "keep_macs and keep_params are two ways to say how much"),
        ({"keep_macs": 0.5, "latency_table": "pi.csv"}, "latency_table goes with max_latency_ms or latency_ratio"),
        ({"keep_macs": 1.0}, "less than 1"),
        ({"latency_ratio": 1.0}, "less than 1"),
        ({"max_latency_ms": 0}, "greater than 0"),
    ],
)
def test_contradicting_targets(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Prune(**fields)


def test_parameters_are_counted_as_pytorch_counts_them(env: Env) -> None:
    net = mobilenet()
    smaller = untrained(Prune(keep_params=0.4))(net, env)
    assert 0.98 * 0.4 <= smaller.params / net.params <= 0.4


@pytest.mark.parametrize("ratio", [0.8, 0.5, 0.35])
def test_a_time_is_met_whatever_law_it_follows(env: Env, ratio: float) -> None:
    net = mobilenet()
    # Not what the model is fitted to: a fixed part, a root of the MACs, and the width of one layer.
    law = Law(lambda net: 0.2 + macs(net) ** 0.5 / 1e3 + 0.001 * net.module.features[18][0].out_channels)
    env, notes, _ = noted(replace(env, ending=law))
    smaller = untrained(Prune(latency_ratio=ratio))(net, env)
    assert 0.95 <= law.time(smaller) / law.time(net) / ratio <= 1.0
    assert notes[0].startswith(f"latency_ratio {ratio:g}: the file of the planned widths has 0.")


def test_milliseconds_and_bytes_are_met(env: Env) -> None:
    net = mobilenet()
    law = Law(time=lambda net: macs(net) / 2e6, size=lambda net: 5000 + 4.1 * net.params)
    env = replace(env, ending=law)
    smaller = untrained(Prune(max_latency_ms=1.5))(net, env)
    assert 0.95 * 1.5 <= law.time(smaller) <= 1.5
    smaller = untrained(Prune(max_bytes=4_000_000))(net, env)
    assert 3_920_000 <= law.bytes(smaller) <= 4_000_000


def test_a_time_that_no_width_reaches(env: Env) -> None:
    env = replace(env, ending=Law(lambda net: 1.0 + macs(net) / 1e9))
    with pytest.raises(ConfigError, match=r"latency_ratio: 0\.3 cannot be met"):
        untrained(Prune(latency_ratio=0.3))(mobilenet(), env)


def test_a_time_that_is_met_already(env: Env) -> None:
    env = replace(env, ending=Law(lambda net: macs(net) / 1e7))
    with pytest.raises(ConfigError, match="nothing needs to be pruned"):
        untrained(Prune(max_latency_ms=1000.0))(mobilenet(), env)


def test_a_plan_slower_than_dense_is_rejected_and_the_next_alignment_taken(env: Env) -> None:
    def time(net: Net) -> float:
        """As on a machine that is slow wherever a width is no multiple of 8, if that were one."""
        widths = [layer.out_channels for layer in net.module.modules() if isinstance(layer, torch.nn.Conv2d)]
        return 1.0 if not net.spec.edits or all(width % 8 == 0 for width in widths) else 1.5

    env, notes, warnings = noted(replace(env, ending=Law(time)))
    smaller = untrained(Prune(align=1))(mobilenet(), env)
    assert warnings == [
        "rejected: widths in multiples of 1, with which the file takes 1.50 ms, and that of the unpruned net 1.00 ms"
    ]
    assert "The widths of pruned layers are multiples of 16." in notes
    assert time(smaller) == 1.0


def test_no_plan_is_faster(env: Env) -> None:
    env, _, warnings = noted(replace(env, ending=Law(lambda net: 1.5 if net.spec.edits else 1.0)))
    with pytest.raises(ModelError, match=r"pruning this net to keep_macs 0\.5 does not pay: its file takes 1\.50 ms"):
        untrained(Prune())(mobilenet(), env)
    assert [w.split(",")[0] for w in warnings] == [f"rejected: widths in multiples of {a}" for a in (16, 8, 4, 2, 1)]


def test_slower_by_chance_is_not_slower(env: Env) -> None:
    env, _, warnings = noted(replace(env, ending=Law(lambda net: 1.04 if net.spec.edits else 1.0)))
    untrained(Prune())(mobilenet(), env)
    assert not warnings


@pytest.mark.parametrize(("part", "glances"), [(0.89, [True]), (0.91, [True, False])])
def test_a_plan_that_is_clearly_faster_is_not_measured_at_length(env: Env, part: float, glances: list[bool]) -> None:
    law = Law(lambda net: part if net.spec.edits else 1.0)
    untrained(Prune())(mobilenet(), replace(env, ending=law))
    assert law.glances == glances


def test_steps_end_where_one_step_does(env: Env) -> None:
    net = mobilenet()
    stage = Prune(keep_macs=0.4, steps=3, schedule="cubic", training=Training(epochs=0))
    smaller = stage(net, env)
    assert 0.98 * 0.4 <= macs(smaller) / macs(net) <= 0.4
    assert len(smaller.spec.edits) == 1
    rebuilt = build(smaller.spec)
    rebuilt.module.to(memory_format=torch.channels_last)  # as training leaves a net
    rebuilt.module.load_state_dict(smaller.module.state_dict())
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(rebuilt.module.eval()(x), smaller.module.eval()(x))


def test_schedules_and_epochs_of_steps() -> None:
    cubic = Prune(steps=4, schedule="cubic", training=Training(epochs=10))
    np.testing.assert_allclose([cubic.done(i) for i in (1, 2, 3, 4)], [1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1])
    assert [cubic.training_of(i).epochs for i in (1, 2, 3, 4)] == [2, 2, 2, 4]
    linear = Prune(steps=4)
    assert [linear.done(i) for i in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_latency_model_finds_the_law_of_each_layer() -> None:
    net = mobilenet()
    prunable = Prunable(net.module, net.example(1))
    random = np.random.default_rng(0)
    a, b, c = (random.uniform(0.1, 1, len(prunable.macs.paths)) for _ in range(3))
    measured = []
    for share in (0.0, 0.25, 0.5, 0.75):
        removed = np.array([[16 * (share * group.width // 16) for group in prunable.groups]])
        outputs, inputs = prunable.macs.widths(removed)
        work = outputs * inputs / prunable.macs.parts * prunable.macs.unit
        ms = a + 1e-7 * b * work + 1e-3 * c * outputs
        measured += samples(prunable.macs, removed, dict(zip(prunable.macs.paths, ms[0], strict=True)))
        if share == 0.5:
            expected = float(ms.sum())
            asked = removed
    assert float(latency_costs(prunable, measured)(asked)[0]) == pytest.approx(expected, rel=1e-6)


def test_tables_go_to_disk_and_back(tmp_path: Path) -> None:
    rows = [Sample("features.0", 3, 32, 0.5), Sample("", 0, 900, 0.25)]
    write_table(tmp_path / "latency" / "prune.csv", rows)
    assert read_table(tmp_path / "latency" / "prune.csv") == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rows"),
        ("layer,inputs,outputs\nconv,3,32\n", "line 2 of .* is not a row of layer, inputs, outputs, ms"),
        ("layer,inputs,outputs,ms\nconv,3,32,fast\n", "line 2 of .* is not a row"),
        ("layer,inputs,outputs,ms\nconv,3,32,nan\n", "line 2 of .* has a time or a width that cannot be"),
        ("layer,inputs,outputs,ms\nconv,3,0,1\n", "cannot be"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "pi.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_table(path)


def test_a_table_from_another_device_decides(env: Env, tmp_path: Path) -> None:
    """A device on which only the late layers cost anything: its target is met, and by its own times."""
    net = mobilenet()
    law = Law(lambda net: sum(v for v in Law(None).layers(net).values()))
    prunable = Prunable(net.module, net.example(1))
    measured = []
    for part in (0, 2, 4, 6):
        widths = [max(group.width - group.width * part // 8 // 16 * 16, 16) for group in prunable.groups]
        edit = prunable.narrowed(widths)
        narrower = Net(net.spec.edited(edit), edit(build(net.spec).module))
        measured += samples(prunable.macs, prunable.removed(widths), law.layers(narrower))
    write_table(tmp_path / "device.csv", measured)
    stage = untrained(Prune(latency_ratio=0.5, latency_table=str(tmp_path / "device.csv")))
    smaller = stage(net, env)
    assert 0.95 * 0.5 <= law.time(smaller) / law.time(net) <= 0.5 * 1.001
    with pytest.raises(ConfigError, match="cannot be read"):
        untrained(Prune(latency_ratio=0.5, latency_table="nowhere.csv"))(net, env)
    (tmp_path / "other.csv").write_text("layer,inputs,outputs,ms\nstem,3,32,1\n")
    with pytest.raises(ConfigError, match="none of its layers is one of this network's"):
        untrained(Prune(latency_ratio=0.5, latency_table=str(tmp_path / "other.csv")))(net, env)


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_gradients_come_from_training_images(env: Env, importance: Any) -> None:
    pipeline = tiny_pipeline()
    net = build(
        Spec(architecture=pipeline.student.architecture, classes=env.data.classes, image=env.data.image), seed=0
    )
    smaller = untrained(Prune(keep_macs=0.6, importance=importance))(net, env)
    assert macs(smaller) < macs(net)


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[FileEnding, Net, Path]]:
    data = tiny_pipeline().data(0)
    architecture = tiny_pipeline().student.architecture
    net = build(Spec(architecture=architecture, classes=data.classes, image=data.image), seed=0)
    net.module.eval()
    env = Env(data=data, teachers=(), device=torch.device("cpu"), seed=0, stage="x")
    exporter = Exporter(Export(), data.mean, data.std)
    folder = tmp_path_factory.mktemp("endings")
    found = {}
    for kind, later in (("float", ()), ("int8", (Quantize(),))):
        ending = FileEnding(exporter, later, env, threads=1, batch=1)
        found[kind] = (ending, net, ending.written(net, folder / f"{kind}.onnx"))
    return found


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_every_layer_of_a_file_gets_its_time(endings: dict[str, tuple[FileEnding, Net, Path]], kind: str) -> None:
    ending, net, path = endings[kind]
    assert ending.int8 == (kind == "int8")
    assert abs(ending.bytes(net) - path.stat().st_size) < 100
    times = layer_times(path, threads=1, batch=1)
    layers = {node.name for node in onnx.load(path).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    assert layers == {"stem.0", "middle.0", "back.0", "head"}
    assert layers <= times.keys() <= layers | {""}
    assert all(ms > 0 for ms in times.values())


def test_what_was_measured_once_is_remembered(endings: dict[str, tuple[FileEnding, Net, Path]]) -> None:
    ending, net, _ = endings["float"]
    again = build(net.spec, seed=1)
    assert ending.milliseconds({"a": net}) is ending.milliseconds({"a": again})
    assert ending.layers(net) is ending.layers(again)


def test_a_run_meets_a_latency_and_says_so(tmp_path: Path) -> None:
    raw = raw_pipeline(teacher=None, student={"tiny": {"width": 128}})
    raw["stages"] = [{"prune": {"latency_ratio": 0.7, "training": {"epochs": 1, "batch_size": 16, "lr": 0.001}}}]
    raw["data"] = {"synthetic": {"size": 32, "classes": 4, "samples": 40}}
    outcome = run(parsed(raw, "tiny"), tmp_path / "out")
    said = (tmp_path / "out" / "report.md").read_text()
    assert "latency_ratio 0.7: the file of the planned widths has" in said
    assert (tmp_path / "out" / "latency" / "prune.csv").is_file()
    assert outcome.report.rows[-1].macs < outcome.report.rows[0].macs


def test_a_strangers_state_dict_is_pruned_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    """Weights that another program saved, in an architecture that is not ours: loaded, pruned, kept, rebuilt."""
    given = build(Spec(architecture=tiny_pipeline().student.architecture, classes=4, image=(3, 16, 16)), seed=7)
    torch.save(given.module.state_dict(), tmp_path / "theirs.pth")
    raw = raw_pipeline(teacher=None, student={"tiny": {"weights": str(tmp_path / "theirs.pth")}})
    raw["stages"] = [{"prune": {"keep_params": 0.6, "training": {"epochs": 0}}}]
    outcome = run(parsed(raw, "tiny"), tmp_path / "out")
    assert outcome.report.rows[-1].params <= 0.6 * given.params
    (folder,) = (tmp_path / "out" / "stages").glob("0-prune-*")
    pruned = load(folder)
    once, twice = (pruned.module.eval()(given.example()), load(folder).module.eval()(given.example()))
    assert torch.equal(once, twice)
    # What is left are the stranger's own numbers.
    assert set(pruned.module.stem[0].weight.flatten().tolist()) < set(given.module.stem[0].weight.flatten().tolist())
