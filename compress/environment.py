"""What machine and which versions this is: everything that may change a figure."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("compress", "torch", "torchvision", "torch-pruning", "onnx", "onnxruntime", "onnxscript", "numpy")
# What decides the speed of float and int8 kernels on x64 and on Arm.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")


def environment() -> dict[str, Any]:
    """The machine and the versions: cpu, flags, threads, gpu, python, packages, commit."""
    import torch  # here, because what only asks for free bytes should start at once

    return {
        "cpu": cpu_name(),
        "flags": cpu_flags(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit(),
    }


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    found = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Those of the flags that matter here which the processor has."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    has = set(found[1].split()) if found else set()
    return [flag for flag in FLAGS if flag in has]


def has_vnni(flags: list[str]) -> bool:
    """Whether int8 products are summed in 32 bits: without, u8·s8 pairs saturate in 16 bits."""
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"))


def commit() -> str | None:
    """The commit of the checkout this program runs from, None where it is installed without one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(  # noqa: S603
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],  # noqa: S607
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that holds a folder, or will."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
