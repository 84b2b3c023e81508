"""How a loss names the layers that it looks at, in the student and in the teacher."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from compress.config import Config

EMBEDDING: Literal["embedding"] = "embedding"


class Pair(Config):
    """A layer of the student and one of the teacher, each a stage, `embedding`, or a pattern over layers' names."""

    name: ClassVar[str] = "layer"
    student: int | str
    teacher: int | str


# A stage counted from 1, or from the end by -1, -2, ...: what a net knows before it halves the resolution, the last one
# before the pooling. `embedding`: what goes into the last linear layer. Any other text: a pattern over layers' names in
# both nets, in which `*` stands for anything but a dot. A pair names the two nets' layers apart.
Where = int | str | Pair


def _in_a_list(raw: Any) -> Any:
    """A single place where a list of them is due."""
    return (raw,) if isinstance(raw, int | str | dict | Pair) else raw


Layers = Annotated[tuple[Where, ...], Field(min_length=1), BeforeValidator(_in_a_list, Where | tuple[Where, ...])]


def key(where: Where) -> str:
    """The name of a place, under which `Outputs.features` has its features."""
    return f"{where.student} and {where.teacher}" if isinstance(where, Pair) else str(where)
