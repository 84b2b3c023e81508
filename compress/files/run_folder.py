"""A run folder: what stands where in it, whether it can be written, and whether it is as the last run left it."""

import stat
from collections.abc import Iterable
from pathlib import Path

from compress.errors import ArtifactError, ResourceError
from compress.files import checksums, durable

CHECKSUMS = "checksums.json"
PIPELINE = "pipeline.yaml"
EVENTS = "events.jsonl"
REPORT = ("report.html", "report.md", "report.json", "models/README.md")
FILES = (*REPORT, PIPELINE, "test.npz", EVENTS, CHECKSUMS, ".lock")
FOLDERS = (
    "stages", "models", "models/alternatives", "models/seeds", "predictions", "predictions/seeds", "pictures",
    "targets", "sensitivity", "latency", "devices", "tensorboard", "wandb",
)  # fmt: skip
# What a run leaves behind beside its stages, which have checksums of their own; and of this, what every run makes anew.
LEFT = (
    *REPORT, PIPELINE, "test.npz", "pictures/*.svg", "models/**/*.onnx", "models/**/*.ort", "models/bench.py",
    "models/reference.npz", "predictions/**/*.csv",
    "sensitivity/*.csv", "sensitivity/*.key", "sensitivity/*.svg", "latency/*.csv",
)  # fmt: skip
MADE_BY_STAGES = ("sensitivity/", "latency/")


def make(out: Path) -> None:
    """Make the run folder, and see that it can be written and that nothing is in the way. Raises ResourceError."""
    if out.is_symlink() and not out.exists():
        raise ResourceError(f"{out} is a link to nothing, and a run needs a folder there; choose another with --out")
    if out.exists() and not out.is_dir():
        raise ResourceError(f"{out} is a file, and a run needs a folder there; choose another with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial = out / ".writable"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ResourceError(
            f"the folder {out} cannot be written: {error.strerror}{durable.sizes(out, error)}; choose another with "
            "--out"
        ) from error
    see_free(out / name for name in FOLDERS)
    for name in FILES:
        path = out / name
        # A link is replaced by a file; nothing is ever written through it.
        if path.exists() and not path.is_symlink() and not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "no file"
            raise ResourceError(
                f"{path} is {what} where a run writes a file; move it away, or choose another folder with --out"
            )


def see_free(folders: Iterable[Path]) -> None:
    """See that nothing but a folder stands where these are or will be; raises ResourceError."""
    for path in folders:
        dangling = path.is_symlink() and not path.exists()
        if dangling or (path.exists() and not path.is_dir()):
            what = "a link to nothing" if dangling else "a file"
            raise ResourceError(
                f"{path} is {what} where a run needs a folder; move it away, or choose another folder with --out"
            )


def seal(out: Path, only: Iterable[str] | None = None) -> None:
    """Write down the SHA-256 of what a run leaves behind, and clear away what was left half written before.

    Raises ResourceError.

    With `only`, the entries of these files (patterns) are renewed and the others stay as they are.
    """
    found = checksums.digests(out, _matching(out, LEFT if only is None else only))
    if only is not None:
        found = {**_known(out), **found}
    for half in _matching(out, (f"{pattern}{durable.UNFINISHED}" for pattern in (*LEFT, CHECKSUMS))):
        durable.remove(half)
    checksums.write(out / CHECKSUMS, {"files": found})


def unseal(out: Path) -> None:
    """Say that what stands here is being changed: until it is sealed again nothing tells whether it is whole."""
    durable.remove(out / CHECKSUMS)


def damaged(out: Path) -> dict[str, str]:
    """What is wrong with each file that is not as the last run left it; files that are gone are not counted."""
    try:
        known = _known(out)
    except ArtifactError as error:
        return {CHECKSUMS: str(error).removeprefix(f"{out / CHECKSUMS} ")}
    return {name: what for name, what in checksums.damage(out, known).items() if (out / name).exists()}


def require_sound(out: Path, *names: str) -> None:
    """See that files are as the run left them, where that is known; raises ArtifactError."""
    found = damaged(out)
    for name in (CHECKSUMS, *names):
        if name in found:
            raise ArtifactError(f"{out / name} {found[name]}; run the pipeline again, what is done is kept")


def _known(out: Path) -> dict[str, str]:
    if not (out / CHECKSUMS).exists():
        return {}
    return {str(name): str(digest) for name, digest in dict(checksums.read(out / CHECKSUMS)["files"]).items()}


def _matching(out: Path, patterns: Iterable[str]) -> set[Path]:
    return {path for pattern in patterns for path in out.glob(pattern) if path.is_file()}
