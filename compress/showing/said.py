"""Events of a run in words, as marked text for rich."""

from compress.console import clock, marked
from compress.events import Event


def said(event: Event) -> str | None:
    """A line on an event; None for what moves a bar, and for what nobody at a terminal needs to hear."""
    kind = event["event"]
    if kind == "stage":
        return f"[bold]{marked(event['stage'])}[/bold]: started"
    if kind == "unchanged":
        return f"[bold]{marked(event['stage'])}[/bold]: unchanged, taken over from {marked(event['folder'])}"
    if kind == "stage finished":
        return f"[bold]{marked(event['stage'])}[/bold]: finished in {clock(event['seconds'])}"
    if kind == "seed":
        return f"seed {event['seed']} of 0 to {event['of'] - 1}"
    if kind == "preflight":
        return "checking that every net can be built, pruned, quantized and exported"
    if kind == "exporting":
        return f"[bold]{marked(event['net'])}[/bold]: exporting, measuring accuracy of the file"
    if kind == "measuring":
        return f"timing {event['files']} files in turns"
    if kind == "warning":
        return f"[yellow]warning:[/yellow] {marked(event['text'])}"
    return after_interruption(event)


def after_interruption(event: Event) -> str | None:
    """What a run found of an earlier one in its folder, and what it made of numbers that went wrong."""
    kind = event["event"]
    if kind == "resumed" and event["step"]:
        return f"[bold]{marked(event['stage'])}[/bold]: taken up again at step {event['step']}"
    if kind == "mended":
        return f"[yellow]warning:[/yellow] {marked(event['stage'])}: {marked(event['text'])}"
    if kind == "taken over":
        dead = f"pid {event['pid']} on host {marked(event['host'])}"
        return f"the last run here, {dead}, ended without a word; this one takes over"
    if kind == "changed":
        lines = [marked("since the last run here: " + "; ".join(event["fields"]))]
        for what, stages in (("made again", event["rerun"]), ("taken over", event["kept"])):
            lines += [marked(f"{what}: {', '.join(stages)}")] if stages else []
        return "\n".join(lines)
    return None


def figures(event: Event, left_s: float | None) -> tuple[str, ...]:
    """The figures of a training, the dearest first; `left_s` is the time left for the stage."""
    found = [f"epoch {event['epoch']}/{event['epochs']}"]
    found += [f"{clock(left_s)} left"] if left_s is not None else []
    found += [f"accuracy {event['accuracy']:.1f} %", f"loss {event['loss']:.3f}"]
    if "val_accuracy" in event:
        found.insert(2, f"val {event['val_accuracy']:.1f} %")
    return (*found, f"{event['images_per_s']:,.0f} img/s")
