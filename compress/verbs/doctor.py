"""What this machine is good for."""

import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort
import torch

from compress import __version__
from compress.environment import PACKAGES, cpu_flags, cpu_name, free_bytes, has_vnni, version

EXTRAS = ("timm", "tensorboard", "wandb")


def findings() -> Iterator[tuple[str, str]]:
    """Facts, and what follows from them; the first word says what each is about."""
    yield "compress", f"{__version__}, Python {platform.python_version()} on {platform.platform(terse=True)}"
    yield "cpu", f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads for PyTorch"
    flags = cpu_flags()
    yield "flags", " ".join(flags) or "unknown"
    yield "int8", _int8(flags)
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            yield "gpu", f"{torch.cuda.get_device_name(i)}"
        if importlib.util.find_spec("triton") is None:
            yield "missing", "triton: torch.compile cannot be used on the GPU"
    else:
        yield "gpu", "none that PyTorch sees: training runs on the CPU; big teachers take hours there"
    for name in PACKAGES[1:]:
        yield "package", f"{name} {version(name) or 'is missing: install it with pip'}"
    missing = "is not installed: `pip install -e '.[{}]'` does that"
    for name in EXTRAS:
        yield "extra", f"{name} {version(name) or missing.format(name)}"
    yield "runtime", f"ONNX Runtime {ort.__version__}, {', '.join(ort.get_available_providers())}"
    free = free_bytes(Path.cwd()) / 1e9
    yield "disk", f"{free:.1f} GB free here" + ("; a run of large nets needs some GB" if free < 5 else "")


def _int8(flags: list[str]) -> str:
    if has_vnni(flags):
        return "fast: dot-product instructions (VNNI or their like) are there"
    if not flags:
        return "unknown: the CPU's flags cannot be read on this system; `compress benchmark` measures it"
    return "slow, and u8·s8 products may saturate: no VNNI; measure before you ship, on the device itself"
