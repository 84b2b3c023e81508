"""The parts of a report beyond the table: the way of each stage, layers, predictions, latency, the model card."""

import base64
import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from made_reports import (
    AFTER,
    BASELINE,
    BEFORE,
    CHANGES,
    DETAILED,
    FULL,
    HOSTILE,
    LABELS,
    NAMES,
    PRUNED,
    PTQ,
    QUANTIZED,
    RICH,
    TEACHER,
    TINY_PNG,
    row,
)  # fmt: skip
from page import Page
from PIL import Image

import compress.report.json as report_json
from compress.errors import ArtifactError, ConfigError
from compress.measure.confusion import EXAMPLES, changes, read_predictions
from compress.measure.latency import noise_of
from compress.measure.thumbnails import MOST_BYTES, thumbnail
from compress.report import (
    Layer,
    LeftFloat,
    Report,
    Rounding,
    bars,
    charts,
    comparable,
    findings,
    html,
    markdown,
    model_card,
    plots,
    predictions,
    references,
    timing,
    waterfall,
    write,
)  # fmt: skip
from compress.row import Control, Latency


def texts(report: Report) -> tuple[str, str]:
    """What stands in report.html and in report.md."""
    return Page(html.render(report)).text, markdown.render(report, ())


@pytest.fixture(scope="module")
def details(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each detailed report, with models."""
    folders = {name: tmp_path_factory.mktemp("details") for name in DETAILED}
    for name, folder in folders.items():
        (folder / "models").mkdir()
        write(DETAILED[name], folder)
    return folders


def test_changed_predictions_are_counted_by_hand() -> None:
    assert (CHANGES.worse, CHANGES.better, CHANGES.other) == (4, 1, 1)
    assert CHANGES.p_value == pytest.approx(2 * (1 + 5) / 2**5)  # of five coins at most one falls on one side
    by_class = {each.name: (each.samples, each.before, each.after) for each in CHANGES.classes}
    assert by_class == {
        "cat": (3, pytest.approx(200 / 3), pytest.approx(100 / 3)),
        "dog": (3, pytest.approx(200 / 3), pytest.approx(200 / 3)),
        "fox": (4, 75.0, 25.0),
    }
    grown = [(each.label, each.predicted, each.before, each.after) for each in CHANGES.confusions]
    assert grown == [("cat", "dog", 1, 2), ("dog", "cat", 0, 1), ("fox", "cat", 1, 2), ("fox", "dog", 0, 1)]
    # What got worse first, and there the classes take turns; then what is wrong in another way.
    assert [each.sample for each in CHANGES.examples] == [1, 4, 6, 7, 5, 9]
    assert [(e.label, e.before, e.after) for e in CHANGES.examples[:2]] == [
        ("cat", "cat", "dog"),
        ("dog", "dog", "cat"),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_changes_agree_with_a_plain_count(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, before, after = random.integers(0, 20, (3, 400))
    found = changes(("a", "b"), labels, before, after, [f"c{k}" for k in range(25)])
    assert found.worse == sum(b == y != a for y, b, a in zip(labels, before, after, strict=True))
    assert found.better == sum(a == y != b for y, b, a in zip(labels, before, after, strict=True))
    assert found.worse + found.better + found.other == int((before != after).sum())
    assert sum(each.samples for each in found.classes) == 400
    assert len(found.classes) == len(set(labels.tolist()))
    assert len(found.examples) == EXAMPLES
    small, n = min(found.worse, found.better), found.worse + found.better
    tail = 2 * sum(math.comb(n, k) for k in range(small + 1)) / 2**n
    assert found.p_value == pytest.approx(min(1.0, tail))


def test_nothing_changed_and_no_images() -> None:
    same = changes(("a", "b"), LABELS, BEFORE, BEFORE, NAMES)
    assert (same.worse, same.better, same.other, same.p_value, same.confusions, same.examples) == (0, 0, 0, 1.0, (), ())
    assert predictions.summary(same) == "b predicts the same as a for each of the 10 test images."
    none = changes(("a", "b"), *np.zeros((3, 0), dtype=np.int64), NAMES)
    assert none.classes == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [("sample,label,torch,onnx\n0,x,1,1\n", "invalid literal"), ("sample\n0\n", "label"), (None, "No such file")],
)
def test_unreadable_predictions(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "net.csv").write_text(content)
    with pytest.raises(ArtifactError, match=rf"net\.csv cannot be read as predictions: .*{message}"):
        read_predictions(tmp_path / "net.csv")


def test_predictions_come_from_the_file(tmp_path: Path) -> None:
    with (tmp_path / "net.csv").open("w") as file:
        csv.writer(file).writerows([["sample", "label", "torch", "onnx"], [0, 2, 9, 1], [1, 0, 9, 0]])
    labels, found = read_predictions(tmp_path / "net.csv")
    assert (labels.tolist(), found.tolist()) == ([2, 0], [1, 0])


@pytest.mark.parametrize(
    ("shape", "size", "mode"),
    [
        ((3, 32, 32), (32, 32), "RGB"), ((1, 40, 20), (20, 40), "L"), ((4, 8, 8), (8, 8), "RGB"),
        ((2, 8, 8), (8, 8), "L"), ((3, 300, 600), None, "RGB"),
    ],
)  # fmt: skip
def test_thumbnails(shape: tuple[int, int, int], size: tuple[int, int] | None, mode: str) -> None:
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    content = base64.b64decode(thumbnail(pixels))
    assert len(content) <= MOST_BYTES
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode) == ("PNG", mode)
        assert max(image.size) <= 96
        if size:
            assert image.size == size
            assert image.getpixel((3, 5)) == (
                tuple(pixels[:3, 5, 3].tolist()) if mode == "RGB" else int(pixels[0, 5, 3])
            )


def test_the_noise_of_equal_files() -> None:
    turns = [[1.0, 1.1, 1.2], [2.0, 2.0, 2.0]]
    assert noise_of(turns, turns) == 0
    assert noise_of([[1.0]], [[1.1]]) == pytest.approx(0.1)
    first, second = [[1.0]] * 4, [[1.02], [0.98], [1.02], [0.98]]
    logs = np.log([1.02, 0.98, 1.02, 0.98])
    expected = math.exp(abs(logs.mean()) + 1.96 * logs.std(ddof=1) / 2) - 1
    assert noise_of(first, second) == pytest.approx(expected, rel=1e-3)


def test_the_waterfall_leads_from_the_baseline_to_the_result() -> None:
    falls = {fall.key: fall for fall in waterfall.waterfalls(FULL)}
    assert list(falls) == ["accuracy", "bytes", "macs", "latency"]
    for fall in falls.values():
        names = [step.name for step in fall.steps]
        assert names == ["baseline", "distill", "prune", "quantize", "result"]
        inner = fall.steps[1:-1]
        assert inner[0].start == fall.steps[0].end
        assert inner[-1].end == fall.steps[-1].end
        assert all(one.end == other.start for one, other in pairwise(inner))
    assert [step.kind for step in falls["accuracy"].steps] == ["total", "better", "worse", "better", "total"]
    assert [step.kind for step in falls["bytes"].steps] == ["total", "same", "better", "better", "total"]
    # 0.709 ms against 0.712 ms is no difference on any machine.
    assert [step.kind for step in falls["latency"].steps] == ["total", "same", "better", "better", "total"]
    assert [step.text for step in falls["bytes"].steps] == ["8.94 MB", "±0 %", "−54 %", "−72 %", "1.13 MB"]
    body = {line[0]: line[1:] for line in waterfall.table(FULL).body}
    assert body["prune"] == ("−0.55 points", "−4.87 MB (−54 %)", "−4.87 M (−54 %)", "−0.246 ms (−35 %)", "1 min 25 s")
    assert body["all stages"][0] == "−0.19 points"
    assert body["teacher"] == ("–", "–", "–", "–", "1 min 25 s")


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"rows": (BASELINE,), "teacher": None, "alternatives": ()}, 0),
        ({"rows": (BASELINE, QUANTIZED), "teacher": None}, 4),
        ({"verdict": "untrained"}, 3),
    ],
)
def test_how_many_waterfalls_there_are(change, count: int) -> None:
    report = replace(FULL, **change)
    assert len(waterfall.waterfalls(report)) == count
    assert len([name for name in plots.figures(report) if name.startswith("waterfall")]) == count


@pytest.mark.parametrize(
    ("ms", "control", "said"),
    [
        (0.25, None, "int8 pays: quantize is 1.9× faster"),
        (0.46, None, "int8 brings no speed on this machine"),
        (0.50, Control("quantize", 1.0, 0.10), "int8 brings no speed on this machine"),
        (0.50, None, "int8 did not pay in speed on this machine: quantize is 1.1× slower"),
    ],
)
def test_whether_int8_pays_is_said_plainly(ms: float, control: Control | None, said: str) -> None:
    result = replace(QUANTIZED, latency_ms=Latency(ms, ms, ms))
    report = replace(FULL, rows=(*FULL.rows[:-1], result), control=control)
    (sentence,) = timing.int8(report)
    assert sentence.startswith(said)
    assert (sentence in findings.disappointments(report)) is ("pays:" not in said)


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (None, ""),
        (Control("quantize", 0.99, 0.012), "differ by 1.0 %. Differences up to 2.0 % between"),
        (Control("quantize", 1.2, 0.3), "That is a noisy machine (30 %)"),
    ],
)
def test_the_control_says_what_the_machine_can_tell(control: Control | None, said: str) -> None:
    text = timing.control(replace(FULL, control=control))
    assert said in text
    assert bool(text) is bool(control)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": (TEACHER, BASELINE, row("distill", 98.0, 8_942_331, 0.7))}, "The teacher did not help: distill"),
        ({"alternatives": (replace(PTQ, top1_onnx=98.4),)}, "The short cut does as well: prune-ptq comes to 98.40 %"),
        ({"rows": (BASELINE, replace(PRUNED, latency_ms=Latency(0.72, 1, 1))), "teacher": None},
         "Pruning brought no speed: prune has 54 % fewer MACs than baseline and takes 0.720 ms against 0.712 ms"),
    ],
)  # fmt: skip
def test_what_did_not_work_is_said(change, said: str) -> None:
    report = replace(FULL, **change)
    assert any(sentence.startswith(said) for sentence in findings.disappointments(report))
    assert not findings.disappointments(FULL)
    for text in texts(report):
        assert said.split(":")[0] in text


@pytest.mark.parametrize(
    ("p_value", "worse", "better", "said"),
    [
        (0.2, 5, 2, "may be chance (p = 0.20)"), (0.004, 20, 5, "is more than chance (p = 0.004)"),
        (1e-9, 90, 5, "(p < 0.001)"), (1.0, 3, 3, "cannot tell the two apart"),
    ],
)  # fmt: skip
def test_whether_chance_explains_the_difference(p_value: float, worse: int, better: int, said: str) -> None:
    report = replace(RICH, changes=replace(CHANGES, worse=worse, better=better, p_value=p_value))
    text = predictions.in_images(report).replace("\u00a0", " ")
    assert text.startswith("Of 1,000 images such as the test images it gets about 983 right; the baseline, about 985.")
    assert said in text
    assert not predictions.in_images(replace(report, verdict="untrained"))


def test_every_detail_is_on_the_page_and_in_the_text(details: dict[str, Path]) -> None:
    page = Page((details["rich"] / "report.html").read_text())
    markdown = (details["rich"] / "report.md").read_text()
    for shown in (
        "44.1 dB", "there is no int8 kernel for Erf", "12.5 points", "98.3 %", "400 k",
        "quantize predicts another class than baseline for 6 of the 10 test images: 4 were right and are wrong now, "
        "1 was wrong and is right now, 1 is wrong in another way.",
        "its two medians differ by 1.0 %. Differences up to 3.0 % between two files mean nothing here.",
        "What these figures do not say",
    ):  # fmt: skip
        assert shown in page.text, shown
        assert shown in markdown, shown
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 6
    assert {attrs["src"] for attrs in pictures} == {f"data:image/png;base64,{TINY_PNG}"}
    assert pictures[0]["alt"] == "Test image 1, of class cat"
    assert report_json.read(details["rich"]) == RICH


def test_a_thousand_classes_stay_readable(details: dict[str, Path]) -> None:
    folder = details["thousand classes"]
    text = (folder / "report.html").read_text()
    assert len(text.encode()) <= 6_000_000
    figure = bars.classes(DETAILED["thousand classes"].changes)
    assert len(figure["layout"]["yaxis"]["ticktext"]) == bars.MOST_CLASSES
    assert all(len(name) <= 22 for name in figure["layout"]["yaxis"]["ticktext"])
    table = text.split("All classes as a table</summary>")[1].split("</details>")[0]
    assert text.split("All classes as a table</summary>")[0].rstrip().endswith("<details><summary>")
    assert table.count("<tr>") == 1001
    assert "and 980 more" in Page(text).text
    assert len(json.loads((folder / "report.json").read_text())["changes"]["confusions"]) <= 8


def test_many_layers_show_the_busiest_in_order() -> None:
    layers = tuple(Layer(f"conv{k}", 64, 32, k * 100, k * 50) for k in range(300))
    shown = bars.shown_layers(replace(RICH, layers=layers))
    assert shown == layers[-bars.MOST_LAYERS :]
    assert plots.figures(replace(RICH, layers=layers))["macs"]["layout"]["height"] < 1500


SHOWN_POINTS = ("teacher", "baseline", "distill", "prune", "quantize", "prune-ptq")


def test_the_front_is_of_this_page_s_files() -> None:
    points = charts.accuracy_size(FULL).points
    assert [point.name for point in points] == [*SHOWN_POINTS]
    assert [point.name for point in charts.front(points)] == ["prune-ptq", "quantize", "distill"]


@pytest.mark.parametrize(
    ("data", "first"),
    [
        ({"name": "cifar10"}, "ResNet-20"), ({"name": "cifar100"}, "DenseNet-BC-100-12"), ({"name": "digits"}, None),
        ({"class_names": ["n01440764", "n15075141", *map(str, range(998))]}, "MobileNetV3 small"),
        ({"name": "image_folder", "class_names": ["n01440764", "cat"]}, None), ({}, None),
    ],
)  # fmt: skip
def test_published_references_stand_beside_their_data_set(data, first: str | None) -> None:
    known = references.published(data)
    assert (known[0].name if known else None) == first
    report = replace(FULL, data=data)
    drawn = [point for point in charts.accuracy_size(report).points if point.role == "reference"]
    assert len(drawn) == min(len(known), charts.MOST_REFERENCES)
    assert not [p for p in charts.accuracy_latency(report).points if p.role == "reference"]
    assert not [p for p in charts.accuracy_size(replace(report, verdict="untrained")).points if p.role == "reference"]
    for text in texts(report):
        assert ("Published by others" in text) is bool(known)
        for each in known:
            assert each.source in text


def test_references_to_torchvision_are_torchvision_s() -> None:
    import torchvision

    names = {
        "MobileNetV3 small": "mobilenet_v3_small", "MobileNetV2": "mobilenet_v2", "ResNet-50": "resnet50",
        "MobileNetV2, int8": "quantized_mobilenet_v2", "MobileNetV3 large": "mobilenet_v3_large",
        "EfficientNet-B0": "efficientnet_b0", "ResNet-18": "resnet18", "ResNet-50, int8": "quantized_resnet50",
    }  # fmt: skip
    for each in references.IMAGENET:
        weights = torchvision.models.get_model_weights(names[each.name])[each.source.split(", ")[1]]
        about = weights.meta
        assert (each.params, each.top1) == (about["num_params"], about["_metrics"]["ImageNet-1K"]["acc@1"])
        assert each.bytes == pytest.approx(1e6 * about["_file_size"])


def test_other_runs_are_drawn_where_they_can_be_compared(tmp_path: Path) -> None:
    other = replace(FULL, name="other", rows=(BASELINE, row("quantize", 97.0, 900_000, 0.25)), teacher=None)
    apart = replace(other, environment=FULL.environment | {"threads": 4})
    beside = comparable(FULL, {"other": other, "apart": apart})
    figures = json.loads(Page(html.render(FULL, beside)).scripts[0])
    names = {
        key: [note["text"] for note in figures[key]["layout"]["annotations"]]
        for key in ("accuracy-size", "accuracy-latency")
    }
    assert names == {"accuracy-size": [*SHOWN_POINTS, "other", "apart"], "accuracy-latency": [*SHOWN_POINTS, "other"]}
    foreign = replace(other, environment={"data_fingerprint": "another"})
    with pytest.raises(ConfigError, match=r"foreign was trained or tested on other images \(another, this run on 71d0"):
        write(FULL, tmp_path, {"foreign": foreign})


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_model_card(details: dict[str, Path], tmp_path: Path) -> None:
    card = (details["rich"] / "models/README.md").read_text()
    about = front_matter(card)
    assert about["library_name"] == "onnx"
    assert about["pipeline_tag"] == "image-classification"
    assert "base_model" not in about
    assert "datasets" not in about
    (result,) = about["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "name": "Top-1 accuracy of the ONNX file (%)", "value": 98.33}
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    assert "| quantize.int8.onnx | 98.33 % |" in card
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")
    write(FULL, tmp_path)
    assert not (tmp_path / "models").exists()  # nothing to put a card beside


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"data": {"name": "cifar10", "classes": 10}}, "datasets", ["uoft-cs/cifar10"]),
        ({"pipeline_yaml": "student: {timm: {model: resnet18.a1_in1k, weights: r.safetensors}}"}, "base_model",
         "timm/resnet18.a1_in1k"),
        ({"pipeline_yaml": "student: {timm: {model: resnet18, weights: null}}"}, "base_model", None),
        ({"pipeline_yaml": "student: timm"}, "base_model", None),
        ({"pipeline_yaml": "]["}, "base_model", None),
        ({"verdict": "untrained"}, "model-index", None),
    ],
)  # fmt: skip
def test_the_model_card_s_metadata(change, key: str, value: object) -> None:
    assert front_matter(model_card.render(replace(FULL, **change))).get(key) == value


def test_names_are_no_markup_anywhere(tmp_path: Path) -> None:
    names = (HOSTILE, "---\nlicense: mit\n", "{{ 7*7 }}")
    found = changes((HOSTILE, HOSTILE), LABELS, BEFORE, AFTER, names)
    report = replace(
        RICH, name=HOSTILE, changes=replace(found, examples=tuple(replace(e, png=TINY_PNG) for e in found.examples)),
        rounding=(Rounding(HOSTILE, 3.0),), left_float=(LeftFloat(HOSTILE, HOSTILE, HOSTILE),),
        layers=(Layer(HOSTILE, 8, 4, 10, 5, 1.0),), data={"name": HOSTILE, "classes": 3, "class_names": list(names)},
    )  # fmt: skip
    (tmp_path / "models").mkdir()
    write(report, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert {attrs.get("src", "")[:22] for tag, attrs in page.tags if tag == "img"} == {"data:image/png;base64,"}
    assert not [attrs for _, attrs in page.tags if "onerror" in attrs]
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert "49" not in {word.strip() for word in page.words}
    card = (tmp_path / "models/README.md").read_text()
    about = front_matter(card)
    assert about["model-index"][0]["name"] == HOSTILE
    assert "license" not in about
    assert "<" not in card.split("---\n", 2)[2].split("```")[0]


def test_a_report_from_before_there_were_details_can_be_read_and_written(tmp_path: Path) -> None:
    write(FULL, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    for key in ("rounding", "left_float", "changes", "timings", "control", "devices"):
        content.pop(key)
    content["layers"] = [{"name": "features.0.0", "before": 32, "after": 16}]
    (tmp_path / "report.json").write_text(json.dumps(content))
    old = report_json.read(tmp_path)
    assert old.layers == (Layer("features.0.0", 32, 16),)
    assert all("features.0.0" in text for text in texts(old))
    assert "macs" not in plots.figures(old)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "Give the folder of a finished run"),
        (lambda folder: (folder / "stages").mkdir(), "The run there has not finished a stage: run the pipeline again"),
        (lambda folder: ((folder / "stages/baseline-1").mkdir(parents=True),
                         (folder / "stages/baseline-1/stage.json").touch()),
         "The run there finished baseline-1 and no report: run the pipeline again, what is done is kept"),
    ],
)  # fmt: skip
def test_a_run_without_a_report(prepare: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(ArtifactError, match=rf"report\.json does not exist\. {message}"):
        report_json.read(tmp_path)
