"""Low-rank factorisation of convolutions and linear layers, to a share of the multiply-accumulates.

A weight as a matrix W of rank r is a product of two thin ones, W ≈ B·A, and so a layer becomes two: A gives r channels,
B makes the outputs of them (Denton et al. 2014, arXiv:1404.0736; whole filters first and a 1×1 convolution behind,
as Zhang et al. 2016, arXiv:1505.06798).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from compress.edits.factorized import Factorized, matrix_shape, why_whole
from compress.edits.macs import count_macs, count_positions
from compress.errors import ConfigError, ModelError
from compress.pruning.costs import Floats
from compress.pruning.patterns import check_patterns, listed, matches
from compress.pruning.plan import ALIGNMENTS, Limit
from compress.pruning.ranks import Options, RankSearch, rank_options


@dataclass(frozen=True)
class LowRank:
    """A factorised copy and what was done.

    `edit` makes the same shapes of the network that was factorised. `macs` are the copy's multiply-accumulates for one
    image, `dense_macs` those of the network it is compared with, `align` the number that all ranks are multiples of,
    `notes` remarks for the report.
    """

    module: nn.Module
    edit: Factorized
    macs: int
    dense_macs: int
    align: int
    notes: tuple[str, ...]


def factorize(
    module: nn.Module,
    example: Tensor,
    *,
    keep_macs: float,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    align: int | None = None,
    reference: nn.Module | None = None,
) -> LowRank:
    """Put two thin layers in the place of layers of a copy of `module` until a share of its MACs is left.

    The result has at most keep_macs times the dense MACs and at least 98 % of that. Ranks are chosen together, so that
    the product over the layers of the squared singular values kept is largest. They are multiples of `align`; left out,
    of 16, or of 8, 4, 2 or 1 where that cannot meet the target. None is below a tenth of the full rank.

    `example` is (n, C, H, W); only its shape matters. `include` and `exclude` are shell patterns over layer names.
    `reference` is the dense network where `module` was made smaller before.

    Nothing is trained. Raises ConfigError for a bad argument, a pattern without a match, or a target that cannot be
    met (naming the nearest that can); ModelError for a network that cannot be factorised.
    """
    _check_arguments(keep_macs, align)
    dense_macs = _macs(module if reference is None else reference, example)
    limit = Limit("keep_macs", keep_macs, dense_macs)
    spectra, reasons = _spectra(module, example, include, exclude)
    ranks, used = _plan(spectra, _macs(module, example), limit, align)
    edit = Factorized(ranks={path: rank for path, rank in ranks.items() if rank})
    result = _taken_apart(module, edit, spectra)
    try:
        macs = _macs(result, example)
    except (AttributeError, ModelError):
        macs = 0
    if not limit.low <= macs <= limit.high:
        raise ModelError(
            f"{type(module).__name__} does not only call its layers, it reads their weights, too, and so they cannot "
            "be taken apart. Exclude such layers."
        )
    for spectrum in spectra:
        if len(spectrum.options(used).ranks) == 1:
            reasons[spectrum.path] = f"no multiple of {used} as rank saves enough"
    notes = _remarks(edit, spectra, used, limit, automatic=align is None)
    left = [f"Not factorised: {_grouped(reasons)}."] if any(reasons.values()) else []
    return LowRank(result, edit, macs, dense_macs, used, (*notes, *left))


class Spectrum:
    """The singular value decomposition of a layer's weight W, (outputs, inputs), in double precision.

    It is taken from the eigenvectors of W·Wᵀ or Wᵀ·W, whichever is smaller: many times faster, and singular values
    down to 1e-8 of the largest, beyond float32's own digits, come out right. Raises ModelError for weights that are not
    finite.
    """

    def __init__(self, path: str, layer: nn.Module, positions: int) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        self.path, self.positions, self.shape = path, positions, matrix_shape(layer)
        self.weight = layer.weight.detach()
        if not torch.isfinite(self.weight).all():
            raise ModelError(
                f"{path}.weight holds values that are not finite, so it cannot be factorised. Train the network again "
                "with a smaller learning rate."
            )

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor]:
        """The squared singular values, largest first, and the singular vectors of the shorter side as columns."""
        matrix = self.weight.reshape(self.shape).double()
        wide = self.shape[0] <= self.shape[1]
        values, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
        return values.flip(0).clamp_min(0), vectors.flip(1)

    @property
    def energy(self) -> Floats:
        """The squared singular values, largest first, (full rank,)."""
        found: Floats = self._decomposed[0].cpu().numpy()
        return found

    def options(self, align: int) -> Options:
        """The ranks that the layer may have."""
        return rank_options(*self.shape, self.positions, self.energy, align)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (rank, inputs) and B (outputs, rank), whose product B·A is the nearest to W of all of this rank.

        (Eckart & Young 1936, doi:10.1007/BF02288367.) The square roots of the singular values go into both, so that
        they train at the same pace, and rounding finds the same range in both.
        """
        matrix = self.weight.reshape(self.shape).double()
        vectors = self._decomposed[1][:, :rank]
        root = torch.from_numpy(self.energy[:rank]).to(matrix).pow(0.25)
        inverse = torch.where(root > 0, 1 / root, 0.0)
        if self.shape[0] <= self.shape[1]:
            return inverse[:, None] * (vectors.T @ matrix), vectors * root
        return root[:, None] * vectors.T, (matrix @ vectors) * inverse


def _check_arguments(keep_macs: float, align: int | None) -> None:
    if not 0 < keep_macs < 1:
        raise ConfigError(f"keep_macs is a fraction of the MACs, more than 0 and less than 1, not {keep_macs:g}.")
    if align is not None and align < 1:
        raise ConfigError(f"align: ranks become multiples of it, so it is 1 or more, not {align}.")


def _macs(module: nn.Module, example: Tensor) -> int:
    return count_macs(module, _on_device(module, example))


def _on_device(module: nn.Module, example: Tensor) -> Tensor:
    return example[:1].to(next(module.parameters(), example).device)


def _spectra(
    module: nn.Module, example: Tensor, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list["Spectrum"], dict[str, str]]:
    """The layers that may be factorised; and for each convolution and linear layer why it cannot be, or nothing."""
    positions = count_positions(module, _on_device(module, example))
    layers = [(path, each) for path, each in module.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    reasons = {path: why_whole(layer) if path else "it is the whole network" for path, layer in layers}
    for path in reasons.keys() - positions.keys():
        reasons[path] = "the forward pass does not call it"
    check_patterns(reasons, include, exclude, "factorised")
    chosen = [path for path, reason in reasons.items() if not reason and not matches(path, exclude)]
    chosen = [path for path in chosen if not include or matches(path, include)]
    if not chosen:
        raise ConfigError(
            "include, exclude: nothing is left to factorise. What cannot be: "
            f"{_grouped(reasons, most=3) or 'nothing, all is excluded'}."
        )
    return [Spectrum(path, module.get_submodule(path), positions[path]) for path in chosen], reasons


def _plan(spectra: Sequence[Spectrum], present: int, limit: Limit, align: int | None) -> tuple[dict[str, int], int]:
    """The rank of each layer, 0 for as it is, and the alignment, the first of `ALIGNMENTS` unless one is given."""
    if present < limit.low:
        raise ConfigError(
            f"{limit.key}: the network has only {limit.at(present).shown} of the dense network's already, less than "
            f"the {limit.value:g} asked for. Ask for less than it has."
        )
    searches = []
    for candidate in (align,) if align else ALIGNMENTS:
        options = [spectrum.options(candidate) for spectrum in spectra]
        search = RankSearch(options, present - sum(float(each.macs[0]) for each in options))
        ranks = search.best(limit)
        if ranks is not None:
            return {each.path: rank for each, rank in zip(spectra, ranks, strict=True)}, candidate
        searches.append(search)
    costs = sorted(cost for search in searches for cost in search.beside(limit))
    beside = [[c for c in costs if c < limit.low][-1:], [c for c in costs if c > limit.high][:1]]
    nearest = " or ".join(limit.at(cost).shown for side in beside for cost in side)
    multiples = f" with ranks in multiples of {align}" if align else ""
    advice = f"; the nearest that can: {nearest}" if nearest else ": no rank saves enough"
    smaller = " Or choose a smaller align." if align and align > 1 else ""
    raise ConfigError(f"{limit.key}: {limit.value:g} cannot be met{multiples}{advice}.{smaller}")


@torch.no_grad()
def _taken_apart(module: nn.Module, edit: Factorized, spectra: Sequence[Spectrum]) -> nn.Module:
    """A copy with the layers of the edit in two parts, their weights the factors of the layers' own."""
    with torch.random.fork_rng(devices=[]):
        result = edit(copy.deepcopy(module))
    for spectrum in spectra:
        if spectrum.path not in edit.ranks:
            continue
        first, second = (result.get_submodule(f"{spectrum.path}.{part}") for part in (0, 1))
        for layer, factor in zip((first, second), spectrum.factors(edit.ranks[spectrum.path]), strict=True):
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            layer.weight.copy_(factor.reshape(layer.weight.shape))
        before = module.get_submodule(spectrum.path).bias
        if isinstance(before, nn.Parameter):
            bias = second.get_parameter("bias")
            bias.copy_(before)
            bias.requires_grad_(before.requires_grad)
    return result


def _remarks(edit: Factorized, spectra: Sequence[Spectrum], align: int, limit: Limit, *, automatic: bool) -> list[str]:
    aligned = f"Ranks are multiples of {align}"
    if automatic and align != ALIGNMENTS[0]:
        aligned += f": {limit.key} {limit.value:g} cannot be met in multiples of {ALIGNMENTS[0]}"
    chosen = [each for each in spectra if each.path in edit.ranks]
    ranks = ", ".join(f"{each.path} {edit.ranks[each.path]} of {min(each.shape)}" for each in chosen)
    return [f"{aligned}.", f"Ranks of the layers that are two now: {ranks}."] if ranks else [f"{aligned}."]


def _grouped(reasons: Mapping[str, str], most: int = 1000) -> str:
    """Each reason with the layers that it holds for."""
    found: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        if reason:
            found.setdefault(reason, []).append(path)
    return "; ".join(f"{listed(paths, most)} ({reason})" for reason, paths in found.items())
