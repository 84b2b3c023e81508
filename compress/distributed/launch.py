"""What a process is started with: the device that a user names, and the variables that `torchrun` sets."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from compress.errors import ConfigError

RANK, SIZE, LOCAL_RANK, HOST, PORT = NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ADVICE = (
    "start with `torchrun --nproc-per-node N -m compress run …`, which sets all of "
    f"{', '.join(NEEDED)}, or unset {RANK} and {SIZE} for a single process"
)
LARGEST_PORT = 65535


@dataclass(frozen=True)
class Launch:
    """Which of how many processes this one is, where they meet, and what it computes on."""

    rank: int
    size: int
    device: torch.device
    address: str = ""


def this_launch(device: torch.device, environ: Mapping[str, str] = os.environ) -> Launch:
    """Read the environment; a single process where it says nothing or there is one.

    On GPUs each process takes that of its local rank. Raises ConfigError where variables are missing, are no numbers
    or do not fit, and where there are fewer GPUs than processes.
    """
    if (RANK not in environ and SIZE not in environ) or environ.get(SIZE) == "1":
        return Launch(0, 1, device)
    missing = [name for name in NEEDED if not environ.get(name)]
    if missing:
        given = [name for name in NEEDED if environ.get(name)]
        raise ConfigError(f"{', '.join(given) or 'nothing'} is set and {', '.join(missing)} not; {ADVICE}")
    size = _number(environ, SIZE, 1, 2**16)
    rank = _number(environ, RANK, 0, size - 1)
    local = _number(environ, LOCAL_RANK, 0, rank)
    port = _number(environ, PORT, 1, LARGEST_PORT)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if local >= count:
            raise ConfigError(
                f"{LOCAL_RANK} is {local}, and there are {count} GPUs here: start at most --nproc-per-node {count}, or "
                "use --device cpu"
            )
        device = torch.device("cuda", local)
    return Launch(rank, size, device, f"{environ[HOST]}:{port}")


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; raises ConfigError where there is no such GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu, or see `compress doctor`")
    return torch.device(name)


def _number(environ: Mapping[str, str], name: str, least: int, most: int) -> int:
    try:
        value = int(environ[name])
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise ConfigError(f"{name} is {environ[name]!r} and should be a whole number from {least} to {most}; {ADVICE}")
    return value
