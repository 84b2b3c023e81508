"""The table of the script for a big GPU."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from distillation_gpu_place import Result
from distillation_recipes import BEST, BY_PAPERS, EPOCHS, HIGHEST_SEEN, METHODS, TEACHER_TOP1, Recipe
from lines import Line, at_least, at_most

TEACHER_BOUND, BEST_BOUND = 79.3, 71.6
STUDENT_S, TIMES_PLAIN = 120.0, 30.0
SEEDS = 3


def lines_of(found: Mapping[str, Any], results: Sequence[Result]) -> list[Line]:
    """The lines of what there is so far; `found` has the parts before the students by name."""
    lines = []
    if "teacher" in found:
        words = (
            f"{{:.2f}} in {found['teacher']['seconds']:.0f} s (published {TEACHER_TOP1}); {found['teacher']['engine']}"
        )
        lines.append(at_least("teacher, top-1", found["teacher"]["top1"], TEACHER_BOUND, words))
    if "targets" in found:
        lines.append(_targets(found["targets"]))
    if found.get("search"):
        tops = "  ".join(f"{name} {top1:.2f}" for name, top1 in found["search"].items())
        lines.append(Line("search: top-1 on held-out training images", "", tops))
    if "best" in found:
        lines += _best(BEST[found["best"]], results, found.get("plain"))
    for recipe in BY_PAPERS.values():
        lines += _published(recipe, [each for each in results if each["group"] == "papers"])
    for recipe in METHODS.values():
        lines += _published(recipe, [each for each in results if each["group"] == "method"])
    return lines


def _targets(found: Mapping[str, Any]) -> Line:
    said = (
        f"{found['seconds']:.0f} s, {found['bytes'] / 1e9:.2f} GB, {found['way']}; of 2,000 views "
        f"{found['agreement']:.2f} % have the class that float32 gives them, no logit is more than "
        f"{found['furthest']:.3f} off"
    )
    return Line(f"teacher's logits on all {found['views']} views", "", said)


def _best(recipe: Recipe, results: Sequence[Result], plain: Mapping[str, Any] | None) -> list[Line]:
    """Accuracy over the seeds, and the time of the one that was alone on the GPU."""
    mine = [each for each in results if each["group"] == "best" and each["recipe"] == recipe.name]
    if not mine:
        return []
    tops = [each["top1"] for each in mine]
    mean = statistics.mean(tops)
    title = f"our best recipe ({recipe.name}), top-1 after the last epoch"
    said = f"{spread(tops)} (highest published {HIGHEST_SEEN})"
    whole = len(tops) == SEEDS
    lines = [Line(f"{title}, mean of {SEEDS} seeds", f"≥ {BEST_BOUND}", said, mean >= BEST_BOUND if whole else None)]
    alone = next((each for each in mine if each["seed"] == 0), None)
    if alone is None:
        return lines
    words = (
        f"{{:.0f}} (batch {alone['batch_size']}; {alone['seconds']:.0f} with choosing and compiling the step; "
        f"{alone['engine']})"
    )
    lines.append(at_most(f"{alone['epochs']} epochs of the student, seconds", alone["epochs_s"], STUDENT_S, words))
    if plain is not None:
        hours = plain["step_ms"] * plain["epoch_steps"] * alone["epochs"] / 3.6e6
        words = (
            f"{{:.0f}}× ({hours:.1f} h by {plain['step_ms']:.1f} ms a step of {plain['batch_size']} images, "
            f"from {plain['steps']} steps timed)"
        )
        times = 3600 * hours / alone["seconds"]
        title = "the same, compiling and all, against the plain loop with the teacher in it"
        lines.append(at_least(title, times, TIMES_PLAIN, words))
    return lines


def _published(recipe: Recipe, results: Sequence[Result]) -> list[Line]:
    """One recipe beside its published figure."""
    tops = [each["top1"] for each in results if each["recipe"] == recipe.name]
    if not tops:
        return []
    training = recipe.training
    how = f"batch {training.batch_size}, {training.schedule}"
    said = f"{spread(tops)} (published {recipe.published:.2f})"
    title = f"{recipe.name} ({how}, {EPOCHS} epochs), top-1"
    if recipe.within is None or recipe.published is None:
        return [Line(title, "", said)]
    ok = abs(statistics.mean(tops) - recipe.published) <= recipe.within
    return [Line(title, f"{recipe.published} ± {recipe.within}", said, ok)]


def spread(values: Sequence[float]) -> str:
    """Mean and standard error, and each value."""
    if len(values) == 1:
        return f"{values[0]:.2f}, one seed"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {error:.2f} ({', '.join(f'{value:.2f}' for value in values)})"
