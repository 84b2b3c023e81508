"""The plan as a tree for people: what each stage makes and costs, and where each setting comes from."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from compress.config import as_named
from compress.console import clock, one_line
from compress.pipeline import Pipeline
from compress.running.plan import Plan, Step
from compress.showing.json_lines import json_of

SHORT = ("epochs", "batch_size", "optimizer", "lr", "schedule")  # of a training's settings, what is always shown
Given = Mapping[str, Any]


def tree(plan: Plan, pipeline: Pipeline, raw: Given) -> Tree:
    """The plan of a pipeline that was read from `raw`, the mapping that its file holds."""
    root = Tree(Text(one_line(plan.name), style="bold"))
    data = root.add(f"[bold]data[/bold]  {plan.data}", highlight=False)
    own = pipeline.data.model_dump(mode="json")  # type: ignore[attr-defined]
    _settings(data, own, _inner(raw.get("data")), _of_data(pipeline))
    steps = iter(plan.steps)
    teachers = raw.get("teacher")
    written = teachers if isinstance(teachers, list) else [teachers]
    for teacher, given in zip(pipeline.teacher, written, strict=False):
        node = _net(root, next(steps))
        _model(node, teacher.model.written())
        _training(node, teacher.training, _part(given, "training"))
    node = _net(root, next(steps))
    _model(node, pipeline.student.written())
    why = "its weights are taken as they are" if pipeline.student.weights else "the distill stage's, over all epochs"
    _training(node, pipeline.baseline.training, _part(raw.get("baseline"), "training"), why)
    for stage, given in zip(pipeline.stages, raw["stages"], strict=True):
        _stage(_net(root, next(steps)), stage, _inner(given), pipeline)
    for key in ("export", "benchmark", "budget"):
        settings = {k: v for k, v in getattr(pipeline, key).model_dump(mode="json").items() if v is not None}
        if settings:
            _settings(root.add(Text(key, style="bold")), settings, raw.get(key) or {}, {})
    _total(root, plan)
    return root


def render(plan: Plan, pipeline: Pipeline, raw: Given, console: Console | None = None) -> None:
    """Print the tree: in colour on a terminal, unwrapped elsewhere; remarks below."""
    console = console or Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(tree(plan, pipeline, raw))
    for remark in plan.remarks:
        console.print(Text(f"note  {one_line(remark)}"), soft_wrap=True)


def as_json(plan: Plan, pipeline: Pipeline) -> str:
    """The plan and the resolved pipeline for machines; `seconds` and `images` are null where they are not known."""
    content = asdict(plan) | {"seconds": plan.seconds, "pipeline": pipeline.model_dump(mode="json")}
    return json_of(content, indent=1)


def _net(root: Tree, step: Step) -> Tree:
    """A net with its costs."""
    node = root.add(Text.assemble((step.net, "bold"), f"  {_costs(step)}"))
    for each in step.beside:
        node.add(Text.assemble("with ", (each.net, "bold"), f"  {each.model}, {_costs(each)}"))
    return node


def _costs(step: Step) -> str:
    parts = [
        f"{step.params:,} parameters", f"{step.macs / 1e6:,.2f} MMAC", f"file ≈ {step.bytes / 1000:,.0f} kB",
        f"disk {step.disk_bytes / 1e6:,.1f} MB",
    ]  # fmt: skip
    if step.epochs is None:
        return " · ".join([*parts, "not trained"])
    parts.append(f"{step.epochs} epochs")
    parts.append("images unknown" if step.images is None else f"{step.images:,} images seen")
    parts.append("time unknown" if step.seconds is None else f"≈ {clock(step.seconds)}")
    return " · ".join(parts)


def _total(root: Tree, plan: Plan) -> None:
    seconds = plan.seconds
    known = f"≈ {clock(seconds or 0)} of training on this CPU; checks, export and timing come on top"
    root.add(Text(f"time  {'unknown until the data are there' if seconds is None else known}"))
    root.add(Text(f"disk  ≈ {plan.disk_bytes / 1e6:,.0f} MB"))


def _stage(node: Tree, stage: Any, given: Given, pipeline: Pipeline) -> None:
    own = stage.model_dump(mode="json", exclude={"training", "losses"})
    target = f"of target {pipeline.export.target}"
    _settings(node, own, given, dict.fromkeys(("weights", "activations", "align"), target))
    if stage.losses:
        said = " + ".join(_named(as_named(loss)) for loss in stage.losses)
        origin = "" if given.get("losses") else _from_losses(stage, pipeline)
        node.add(Text(f"losses  {one_line(said)}{origin}"))
    _training(node, stage.training, _part(given, "training"))


def _from_losses(stage: Any, pipeline: Pipeline) -> str:
    if not pipeline.teacher:
        return "  (by default, without a teacher)"
    return "  (by default)" if stage.name in ("distill", "born_again", "mutual") else "  (as in the distill stage)"


def _model(node: Tree, written: Mapping[str, Any]) -> None:
    ((name, fields),) = written.items()
    inside = ", ".join(f"{key} {_value(value)}" for key, value in fields.items() if value not in (None, False))
    node.add(Text(one_line(f"model  {name}" + (f": {inside}" if inside else ""))))


def _training(node: Tree, training: Any, given: Given, why: str = "") -> None:
    """What a training is; `why` says where all of it comes from, if the file gives nothing."""
    if training is None:
        node.add(Text(f"training  none: {why or 'it has weights'}"))
        return
    fields, defaults = training.model_dump(mode="json"), type(training)().model_dump(mode="json")
    shown = {k: v for k, v in fields.items() if k in SHORT or k in given or v != defaults[k]}
    _settings(node, shown, given, dict.fromkeys(shown, why) if why and not given else {}, "training")


def _settings(node: Tree, fields: Given, given: Given, filled: Mapping[str, str], label: str = "") -> None:
    """A line for the settings that the file gives, and one for each other place that settings come from."""
    groups: dict[str, list[str]] = {}
    for key, value in fields.items():
        unset = value in (None, [], {})
        origin = "" if key in given else ("" if unset else filled.get(key)) or "by default"
        if origin == "by default" and unset:
            continue  # nothing is nothing
        groups.setdefault(origin, []).append(f"{key} {_value(value)}")
    for origin in sorted(groups, key=lambda each: (each != "", each == "by default")):
        text = one_line(f"{label}  {', '.join(groups[origin])}".strip())
        node.add(Text(text) if not origin else Text.assemble(text, (f"  ({origin})", "dim")))


def _of_data(pipeline: Pipeline) -> dict[str, str]:
    """Where the preprocessing comes from that the file does not give."""
    models = [pipeline.student, *(teacher.model for teacher in pipeline.teacher)]
    source = next((model for model in models if model.weights and model.preprocessing), None)
    if source is None:
        return {}
    return dict.fromkeys(("mean", "std", "resize", "interpolation"), f"of the weights {source.weights}")


def _inner(raw: Any) -> Given:
    """The settings in `name` or `{name: {key: value}}`."""
    if isinstance(raw, dict) and len(raw) == 1:
        ((_, fields),) = raw.items()
        return fields if isinstance(fields, dict) else {}
    return {}


def _part(raw: Any, key: str) -> Given:
    found = raw.get(key) if isinstance(raw, dict) else None
    return found if isinstance(found, dict) else {}


def _named(named: Mapping[str, Any]) -> str:
    ((name, fields),) = named.items()
    inside = ", ".join(f"{key} {_value(value)}" for key, value in fields.items() if value not in (None, [], {}))
    return f"{name} ({inside})" if inside else str(name)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), dict):
        return _named(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)
