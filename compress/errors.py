"""Every error a user can cause, with the exit code of the command line.

* CompressError
  - ConfigError        2  the pipeline file or the command line is wrong (raised before any work starts)
  - DataError          3  images or labels are missing, unreadable or do not fit
  - ModelError         4  a model or its weights cannot be used
    - ArtifactError    4  a saved net is missing, foreign or damaged
    - ExportError      4  the ONNX file failed a check
    - TrainingError    4  numbers stopped being finite
  - ResourceError      6  disk, memory, or a folder that cannot be written
  - BusyError          7  another process uses the run folder

A missed budget (exit code 5) is a result, not an exception. Anything else that escapes is a bug (1).
"""


class CompressError(Exception):
    """Base class: `except CompressError` catches all of them, and nothing else."""

    exit_code = 1


class ConfigError(CompressError):
    """The pipeline file or the command line is wrong; the message names each place and a fix."""

    exit_code = 2


class DataError(CompressError):
    """Images or labels cannot be used; the message names the files."""

    exit_code = 3


class ModelError(CompressError):
    """A model or its weights cannot be used; the message says what would work."""

    exit_code = 4


class ArtifactError(ModelError):
    """A saved net cannot be used; the message names the file."""


class ExportError(ModelError):
    """The ONNX file is not what was promised; the message names the nodes."""


class TrainingError(ModelError):
    """A loss or weight is no longer finite; the message names the tensor."""


class ResourceError(CompressError):
    """Disk, memory or permissions; the message says what was needed and what there was."""

    exit_code = 6


class BusyError(CompressError):
    """Another process uses the run folder."""

    exit_code = 7
