"""The teacher of the script for a big GPU, and its logits on all views."""

import json
import time
from typing import Any

import numpy as np
import torch
from distillation_gpu_place import Epochs, Place, Result, fitted, top1
from distillation_recipes import TEACHER, TEACHERS
from torch import nn

from compress import net as nets
from compress.augment import Change, views
from compress.data.base import Data
from compress.net import Net
from compress.training.targets import Targets, compute

ASKED_IMAGES = 16  # of which the teacher sees all views at once: batches of one size, which 50,000 images divide into


def trained_teacher(place: Place, say: Any) -> Result:
    """Train the teacher on all images and keep it with its accuracy on the test images."""
    data = place.images()
    net = nets.build(place.spec(TEACHER), seed=0)
    epochs = Epochs(say)
    seconds = fitted(net.module, data, place.trained(TEACHERS), [], place, seed=0, epochs=epochs)
    result = {"top1": top1(net.module, data, place.on), "seconds": seconds, "engine": epochs.engine}
    kept = place.folder / f"teacher-{place.teacher_key}"
    kept.mkdir(parents=True, exist_ok=True)
    nets.save(net, kept)
    (kept / "result.json").write_text(json.dumps(result))
    return result


def teacher_result(place: Place) -> Result:
    """What the kept teacher came to."""
    found: Result = json.loads((place.folder / f"teacher-{place.teacher_key}" / "result.json").read_text())
    return found


def computed_targets(place: Place, teacher: Net, say: Any) -> Result:
    """Ask the teacher for its logits on all views of all images; says how far they are from float32's."""
    data, device = place.images(), place.on
    every = views("shift_flip", data.mirror, data.image[-1]) or 1
    module = teacher.module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    ask, way = _asking(module, data, device, ASKED_IMAGES * every)
    began = time.perf_counter()
    targets = compute(
        place.folder, place.targets_key, ask, data.train.images, data.classes, kind="shift_flip",
        mirror=data.mirror, size=data.image[-1], batch=ASKED_IMAGES * every, device=device, emit=say,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": targets.layout.bytes, "views": every, "way": way} | _distance(
        targets, module, data, device, every
    )


def _asking(module: nn.Module, data: Data, device: torch.device, batch: int) -> tuple[Any, str]:
    """The teacher in bfloat16 on a GPU, compiled where that works and says the same."""

    def ask(images: torch.Tensor, run: Any = module) -> torch.Tensor:
        inputs = data.inputs(images).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return run(inputs).float()  # type: ignore[no-any-return]

    if device.type != "cuda":
        return ask, "as it is"
    try:
        compiled = torch.compile(module)
        some = data.train.images[np.arange(batch) % len(data.train)].to(device)
        alike = (ask(some, compiled).argmax(1) == ask(some).argmax(1)).float().mean().item()
        if alike > 0.99:
            return (lambda images: ask(images, compiled)), "compiled"
        return ask, f"as it is: compiled it agrees on {100 * alike:.1f} % only"
    except Exception as error:  # noqa: BLE001  (a compiler may fail in any way, and it goes on without)
        return ask, f"as it is: compiling failed ({type(error).__name__})"


def _distance(targets: Targets, module: nn.Module, data: Data, device: torch.device, every: int) -> Result:
    """How far kept logits are from the teacher in float32, on one view each of some images."""
    count = min(2000, len(data.train))
    rows = torch.arange(count)
    which = torch.randint(0, every, (count,), generator=torch.Generator().manual_seed(0))
    kept = targets.logits(rows, which)
    alike, furthest = 0, 0.0
    for part in torch.split(rows, 200):
        images = data.train.images[part.numpy()].to(device)
        images = Change.of_views("shift_flip", data.mirror, data.image[-1], which[part]).applied(images)
        with torch.no_grad():
            exact = module(data.inputs(images).contiguous(memory_format=torch.channels_last)).float().cpu()
        alike += int((kept[part].argmax(1) == exact.argmax(1)).sum())
        furthest = max(furthest, float((kept[part] - exact).abs().max()))
    return {"agreement": 100 * alike / count, "furthest": furthest}
