"""Sensitivity analysis: what its rows mean, that nothing is done twice, and that an interruption costs a row."""

import copy
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline
from torch import nn

from compress.config import OneOf
from compress.data.base import Split
from compress.errors import ConfigError, ModelError
from compress.models.mobilenet_v1 import MobileNetV1
from compress.net import Net, Spec, build
from compress.pipeline import parsed
from compress.pruning.channels import Prunable
from compress.pruning.sensitivity import Analysis, share
from compress.pruning.sensitivity_picture import drawn
from compress.pruning.sensitivity_table import Row, Table, read, summary
from compress.stages import STAGES, Env, Sensitivity
from compress.stages.base import untrained
from compress.verbs.analysing import analyse

CPU = torch.device("cpu")
HEADER = "kind,name,channels,ratio,removed,accuracy,drop,loss"
FEW = {"ratios": (0.3, 0.6), "images": 64}


@pytest.fixture(scope="module")
def lively_net(small_net) -> Net:
    """A net with statistics as if it had been trained, so that accuracy depends on its filters."""
    net = small_net(seed=3)
    random = torch.Generator().manual_seed(0)
    for layer in net.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(0.1 * torch.randn(len(layer.running_mean), generator=random))
            layer.running_var.copy_(0.02 + 0.05 * torch.rand(len(layer.running_var), generator=random))
    net.module.eval()
    return net


@pytest.fixture(scope="module")
def rows(lively_net, images) -> list[Row]:
    return Analysis(lively_net, images, CPU, **FEW).rows()


def figures(module: nn.Module, data) -> tuple[float, float]:
    """Accuracy and loss on the validation images, in NumPy from the logits on."""
    pixels = data.val.images[np.arange(64)]
    with torch.no_grad():
        logits = module.eval()(data.inputs(pixels)).double().numpy()
    labels = data.val.labels[:64]
    shifted = logits - logits.max(1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return 100 * (logits.argmax(1) == labels).mean(), loss.mean()


def of(rows: list[Row], kind: str, name: str = "") -> list[Row]:
    return [row for row in rows if row.kind == kind and name in ("", row.name)]


def test_there_is_a_row_for_every_group_layer_and_ratio(rows, lively_net):
    convolutions = [path for path, layer in lively_net.module.named_modules() if isinstance(layer, nn.Conv2d)]
    groups = Prunable(lively_net.module, lively_net.example(1)).groups
    assert [(row.name, row.ratio) for row in of(rows, "layer")] == [(p, r) for p in convolutions for r in (0.3, 0.6)]
    assert [(row.name, row.ratio) for row in of(rows, "group")] == [(g.name, r) for g in groups for r in (0.3, 0.6)]
    assert rows[0].kind == "net"
    assert rows[0].drop == 0
    for row in rows[1:]:
        assert row.removed == math.floor(round(row.ratio * row.channels, 6))
        assert row.drop == pytest.approx(rows[0].accuracy - row.accuracy, abs=1e-4)


@pytest.mark.parametrize("path", ["features.0.0", "features.5.0", "features.10.0"])
def test_a_layer_is_measured_with_its_smallest_filters_zeroed(path, rows, lively_net, images):
    for row in of(rows, "layer", path):
        zeroed = copy.deepcopy(lively_net.module)
        weight = zeroed.get_submodule(path).weight
        means = np.abs(weight.detach().numpy()).reshape(len(weight), -1).mean(1)
        smallest = sorted(range(len(means)), key=lambda i: means[i])[: row.removed]
        with torch.no_grad():
            weight[smallest] = 0
        accuracy, loss = figures(zeroed, images)
        assert row.accuracy == pytest.approx(accuracy, abs=1e-3)
        assert row.loss == pytest.approx(loss, rel=1e-4)


def test_a_group_is_measured_as_if_it_were_pruned_alone(rows, lively_net, images):
    names = [group.name for group in Prunable(lively_net.module, lively_net.example(1)).groups]
    for name in (names[0], names[4], names[-1]):
        for row in of(rows, "group", name):
            prunable = Prunable(lively_net.module, lively_net.example(1))
            widths = [group.width - row.removed * (group.name == name) for group in prunable.groups]
            accuracy, loss = figures(prunable.cut(widths), images)
            assert row.accuracy == pytest.approx(accuracy, abs=1e-3)
            assert row.loss == pytest.approx(loss, rel=1e-4)
    assert len({row.loss for row in of(rows, "group")}) > len(names)


def test_a_share_is_rounded_down_in_decimals():
    assert [share(0.29, 100), share(0.7, 10), share(0.35, 20), share(0.5, 3), share(0.05, 16)] == [29, 7, 7, 1, 0]


# Nothing twice


class Counted:
    """Images that count how often each is loaded."""

    def __init__(self, images) -> None:
        self.images, self.loads = images, np.zeros(len(images), int)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        np.add.at(self.loads, indices, 1)
        return self.images[indices]


def counting(data):
    splits = {name: getattr(data, name) for name in ("train", "val", "test")}
    return replace(data, **{name: Split(Counted(split.images), split.labels) for name, split in splits.items()})


def test_every_image_is_loaded_and_prepared_once(lively_net, images, monkeypatch):
    data, prepared = counting(images), []
    inputs = type(data).inputs
    monkeypatch.setattr(type(data), "inputs", lambda self, pixels: prepared.append(len(pixels)) or inputs(self, pixels))
    Analysis(lively_net, data, CPU, **FEW).rows()
    assert data.val.images.loads.tolist() == [1] * 64
    assert sum(prepared) == 64
    assert not data.train.images.loads.any()
    assert not data.test.images.loads.any()


def test_images_go_through_the_net_in_batches_and_equal_cuts_once(lively_net, images):
    analysis = Analysis(lively_net, images, CPU, ratios=(0.05, 0.06, 0.5), images=64)
    passes = []
    analysis.masked.module.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    found = analysis.rows()
    assert set(passes) == {64}
    different = {(row.kind, row.name, row.removed) if row.removed else ("net", "", 0) for row in found}
    assert len(passes) == len(different) < len(found)


def test_the_net_is_left_as_it_was(lively_net, images):
    before = copy.deepcopy(lively_net.module.state_dict())
    Analysis(lively_net, images, CPU, **FEW).rows()
    assert all(torch.equal(value, before[name]) for name, value in lively_net.module.state_dict().items())


# Going on


def test_an_interrupted_table_is_finished_to_the_same_bytes(rows, lively_net, images, tmp_path):
    path = tmp_path / "deep" / "sensitivity.csv"
    assert Analysis(lively_net, images, CPU, **FEW).rows(Table(path)) == rows
    whole = path.read_bytes()
    assert whole.decode().splitlines()[0] == HEADER
    assert len(whole.decode().splitlines()) == len(rows) + 1
    for cut in (len(whole) // 2, whole.index(b"\n", 300) + 1, 3):  # within a line, between two, within the header
        path.write_bytes(whole[:cut])
        left = max(whole[:cut].count(b"\n") - 1, 0)
        told = []
        again = Analysis(lively_net, images, CPU, **FEW).rows(
            Table(path), lambda *progress, to=told: to.append(progress)
        )
        assert again == rows
        assert path.read_bytes() == whole
        assert [done for _, done, _ in told] == [*range(left + 1, len(rows) + 1)]


def test_a_finished_table_needs_no_image(rows, lively_net, images, tmp_path):
    path = tmp_path / "sensitivity.csv"
    Analysis(lively_net, images, CPU, **FEW).rows(Table(path))
    data = counting(images)
    assert Analysis(lively_net, data, CPU, **FEW).rows(Table(path)) == rows
    assert not data.val.images.loads.any()


def test_another_net_data_or_ratios_start_the_table_anew(lively_net, images, tmp_path):
    path, said = tmp_path / "sensitivity.csv", []
    few = {"ratios": (0.5,), "by": ("layers",), "images": 32}
    Analysis(lively_net, images, CPU, **few).rows(Table(path, said.append))
    assert said == []
    other = Net(lively_net.spec, copy.deepcopy(lively_net.module))
    other.module.features[0][0].weight.data[0, 0, 0, 0] += 1e-3
    for net, data, settings in (
        (other, images, few),
        (lively_net, replace(images, fingerprint="other"), few),
        (lively_net, images, few | {"ratios": (0.4,)}),
        (lively_net, images, few | {"images": 33}),
        (lively_net, images, few | {"by": ("groups",)}),
    ):
        before = len(said)
        found = Analysis(net, data, CPU, **settings).rows(Table(path, said.append))
        assert len(said) == before + 1
        assert said[-1] == "sensitivity.csv was of another net, other data or other settings; it was started anew"
        assert read(path) == found


LIVES_LONG = {
    "name": "long",
    "data": {"synthetic": {"size": 16, "classes": 4, "samples": 120}},
    "student": {"mobilenet_v1": {"width": 0.25}},
    "baseline": {"training": {"epochs": 0}},
    "stages": [{"sensitivity": {"ratios": [0.25, 0.5, 0.75], "by": ["layers"]}}],
}


def test_a_killed_analysis_goes_on_at_the_missing_rows(tmp_path):
    file, out = tmp_path / "long.yaml", tmp_path / "run"
    pipeline = parsed(LIVES_LONG, "long.yaml")
    file.write_text(pipeline.as_yaml())
    command = [sys.executable, "-m", "compress", "sensitivity", str(file), "--out", str(out), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    table = out / "sensitivity.csv"
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while len(read(table)) < 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = read(table)
    events = []
    found = analyse(pipeline, out, device="cpu", emit=events.append)
    assert 10 <= len(kept) < len(found.rows)
    assert list(found.rows[: len(kept)]) == kept
    progress = [event for event in events if event["event"] == "progress"]
    assert [event["done"] for event in progress] == [*range(len(kept) + 1, len(found.rows) + 1)]
    assert {event["of"] for event in progress} == {len(found.rows)}
    assert [event["event"] for event in events if event.get("stage") == "baseline"] == ["unchanged"]
    assert read(table) == list(found.rows)


# The verb


def test_the_verb_writes_a_table_and_a_picture_and_says_what_stands_out(tmp_path):
    file, out = tmp_path / "tiny.yaml", tmp_path / "run"
    pipeline = tiny_pipeline(teacher=None, baseline={"training": {"epochs": 0}}, stages=[{"prune": {"keep_macs": 0.6}}])
    file.write_text(pipeline.as_yaml())
    plugin = Path(__file__).with_name("tiny.py")
    command = [sys.executable, "-m", "compress", "sensitivity", str(file), "--out", str(out), "--plugin", str(plugin)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.stdout.splitlines()[-2:] == [f"table: {out / 'sensitivity.csv'}", f"picture: {out / 'sensitivity.svg'}"]
    assert ran.stdout.startswith("Sensitivity of coupled groups, mean points lost over all ratios. Most: ")
    assert (out / "sensitivity.svg").read_text().startswith("<?xml")
    assert {row.ratio for row in read(out / "sensitivity.csv")} == {0.0, *(n / 10 for n in range(1, 10))}


def test_the_verb_analyses_the_baseline_that_a_run_made(tmp_path):
    pipeline = tiny_pipeline(teacher=None, stages=[{"sensitivity": {"ratios": [0.5]}}, {"prune": {"keep_macs": 0.6}}])
    events = []
    first = analyse(pipeline, tmp_path, emit=events.append)
    assert any(event["event"] == "epoch" and event["stage"] == "baseline" for event in events)
    assert {row.name for row in first.rows} == {"", "stem.0", "middle.0", "back.0"}
    assert {row.ratio for row in first.rows} == {0.0, 0.5}
    again = analyse(pipeline, tmp_path, emit=events.append)
    assert events[-1]["event"] == "unchanged"
    assert again.rows == first.rows


# The stage


def an_env(data, out: Path | None, **more) -> Env:
    return Env(data, (), CPU, seed=1, stage="sensitivity", out=out, **more)


def test_the_stage_leaves_the_net_as_it_is_and_writes_beside_it(rows, lively_net, images, tmp_path):
    notes, events = [], []
    stage = Sensitivity(**FEW)
    result = stage(lively_net, an_env(images, tmp_path, note=notes.append, emit=events.append))
    assert result.spec == lively_net.spec
    assert result.module is not lively_net.module
    kept = lively_net.module.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in result.module.state_dict().items())
    assert read(tmp_path / "sensitivity" / "sensitivity.csv") == rows
    assert (tmp_path / "sensitivity" / "sensitivity.svg").read_text() == drawn(rows)
    assert notes == summary(rows)
    assert [(event["event"], event["done"], event["of"]) for event in events] == [
        ("progress", n, len(rows)) for n in range(1, len(rows) + 1)
    ]
    assert events[1]["figures"] == f"group {rows[1].name} -2/8: {rows[1].accuracy:.1f} %"


def test_a_rehearsal_writes_nothing_and_still_finds_what_cannot_be_followed(lively_net, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, notes = counting(images), []
    untrained(Sensitivity())(lively_net, an_env(data, None, note=notes.append))
    assert notes == []
    assert [*tmp_path.iterdir()] == []
    assert not data.val.images.loads.any()
    vit = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    import torchvision

    attention = Net(lively_net.spec, torchvision.models.VisionTransformer(**vit, num_classes=4))
    with pytest.raises(ModelError, match="attention"):
        untrained(Sensitivity())(attention, an_env(images, None))
    alone = Sensitivity(by=("layers",), ratios=(0.5,)).analysis(attention, an_env(images, None)).rows()
    assert [row.name for row in alone] == ["", "conv_proj"]


def test_a_smoke_run_measures_little():
    brief = Sensitivity().rehearsed()
    assert (len(brief.ratios), brief.images, brief.by) == (1, 32, ("groups", "layers"))
    assert Sensitivity().training.epochs == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ratios": [1.0]}, "should be less than 1"),
        ({"ratios": [0]}, "should be greater than 0"),
        ({"ratios": []}, "at least 1 item"),
        ({"ratios": [0.5, 0.5]}, "names 0.5 twice; once is enough"),
        ({"by": ["channels"]}, "'groups' or 'layers'"),
        ({"by": []}, "at least 1 item"),
        ({"images": 0}, "greater than or equal to 1"),
        ({"ratio": [0.5]}, "Did you mean 'ratios'"),
    ],
)
def test_bad_settings_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        OneOf(STAGES).parse({"sensitivity": fields})
    with pytest.raises(ConfigError, match=r"stages\.0\.sensitivity"):
        tiny_pipeline(stages=[{"sensitivity": fields}])


def test_a_net_that_gives_no_numbers_is_named(lively_net, images):
    net = Net(lively_net.spec, copy.deepcopy(lively_net.module))
    analysis = Analysis(net, images, CPU, **FEW)
    analysis.masked.module.features[0][1].running_var.fill_(-1.0)
    with pytest.raises(ModelError, match="outputs are not finite on its own images, so its sensitivity cannot"):
        analysis.rows()


# What people see


def test_the_picture_has_a_line_for_every_group_and_layer(rows):
    svg = drawn(rows)
    assert svg == drawn(list(reversed(rows))[::-1])
    names = {row.name for row in rows} - {""}
    shown = re.findall(r">([\w.]+)</text>", svg)
    assert names <= set(shown)
    assert shown.count(of(rows, "layer")[0].name) == len({r.kind for r in rows if r.name == of(rows, "layer")[0].name})
    assert "Coupled groups" in svg
    assert "Single layers" in svg
    alone = drawn([row for row in rows if row.kind != "group"])
    assert "Coupled groups" not in alone


def test_the_summary_names_both_ends():
    made = [Row("net", "", 0, 0.0, 0, 90.0, 0.0, 0.3)]
    drops = {"a": (1, 3), "b": (10, 30), "c": (0, 0.5), "d": (5, 5), "e": (0, 0.1)}
    for name, values in drops.items():
        made += [Row("layer", name, 8, r, 4, 90 - d, d, 1.0) for r, d in zip((0.3, 0.6), values, strict=True)]
    assert summary(made, most=2) == [
        "Sensitivity of single layers, mean points lost over all ratios. Most: b (20.0), d (5.0); "
        "least: c (0.2), e (0.1)."
    ]


def test_nets_of_other_specs_are_analysed_too(images):
    net = build(Spec(architecture=MobileNetV1(width=0.25), classes=4, image=(3, 16, 16)), 0)
    net.module.train()
    found = Analysis(net, images, CPU, ratios=(0.5,), by=("groups",), images=16).rows()
    assert net.module.training
    assert {row.kind for row in found} == {"net", "group"}
