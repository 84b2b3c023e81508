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


def findings() -> Iterator[str]:
    """Lines of facts, and of what follows from them; the first word says what a line is about."""
    yield f"compress   {__version__}, Python {platform.python_version()} on {platform.platform(terse=True)}"
    yield f"cpu        {cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads for PyTorch"
    flags = cpu_flags()
    yield f"flags      {' '.join(flags) or 'unknown'}"
    yield "int8       " + _int8(flags)
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            yield f"gpu        {torch.cuda.get_device_name(i)}"
        if importlib.util.find_spec("triton") is None:
            yield "missing    triton: torch.compile cannot be used on the GPU"
    else:
        yield "gpu        none that PyTorch sees: training runs on the CPU; big teachers take hours there"
    for name in PACKAGES[1:]:
        yield f"package    {name} {version(name) or 'is missing: install it with pip'}"
    yield f"runtime    ONNX Runtime {ort.__version__}, {', '.join(ort.get_available_providers())}"
    free = free_bytes(Path.cwd()) / 1e9
    yield f"disk       {free:.1f} GB free here" + ("; a run of large nets needs some GB" if free < 5 else "")


def _int8(flags: list[str]) -> str:
    if has_vnni(flags):
        return "fast: dot-product instructions (VNNI or their like) are there"
    if not flags:
        return "unknown: the CPU's flags cannot be read on this system; `compress benchmark` measures it"
    return "slow, and u8·s8 products may saturate: no VNNI; measure before you ship, on the device itself"
