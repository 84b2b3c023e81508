"""ONNX files from outside, read without trusting them: what could hurt is refused before onnx or the runtime sees it.

No library of custom operators is ever loaded, nothing outside a file's folder is read, and nothing that a file claims
is believed before it has been compared with what is there.
"""

from pathlib import Path

import onnx
from onnx import ModelProto
from onnx.external_data_helper import load_external_data_for_model

from compress.errors import ModelError
from compress.files.onnx_graph import require_bounded_graph
from compress.files.onnx_tensors import LIMIT_BYTES, outside_files, require_sound_tensors
from compress.files.onnx_wire import require_bounded_fields
from compress.spelling import nearest_file

FILE_BYTES = 2 * 2**30  # what one protobuf message may have


def read_onnx(path: Path) -> ModelProto:
    """The graph in a file; weights that it keeps beside it are left there, and lie in its folder whole.

    Raises ModelError, before anything of that size is in memory, for what is no ONNX file, is cut off or damaged, too
    large or nested too deep, has weights outside its own folder, tensors that claim more or less than there is,
    dimensions that no image classifier has, or operators that only a library of their own brings. It does not check
    whether the graph is valid: `read_whole` does.
    """
    if (path / "models").is_dir():
        made = ", ".join(str(each) for each in sorted((path / "models").glob("*.onnx")))
        raise ModelError(f"{path} is a run folder; name one of its files: {made or 'there is none yet'}")
    if not path.is_file():
        near = nearest_file(path, (".onnx",))
        raise ModelError(f"no ONNX file {path}{'.' if near else ''}{near}")
    if path.suffix.lower() == ".ort":
        raise ModelError(f"{path} has the name of ONNX Runtime's own format; give the .onnx file that it was made from")
    try:
        size = path.stat().st_size
        if size > FILE_BYTES:
            raise ModelError(f"{path} has {size / 2**30:.1f} GiB; more than {LIMIT_BYTES / 2**30:g} GiB are not read")
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    try:
        require_bounded_fields(raw, path)
        model = onnx.load_model_from_string(raw)
    except ModelError:
        raise
    except Exception as error:  # protobuf's errors share no base class
        raise ModelError(damaged(path)) from error
    if not model.graph.node:
        raise ModelError(damaged(path))
    require_sound_tensors(model, path, size)
    require_bounded_graph(model, path)
    return model


def read_whole(path: Path, *, full: bool) -> ModelProto:
    """The graph with all its weights, passed by onnx's own checker; `full` has it infer all shapes, too.

    Raises ModelError for what `read_onnx` or the checker refuses.
    """
    model = read_onnx(path)
    try:
        load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model, full_check=full)
    except Exception as error:  # the checker's and the file system's have no common base
        raise ModelError(f"{path} is not a valid ONNX file: {first_line(error)}; export it again") from error
    return model


def content_of(path: Path) -> list[Path]:
    """The file itself and those beside it that hold its weights; raises ModelError like `read_onnx`."""
    return [path, *outside_files(path, read_onnx(path))]


def damaged(path: Path) -> str:
    """What to say of a file in which no graph can be found."""
    return f"{path} is not a valid ONNX file: it is something else, cut off or damaged; export it again"


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
