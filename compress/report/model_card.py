"""models/README.md: a model card as hubs read it, YAML metadata first (huggingface.co/docs/hub/model-cards)."""

from typing import Any

import yaml

import compress.report.findings as findings
import compress.report.numbers as numbers
import compress.report.timing as timing
import compress.report.wording as wording
from compress.report.certainty import interval
from compress.report.content import Report
from compress.report.markdown import bullets, escaped, fenced, tabulated
from compress.report.tables import Table
from compress.row import Row

# What the data sets are called on the hub. Others are the user's own, and named nowhere.
HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
TIMM = "timm/"


def render(report: Report) -> str:
    """The text of the card: what the files are, how good, how fast, how to use them, what not to expect."""
    metadata = yaml.safe_dump(_metadata(report), sort_keys=False, allow_unicode=True, width=1000)
    file = report.result.onnx.removeprefix("models/")
    size = report.data.get("image")
    parts = [
        f"---\n{metadata}---",
        f"# {escaped(report.name)}",
        escaped(f"An image classifier as ONNX files, made small by distillation, pruning or quantization. {file} is "
                f"the result. {wording.sentence(report)} {wording.judgement(report)}"),
        tabulated(_files(report), numeric_from=1),
        escaped(f"Measured on the files with ONNX Runtime: {_where(report)}."),
        "## Use",
        "Class names, mean, standard deviation and size are in each file's metadata.",
        fenced(_python(file), "python"),
        "## Data",
        escaped(f"{report.data.get('name') or 'Images'}: {report.data.get('classes', '?')} classes, images of "
                f"{'×'.join(map(str, size)) if isinstance(size, list | tuple) else '?'} (channels, height, width)."),
        "## Limits",
        bullets((*wording.warnings(report), *findings.disappointments(report), *findings.limits(report))),
    ]  # fmt: skip
    if report.command:
        parts += ["## The same again", fenced(report.command, "sh")]
    return "\n\n".join(parts) + "\n"


def _metadata(report: Report) -> dict[str, Any]:
    """The card's metadata. Accuracy is left out where nothing was trained."""
    base = _base_model(report)
    data = str(report.data.get("name") or "images")
    found: dict[str, Any] = {"library_name": "onnx", "pipeline_tag": "image-classification"}
    found["tags"] = ["onnx", "onnxruntime", "model-compression"] + (["int8"] if report.result.int8 else [])
    found |= {"datasets": [HUB[data]]} if data in HUB else {}
    found |= {"base_model": base} if base else {}
    if report.verdict == "untrained":
        return found
    top1, top5 = round(report.result.top1_onnx, 2), round(report.result.top5, 2)
    metrics = [{"type": "accuracy", "name": "Top-1 accuracy of the ONNX file (%)", "value": top1}]
    if report.data.get("classes", 0) > 5:
        metrics.append({"type": "accuracy", "name": "Top-5 accuracy of the ONNX file (%)", "value": top5})
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": HUB.get(data, data), "split": "test"},
        "metrics": metrics,
    }
    return found | {"metrics": ["accuracy"], "model-index": [{"name": report.name, "results": [result]}]}


def _files(report: Report) -> Table:
    head = ("File", "Top-1", "95 % interval", "Parameters", "MACs", "Size", "Median latency")
    return Table("", head, tuple(map(_file, (*report.rows, *report.alternatives))))


def _file(row: Row) -> tuple[str, ...]:
    return (
        row.onnx.removeprefix("models/"),
        numbers.percent(row.top1_onnx),
        numbers.interval(*interval(row)),
        numbers.scaled(row.params),
        numbers.scaled(row.macs),
        numbers.scaled(row.bytes, "B"),
        numbers.milliseconds(row.latency_ms.p50),
    )


def _where(report: Report) -> str:
    return f"{report.result.samples:,} test images; latency on {timing.machine(report)}"


def _base_model(report: Report) -> str:
    """The student's place on the hub, empty where it started from nothing that is there."""
    try:
        given = yaml.safe_load(report.pipeline_yaml)["student"]["timm"]
        return f"{TIMM}{given['model']}" if given.get("weights") and "." in given["model"] else ""
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return ""


def _python(file: str) -> str:
    return (
        "import json\n\nimport onnxruntime\n\n"
        f"session = onnxruntime.InferenceSession({file!r})\n"
        "about = session.get_modelmeta().custom_metadata_map\n"
        'names = json.loads(about["class_names"])\n'
        'print(about["input_layout"], about["mean"], about["std"], names[:5])\n'
        "feed = session.get_inputs()[0]\n"
        "print(feed.name, feed.shape, feed.type)"
    )
