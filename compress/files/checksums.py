"""Checksums by which a flipped bit and a missing end are found out: of files, and of a JSON file inside itself."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError
from compress.files import durable

DIGEST = "digest"


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that ends with the SHA-256 of itself. Raises ResourceError."""
    durable.write(path, _sealed(content))


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; raises ArtifactError where the file is missing or any bit is not as it was written."""
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        digest = content.pop(DIGEST, None)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing") from None
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: it cannot be read as JSON") from error
    if digest is None:
        raise ArtifactError(f"{path} was made by an earlier version, without checksums")
    # All of the file is compared, for bits that change no value: a space, or the case of a letter in an escape.
    if _sealed(content).encode() != raw:
        raise ArtifactError(f"{path} is damaged: its SHA-256 is not the one that it was written with")
    return dict(content)


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of files in a folder, by their paths inside it."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(files)}


def damage(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each file whose SHA-256 is not the known one: `is missing`, or how it is damaged."""
    found = {}
    for name, digest in known.items():
        path = folder / name
        try:
            if sha256(path) != digest:
                found[name] = "is damaged: its SHA-256 is not the one that it was written with"
        except FileNotFoundError:
            found[name] = "is missing"
        except OSError as error:
            found[name] = f"is damaged: {error.strerror or type(error).__name__}"
    return found


def _sealed(content: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(_text(content).encode()).hexdigest()
    return _text({**content, DIGEST: digest}) + "\n"


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1)
