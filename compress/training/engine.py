"""How a net is run in training: as it is, or compiled, whichever is quicker here."""

import ctypes
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from compress.edits.quantizers import activation_quantizers

Compile = Literal["auto", "on", "off"]
Run = Callable[[Tensor], Tensor]

# On a CPU compiling takes a minute or more: a training that takes less than this as it is has nothing to win.
WORTH_IT_S = {"cpu": 600.0, "cuda": 60.0}
QUICKER = 0.9  # a compiled net takes at most this part of the time, else it is not worth its surprises
STEPS, WARM_UP = 5, 2
# How far a compiled net's logits may be off, as a part of their norm. A GPU rounds to bfloat16, where one net in two
# memory layouts already differs by a tenth.
SAME = {"cpu": 1e-3, "cuda": 0.3}


WAYS = {"compiled": "default", "graphs": "reduce-overhead"}  # torch.compile's modes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 2**28


@dataclass(frozen=True)
class Engine:
    """A way to run a net, and why it was chosen.

    `name` is `plain`, `compiled` (torch.compile) or `graphs` (compiled, replayed as CUDA graphs); `step_ms` has the
    milliseconds of a forward and a backward pass for each way that was tried, `remark` what happened to those that
    failed.
    """

    name: str
    run: Run
    step_ms: dict[str, float] = field(default_factory=dict)
    remark: str = ""

    def begin_step(self) -> None:
        """Say that the outputs of the step before are done with: a replayed graph writes over them."""
        if self.name == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def describe(self) -> str:
        """In a few words what was chosen and by what figures."""
        figures = ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.step_ms.items())
        return "; ".join(part for part in (f"training step: {self.name} ({figures})", self.remark) if part)


def fastest(
    module: nn.Module,
    run: Run,
    inputs: Tensor,
    *,
    compiling: Compile,
    steps: int,
    watched: bool,
    before: str | None = None,
) -> Engine:
    """Choose how to run a net for `steps` steps of training on batches such as `inputs`.

    `run` runs the module as it is. `auto` measures where the training is long enough for compiling to pay; `on`
    compiles wherever that works. A net whose layers are watched, or that rounds, runs as it is: hooks and quantizers
    keep books in Python. The module's weights and statistics are afterwards what they were. `before` is the engine that
    the training began with: another one would round otherwise.
    """
    if before is not None:
        if before != "plain":
            torch.compiler.reset()
        return Engine(before, torch.compile(run, mode=WAYS[before]) if before in WAYS else run)
    if compiling == "off" or watched or any(True for _ in activation_quantizers(module)):
        return Engine("plain", run)
    kind = inputs.device.type
    if compiling == "auto" and steps * _least_ms(kind, inputs) / 1e3 < WORTH_IT_S[kind]:
        return Engine("plain", run)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        with torch.random.fork_rng(devices=[inputs.device] if kind == "cuda" else []):
            return _measured(module, run, inputs, compiling, steps, state)
    finally:
        _restore(module, state)


def _least_ms(kind: str, inputs: Tensor) -> float:
    """Less than any step of training takes, so that short trainings are not held up by being timed."""
    return 0.05 * inputs.numel() / 3072 if kind == "cpu" else 1.0


def _measured(
    module: nn.Module, run: Run, inputs: Tensor, compiling: Compile, steps: int, state: dict[str, Tensor]
) -> Engine:
    """Time the ways one after the other; the quickest by a margin, or the compiled one where that is asked for."""
    kind = inputs.device.type
    plain_ms = _step_ms(run, module, inputs)
    if compiling == "auto" and steps * plain_ms / 1e3 < WORTH_IT_S[kind]:
        return Engine("plain", run, {"plain": plain_ms})
    expected = _logits(run, module, inputs, state)
    ways = {name: mode for name, mode in WAYS.items() if name != "graphs" or kind == "cuda"}
    tried, runs, remarks = {"plain": plain_ms}, {"plain": run}, []
    torch.compiler.reset()  # every training compiles the same code for another net, and only so many are kept
    for name, mode in ways.items():
        try:
            compiled: Run = torch.compile(run, mode=mode)
            logging.getLogger("torch.utils.cpp_extension").setLevel(
                logging.ERROR
            )  # it misses a GPU where there is none
            off = (_logits(compiled, module, inputs, state) - expected).norm() / expected.norm()
            if not off <= SAME[kind]:
                remarks.append(f"{name} gives other logits, {off:.1e} of their norm off")
                continue
            tried[name], runs[name] = _step_ms(compiled, module, inputs), compiled
        except Exception as error:  # noqa: BLE001  (a compiler may fail in any way, and training goes on without)
            remarks.append(f"{name} failed ({type(error).__name__})")
    best = min(tried, key=lambda name: tried[name])
    if compiling == "auto" and tried[best] > QUICKER * plain_ms:
        best = "plain"
    elif compiling == "on" and best == "plain" and len(tried) > 1:
        best = min((name for name in tried if name != "plain"), key=lambda name: tried[name])
    return Engine(best, runs[best], tried, "; ".join(remarks))


def _step_ms(run: Run, module: nn.Module, inputs: Tensor) -> float:
    """Milliseconds of a forward and a backward pass, the median of a few."""
    taken = []
    for _ in range(WARM_UP + STEPS):
        _wait(inputs.device)
        began = time.perf_counter()
        if inputs.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        run(inputs).float().square().mean().backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)
        _wait(inputs.device)
        taken.append(time.perf_counter() - began)
    return 1e3 * statistics.median(taken[WARM_UP:])


def _logits(run: Run, module: nn.Module, inputs: Tensor, state: dict[str, Tensor]) -> Tensor:
    """What a net says at first, with the same dropout each time."""
    _restore(module, state)
    torch.manual_seed(0)
    return run(inputs).detach().float().clone()


def _restore(module: nn.Module, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in module.state_dict().items():
            value.copy_(state[name])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def quick(device: torch.device) -> Iterator[None]:
    """Settings of the machine that training is quicker with.

    On a GPU cuDNN tries its algorithms, as all batches have one shape, and TF32 is used where float32 is left. On a CPU
    the memory of a step's activations is kept for the next step.
    """
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    if device.type == "cuda":
        torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = True, True
    else:
        keep_memory()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = before


@cache
def keep_memory() -> None:
    """Tell glibc, where it is there, not to give large blocks back to the system as soon as they are free.

    It would take them again a step later, and the system hands them out page by page, zeroed: a tenth of a small net's
    step. What is free may grow to KEPT_BYTES.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    except (OSError, AttributeError):
        return  # another system, whose allocator has its own ways
