"""Where in a net a loss looks: the layers that it names are found on an example, and watched while the net runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.edits.graph import evaluating
from compress.errors import ConfigError
from compress.losses.base import Outputs
from compress.losses.layers import EMBEDDING


@dataclass(frozen=True)
class Place:
    """What comes out of a layer, or what goes into it."""

    layer: str
    input: bool = False


@dataclass(frozen=True)
class _Call:
    """A layer as it was called: the shapes of what went in and came out, () where that was no single tensor."""

    layer: str
    kind: type[nn.Module]
    taken: tuple[int, ...]
    given: tuple[int, ...]

    @property
    def reduces(self) -> bool:
        """Whether a smaller map comes out than went in."""
        return len(self.taken) == len(self.given) == 4 and self.given[2] * self.given[3] < self.taken[2] * self.taken[3]


def find(module: nn.Module, where: int | str, example: Tensor) -> list[Place]:
    """The places in a net that a stage, `embedding` or a pattern means, in the order in which they are computed.

    Raises ConfigError where there is none, with what there is.
    """
    calls = _calls(module, example)
    if isinstance(where, int):
        found = _stages(calls, tuple(example.shape))
        if not found:
            raise ConfigError(f"no stage {where}: none of its layers gives a map (channels, height, width)")
        position = where - 1 if where > 0 else where + len(found)
        if where == 0 or not 0 <= position < len(found):
            sizes = ", ".join(str(size) for _, size in found)
            raise ConfigError(
                f"no stage {where}: it has {len(found)} (of {sizes} pixels), counted from 1 or back from -1"
            )
        return [found[position][0]]
    if where == EMBEDDING:
        linear = [call.layer for call in calls if issubclass(call.kind, nn.Linear)]
        if not linear:
            raise ConfigError("it has no linear layer, so nothing is its embedding; name a layer or a stage")
        return [Place(linear[-1], input=True)]
    names = list(dict.fromkeys(call.layer for call in calls if call.given))
    matching = [name for name in names if _matches(where, name)]
    if not matching:
        close = get_close_matches(where, [EMBEDDING, *names], n=3, cutoff=0.4) or names[:3]
        raise ConfigError(f"no layer {where!r}. Near: {', '.join(close)}")
    return [Place(name) for name in matching]


def _matches(pattern: str, name: str) -> bool:
    """Whether a name fits, in which a `*` of the pattern stands for no dot."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _calls(module: nn.Module, example: Tensor) -> list[_Call]:
    """Every layer that is called, in the order in which they finish."""
    calls: list[_Call] = []
    handles = []
    for name, layer in module.named_modules():
        if name:
            handles.append(layer.register_forward_hook(_recorder(calls, name)))
    try:
        with evaluating(module), torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _recorder(calls: list[_Call], name: str) -> Any:
    def record(layer: nn.Module, taken: tuple[Any, ...], given: Any) -> None:
        first = taken[0] if taken else None
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else () for x in (first, given)]
        calls.append(_Call(name, type(layer), *shapes))

    return record


def _stages(calls: Sequence[_Call], image: tuple[int, ...]) -> list[tuple[Place, int]]:
    """The end of each stage, with the side of its map: what goes into the layer that halves it, last what is pooled.

    A container that halves the map once stands for all in it: a residual block halves on two branches, and a stage
    begins before both.
    """
    found = [(Place(call.layer, input=True), call.taken[2]) for call in _halving("", calls, image)]
    maps = [call for call in calls if len(call.given) == 4]
    if not maps:
        return found
    if not found or not _pooled(found[-1][0], calls):
        found.append((Place(maps[-1].layer), maps[-1].given[2]))
    return found


def _pooled(place: Place, calls: Sequence[_Call]) -> bool:
    """Whether the layer behind a place is the pooling at the end: nothing is convolved after it."""
    at = next(i for i, call in enumerate(calls) if call.layer == place.layer)
    after = calls[at:]
    inside = [call for call in calls if call.layer.startswith(f"{place.layer}.")]
    return not any(issubclass(call.kind, nn.Conv2d) and len(call.given) == 4 for call in (*after, *inside))


def _halving(parent: str, calls: Sequence[_Call], image: tuple[int, ...]) -> Iterator[_Call]:
    """The outermost layers under `parent` that make the map smaller once, in order, but for one that takes the image.

    A container that takes the image is looked into: it may know something before it makes its map smaller.
    """
    for child in _children(parent, calls):
        inside = [call for call in calls if call.layer.startswith(f"{child}.")]
        own = next((call for call in calls if call.layer == child), None)
        if own is not None and len(own.taken) == len(own.given) == 4:
            if not own.reduces:
                continue  # what goes on inside, such as squeeze-and-excitation, does not change the resolution
            sizes = {call.given[2] for call in inside if call.reduces and call.given[2] >= own.given[2]}
            if len(sizes) <= 1 and own.taken != image:
                yield own
                continue
        yield from _halving(f"{child}.", inside, image)


def _children(parent: str, calls: Sequence[_Call]) -> list[str]:
    """The names one level below, in the order in which the first layer inside finishes."""
    inside = [call.layer for call in calls if call.layer.startswith(parent)]
    return list(dict.fromkeys(parent + name[len(parent) :].split(".")[0] for name in inside))


@dataclass
class Watch:
    """Sees a net's features as it runs, between `with` and its end.

    The nets overwrite some of them where they stand, as activations and sums with `inplace` do: `overwritten` are the
    places of which a copy is kept, see `watching`. Of a layer that is called several times the last call counts.
    """

    module: nn.Module
    places: Mapping[str, Sequence[Place]]
    overwritten: frozenset[Place] = frozenset()
    seen: dict[Place, Tensor] = field(default_factory=dict)

    @contextmanager
    def open(self) -> Iterator["Watch"]:
        """Hook the layers."""
        try:
            with _hooked(self.module, self.places, self._see):
                yield self
        finally:
            self.seen.clear()

    def outputs(self, logits: Tensor) -> Outputs:
        """The logits of the last run with its features, as float32."""
        features = {name: tuple(self.seen[place].float() for place in group) for name, group in self.places.items()}
        self.seen.clear()
        return Outputs(logits, features)

    def _see(self, place: Place, features: Tensor) -> None:
        self.seen[place] = features.clone() if place in self.overwritten else features


def watching(module: nn.Module, places: Mapping[str, Sequence[Place]], example: Tensor) -> Watch:
    """Watches places in a net, having found out on an example what the net itself overwrites."""
    seen: dict[Place, tuple[Tensor, int]] = {}

    def see(place: Place, features: Tensor) -> None:
        seen[place] = features, features._version

    with _hooked(module, places, see), evaluating(module), torch.no_grad():
        module(example)
    return Watch(module, places, frozenset(place for place, (now, before) in seen.items() if now._version != before))


@contextmanager
def _hooked(
    module: nn.Module, places: Mapping[str, Sequence[Place]], see: Callable[[Place, Tensor], None]
) -> Iterator[None]:
    """Tells `see` of what goes into the places' layers, or comes out of them, for the while."""
    layers = dict(module.named_modules())
    handles: list[RemovableHandle] = []
    try:
        for place in dict.fromkeys(place for group in places.values() for place in group):
            layer = layers[place.layer]
            if place.input:
                handles.append(layer.register_forward_pre_hook(lambda _, taken, at=place: see(at, taken[0])))
            else:
                handles.append(layer.register_forward_hook(lambda _, __, given, at=place: see(at, given)))
        yield
    finally:
        for handle in handles:
            handle.remove()
