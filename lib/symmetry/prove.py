"""The proof that mapping a network's groups changes no output, on a twin where a wrong grouping would show."""

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..checks import unwrapped
from .groups import Group, Groups, Maps, Member, SymmetryError, act, entries, every, fold, folded_by, inverse
from .tracer import trace

ROWS = 16  # of a random (N, F) batch: with two, a unit could well be off for both
WEAK = 1e-6  # members whose first-order change is smaller are forgotten in earnest
MUTANTS = 256  # networks that are run in earnest at most, to see which members can be forgotten unseen
SHOWN = 6  # members in a line
NAMED = 8  # culprits that are looked for and named
CALM = (1.0, 3.0, 9.0)  # how far from chaos a twin is kept, tried in turn
ENTRIES = 2**20  # of a tensor that the first-order change of a member is summed over; of larger ones a slice


class Proof(float):
    """The largest change of an output under the groups' maps, as a share of the largest output.

    Attributes:
        unseen: members that were not seen to matter, as "group 'a': k.bias:0"; a wrong grouping that forgets one of
            them would be proved, too. A key's bias before a softmax is one.
        sensitivity: the smallest change, as a share of the outputs' size, by which forgetting any other member would
            have shown (to first order); nan where it was not asked for.
        matrices: how many groups were mapped by a random matrix, too; none where no group allows more than
            permutations.
    """

    unseen: tuple[str, ...]
    sensitivity: float
    matrices: int

    def __new__(
        cls, change: float, unseen: Iterable[str] = (), sensitivity: float = math.nan, matrices: int = 0
    ) -> "Proof":
        proof = super().__new__(cls, change)
        proof.unseen, proof.sensitivity, proof.matrices = tuple(unseen), sensitivity, matrices
        return proof

    def __str__(self) -> str:
        which = f", or mapping {self.matrices} group{'s' * (self.matrices > 1)} by matrices," if self.matrices else ""
        parts = [f"permuting{which} changes the outputs by {self:.0e} of their size"]
        if not math.isnan(self.sensitivity):
            parts.append(f"any member forgotten, by {self.sensitivity:.0e} or more")
        if self.unseen:
            more = f" and {len(self.unseen) - SHOWN} more" if len(self.unseen) > SHOWN else ""
            parts.append(f"not seen by the outputs: {', '.join(self.unseen[:SHOWN])}{more}")
        return "; ".join(parts)


@torch.no_grad()
def prove(
    model: nn.Module,
    groups: Mapping[str, Group],
    example: Tensor | tuple[Tensor, ...],
    perms: Mapping[str, Tensor] | None = None,
    *,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-9,
) -> Proof:
    """Shows that the groups' maps leave the outputs unchanged, in float64 on the CPU.

    Args:
        example: a batch of inputs (N, …), or a tuple of what the network takes by position; it is not changed.
        perms: the maps to prove on the model's own weights and the example, its gains folded first where a map is a
            matrix that asks for it; None proves the groups: a permutation that moves every unit, on a copy with random
            weights and inputs at a scale where every member of a group matters, since a fresh BatchNorm (all ones) or
            a dead unit would hide one that is forgotten; then, gains folded, a random matrix of the kind that a group
            allows. Integer inputs stay as they are, and so do buffers that are no statistics and hold different
            entries.
        generator: draws maps, weights and inputs on the CPU; None: one of seed 0.
        tolerance: largest accepted change of an output, as a share of the largest output.

    Returns:
        The largest change found, as that share, and which members the outputs do not see.

    Raises:
        SymmetryError: naming the groups that change the outputs; or the network puts out no tensor or numbers that
            are not finite, is random in evaluation mode, or permutes one tensor differently under two names.
    """
    generator = generator or torch.Generator().manual_seed(0)
    inputs = tuple(
        x.cpu().double() if x.is_floating_point() else x.cpu()
        for x in (example if isinstance(example, (tuple, list)) else (example,))
    )
    twin = _Twin(_copy(model, perms is not None), inputs, tolerance)
    if perms is None:
        chosen = {name: _cycle(group.size, generator) for name, group in every(groups).items()}
        for calm in CALM:
            if twin.enliven(generator, calm) <= tolerance:
                break
    else:
        chosen = dict(perms)
        twin.settle(twin.outputs(), generator)
        if folded_by(groups, [chosen]):
            twin.network.load_state_dict(fold(twin.network.state_dict(), groups))
    twin.load(groups, chosen)
    grads = None
    if perms is None:
        outputs, grads = twin.differentiate(
            {m.tensor for group in every(groups).values() for m in group.members}, generator
        )
    else:
        outputs = twin.outputs()
    largest = twin.change(outputs)
    if not largest <= tolerance:
        if any(map(torch.is_floating_point, chosen.values())):
            raise SymmetryError(f"the maps change the outputs by {largest:.1e} of their size")
        twin.unload(groups, chosen)
        if largest <= 100 * (noise := twin.noise(generator)):
            kind = type(model).__name__
            raise SymmetryError(f"{kind} amplifies rounding to {noise:.1e} of its outputs, so nothing can be proved")
        named = ", ".join(_culprits(twin, groups, chosen)) or "the groups together"
        raise SymmetryError(f"permuting {named} changes the outputs by {largest:.1e} of their size")
    if perms is not None:
        return Proof(largest)
    if unreached := [name for name in getattr(groups, "unreached", ()) if twin.tensors[name].is_floating_point()]:
        for name in unreached:
            _fill(twin.tensors[name], 1.0, generator)
        if not twin.change(twin.outputs()) <= tolerance:
            few = ", ".join(unreached[:3])
            raise SymmetryError(
                f"no group moves {few}, which the traced graph does not read, but the outputs depend on them"
            )
    seen = _sensitivities(twin, every(groups), chosen, grads, generator)
    unseen = [f"group '{name}': {m.tensor}:{m.axis}" for (name, m), by in seen.items() if not by > tolerance]
    sensitivity = min((by for by in seen.values() if by > tolerance), default=math.nan)
    matrices = {name: draw(group, generator) for name, group in every(groups).items() if group.kind != "permutation"}
    if matrices:
        largest = max(largest, _turned(twin, groups, chosen, matrices))
    return Proof(largest, dict.fromkeys(unseen), sensitivity, len(matrices))


def proved(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Groups:
    """The groups of a network, traced and proved: `trace`, then `prove`; the proof is their `proof`.

    Warns where the outputs do not see some members: the proof says nothing of those.

    Raises:
        UnsupportedError, SymmetryError: as `trace` and `prove`.
    """
    groups = trace(model, example)
    proof = prove(unwrapped(model), groups, example)
    if proof.unseen:
        warnings.warn(f"{type(model).__name__}: {proof}", stacklevel=2)
    return dataclasses.replace(groups, proof=proof)


def _turned(twin: "_Twin", groups: Mapping[str, Group], perms: Maps, matrices: Maps) -> float:
    """How far the outputs move where gains are folded and some groups are mapped by matrices, the others permuted; the
    twin, which is permuted, stays mapped.

    Raises:
        SymmetryError: naming the groups by whose matrices they move.
    """
    twin.unload(groups, perms)
    twin.network.load_state_dict(fold(twin.network.state_dict(), groups))
    if not (folded := twin.change(twin.outputs())) <= twin.tolerance:
        raise SymmetryError(f"folding the gains of norms changes the outputs by {folded:.1e} of their size")

    def change(some: Maps) -> float:
        twin.load(groups, some)
        moved = twin.change(twin.outputs())
        if not moved <= twin.tolerance:
            twin.unload(groups, some)
        return moved

    largest = change(dict(perms) | dict(matrices))
    if largest <= twin.tolerance:
        return largest
    moved = [name for name, each in matrices.items() if not change({name: each}) <= twin.tolerance]
    named = ", ".join(moved[:NAMED]) or "the groups together"
    raise SymmetryError(f"mapping {named} by matrices changes the outputs by {largest:.1e} of their size")


def nearest(matrix: Tensor, kind: str) -> Tensor:
    """The orthogonal M float64 (n, n) that maximises the trace of Mᵀ · matrix (Schönemann 1966); "centred": of those
    with M·1 = 1."""
    matrix = matrix.double()
    if kind == "centred":
        matrix = matrix - matrix.mean(dim=0)
        scale = float(matrix.abs().max()) or 1.0
        matrix = (matrix - matrix.mean(dim=1, keepdim=True)) / scale + 1
    left, _, right = torch.linalg.svd(matrix)
    return left @ right


def draw(group: Group, generator: torch.Generator) -> Tensor:
    """A random map of the kind that a group allows: a permutation (size,) that moves every unit, or a matrix (size,
    size) float64."""
    if group.kind == "permutation":
        return _cycle(group.size, generator)
    numbers = torch.randn(group.size, group.size, generator=generator).double()
    if group.kind != "invertible":
        return nearest(numbers, group.kind)
    left, scales, right = torch.linalg.svd(numbers)
    return left * _uniform(scales.shape, 0.5, 2.0, generator).double() @ right  # of a bounded condition


class _Twin:
    """A copy of a network in float64, the inputs it is run on, and what it puts out before anything is permuted."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], tolerance: float) -> None:
        self.network, self.given, self.inputs, self.tolerance = network, inputs, inputs, tolerance
        self.tensors = {k: t for k, t in network.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        first: dict[int, str] = {}
        self.tied = {name: first.setdefault(id(tensor), name) for name, tensor in self.tensors.items()}

    def outputs(self) -> list[Tensor]:
        # Copies, since a network may write into its input.
        with _Double():
            return [t for t in _tensors(self.network(*(x.clone() for x in self.inputs))) if t.numel()]

    def settle(self, first: list[Tensor], generator: torch.Generator) -> float:
        """Takes what the network puts out as what is expected, if it puts out the same again.

        Returns:
            How far rounding alone moves the outputs, at most: by their difference from `first`, if that is small.
        """
        kind = type(self.network).__name__
        if not first:
            raise SymmetryError(f"{kind} puts out no tensor, so nothing can be proved")
        self.expect()
        if (noise := self.change(first)) <= self.tolerance:
            return noise
        if self.change(self.outputs()) <= self.tolerance:
            return self.noise(generator)  # `first` came from a network that was calibrated on the way
        raise SymmetryError(
            f"{kind} is random in evaluation mode: it puts out different numbers for the same input, so nothing can be "
            "proved; the usual cause is F.dropout without training=self.training"
        )

    def expect(self) -> None:
        self.expected = [out.double() for out in self.outputs()]
        if not all(bool(out.isfinite().all()) for out in self.expected):
            raise SymmetryError(
                f"{type(self.network).__name__} overflows: it puts out numbers that are not finite, so nothing can be "
                "proved"
            )
        self.scale = max((float(out.abs().max()) for out in self.expected), default=0.0) or 1.0

    def noise(self, generator: torch.Generator) -> float:
        """How far the outputs move when each parameter moves by rounding; they stay moved."""
        for parameter in self.network.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + 1e-15 * torch.randn(parameter.shape[-1:], generator=generator).double())
        before = self.expected
        self.expect()
        return self.change(before)

    def change(self, outputs: list[Tensor]) -> float:
        """How far outputs are from the expected ones, as a share of the largest; inf where they are no numbers."""
        if [out.shape for out in outputs] != [out.shape for out in self.expected]:
            return math.inf
        pairs = zip(outputs, self.expected, strict=True)
        changes = [float((out.detach().double() - expected).abs().max()) / self.scale for out, expected in pairs]
        return math.inf if any(math.isnan(c) for c in changes) else max(changes)

    def load(self, groups: Mapping[str, Group], perms: Mapping[str, Tensor]) -> None:
        moved = act(self.network.state_dict(), groups, perms)
        for name, first in self.tied.items():
            if name != first and not torch.equal(moved[name], moved[first]):
                raise SymmetryError(f"'{first}' and '{name}' are one tensor, and the groups permute them differently")
        self.network.load_state_dict(moved)

    def unload(self, groups: Mapping[str, Group], perms: Mapping[str, Tensor]) -> None:
        """Undoes `load`, last move first, exactly: no second copy of the weights is kept."""
        back = {name: dataclasses.replace(group, members=group.members[::-1]) for name, group in every(groups).items()}
        self.load(back, dict(reversed(inverse(perms).items())))

    def enliven(self, generator: torch.Generator, calm: float) -> float:
        """Random weights and inputs under which every unit varies and matters; how far rounding moves the outputs."""
        _randomise(self.network, generator)
        given, trials = self.given, []
        if all(x.is_floating_point() and x.dim() == 2 for x in given) and len({len(x) for x in given}) == 1:
            trials.append([(max(ROWS, len(x)), x.shape[1]) for x in given])
        trials.append([tuple(x.shape) for x in given])
        for shapes in dict.fromkeys(map(tuple, trials)):
            self.inputs = tuple(
                torch.randn(shape, generator=generator).double() if x.is_floating_point() else x
                for x, shape in zip(given, shapes, strict=True)
            )
            try:
                with _Calibration(self.network, generator, calm):
                    first = self.outputs()
            except Exception:  # a network may take just so many rows, or just some numbers
                continue
            if all(bool(out.isfinite().all()) for out in first):
                return self.settle(first, generator)
        self.inputs = given
        with _Calibration(self.network, generator, calm):
            first = self.outputs()
        return self.settle(first, generator)

    def differentiate(
        self, names: Iterable[str], generator: torch.Generator
    ) -> tuple[list[Tensor], dict[str, Tensor] | None]:
        """The outputs, and the gradients of a random weighing of them all, relative to their scale, by the first
        name of a tensor; None where backward does not exist."""
        wanted = {self.tied[name]: self.tensors[self.tied[name]] for name in names}
        wanted = {name: tensor for name, tensor in wanted.items() if tensor.is_floating_point()}
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        try:
            with torch.enable_grad(), _Differentiable(self.network) as norms:
                for tensor in wanted.values():
                    tensor.requires_grad_(id(tensor) not in norms.statistics)
                outputs = self.outputs()
                if not self.change(outputs) <= self.tolerance:
                    return [out.detach() for out in outputs], None
                weighed = [out for out in outputs if out.requires_grad]
                weights = [torch.randn(out.shape, generator=generator).double() for out in weighed]
                total = sum((out * weight).sum() for out, weight in zip(weighed, weights, strict=True))
                entries = sum(out.numel() for out in weighed)
                asked = [t for t in wanted.values() if t.requires_grad]
                calls = [t for call in norms.calls for t in call[2:]]
                found = torch.autograd.grad(total, [*asked, *calls], allow_unused=True)
        except Exception:
            return self.outputs(), None
        finally:
            for tensor in wanted.values():
                tensor.requires_grad_(False)
        by_id = dict(zip(map(id, asked), found, strict=False))
        by_id |= norms.gradients(found[len(asked) :])
        share = 1 / (self.scale * math.sqrt(entries))
        grads = {name: by_id.get(id(tensor)) for name, tensor in wanted.items()}
        grads = {name: grad.mul_(share) for name, grad in grads.items() if grad is not None}
        return [out.detach() for out in outputs], grads


def _copy(model: nn.Module, values: bool) -> nn.Module:
    """A float64 copy on the CPU, in evaluation mode; without `values`, floating parameters may hold anything."""
    memo: dict[int, object] = {}  # a tensor is copied once, not once to copy it and once to convert it
    for tensor in (*model.parameters(), *model.buffers()):
        kind, source = type(tensor), tensor.detach()
        if kind not in (nn.Parameter, Tensor) or not source.is_floating_point():
            continue
        twin = torch.empty_like(source, dtype=torch.float64, device="cpu")
        if values or kind is Tensor:
            twin.copy_(source)
        memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if kind is nn.Parameter else twin
    return copy.deepcopy(model, memo).cpu().double().eval()


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = list(output.values()) if isinstance(output, Mapping) else output
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, (list, tuple)) else []


def _cycle(size: int, generator: torch.Generator) -> Tensor:
    """A random permutation (size,) that moves every unit."""
    order = torch.randperm(size, generator=generator)
    perm = torch.empty_like(order)
    perm[order] = order.roll(1)
    return perm


class _Double(TorchFunctionMode):
    """While a network runs: what it makes or casts to another precision is float64, too."""

    SMALLER = (torch.float32, torch.float16, torch.bfloat16)
    CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
    MAKERS = (torch.zeros, torch.ones, torch.full, torch.empty, torch.linspace, torch.rand, torch.randn, torch.eye)

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        kwargs = dict(kwargs or {})
        if func in self.CASTS:
            return args[0].double()
        args = tuple(torch.float64 if arg in self.SMALLER else arg for arg in args) if func is Tensor.to else args
        if func in self.MAKERS and kwargs.get("dtype") is None:
            made = func(*args, **kwargs)
            return made.double() if made.is_floating_point() else made
        if kwargs.get("dtype") in self.SMALLER:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


# A twin that is alive ---------------------------------------------------------------------------------------------


def _uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _signed(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return _uniform(shape, low, high, generator) * (torch.rand(shape, generator=generator) - 0.5).sign()


def _fill(tensor: Tensor, deviation: float, generator: torch.Generator) -> None:
    """Puts in normal numbers; in a large tensor the same ones over again, which a prime period keeps from making two
    rows or columns alike."""
    period = 1_048_583
    if tensor.numel() <= 4 * period or not tensor.is_contiguous():
        tensor.copy_(deviation * torch.randn(tensor.shape, generator=generator))
        return
    few = deviation * torch.randn(period, generator=generator)
    for piece in tensor.view(-1).split(period):
        piece.copy_(few[: len(piece)])


def _randomise(network: nn.Module, generator: torch.Generator) -> None:
    """Every parameter and statistic; and no other buffer (tables, masks) but those whose entries are all alike.
    Not what the groups name: one that they forget must show."""
    for parameter in network.parameters():
        shape = parameter.shape
        if not parameter.is_floating_point():
            continue
        if parameter.numel() == max(shape, default=1):  # along one axis: gains, biases, layer scales
            parameter.copy_(_signed(shape, 0.5, 1.5, generator))
        else:
            _fill(parameter, shape[1:].numel() ** -0.5, generator)
    for module in network.modules():
        own = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_floating_point()}
        for name, buffer in own.items():
            if name == "running_var":
                buffer.copy_(_uniform(buffer.shape, 0.5, 2.0, generator))
            elif "running_var" in own and buffer.shape == own["running_var"].shape:  # a frozen norm's gain and bias
                buffer.copy_(_signed(buffer.shape, 0.5, 1.5, generator))
            elif buffer.numel() > 1 and buffer.isfinite().all() and (buffer == buffer.flatten()[0]).all():
                buffer.mul_(_uniform(buffer.shape, 0.5, 1.5, generator))


_LAYERS = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
}  # fmt: skip
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


class _Calibration(TorchFunctionMode):
    """While a network runs: sets each layer's scale, bias and statistics in place when it is first met, and goes on
    with what it then puts out. It looks at calls, not at the traced graph, which the proof does not trust."""

    def __init__(self, network: nn.Module, generator: torch.Generator, calm: float) -> None:
        super().__init__()
        self.generator, self.calm = generator, calm
        self.fresh = {id(t) for t in (*network.parameters(), *network.buffers())}

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if func in _LAYERS:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            return self.layer(func, given, args[3:])
        if func is F.batch_norm:
            self.norm(**dict(zip(_NORM, args, strict=False)) | kwargs)
        return func(*args, **kwargs)

    def take(self, tensor: Tensor | None) -> bool:
        """Whether it is a parameter or buffer of the network that was not calibrated before."""
        if id(tensor) not in self.fresh:
            return False
        self.fresh.discard(id(tensor))
        return True

    def means(self, size: int) -> Tensor:
        """Where units' means lie (size,), in their standard deviations. Not at zero, where deep networks are chaotic:
        ones of ReLU amplify rounding by 1.2 a layer."""
        return _signed((size,), 0.5, 2.0, self.generator) * self.calm**0.5

    def layer(self, func: Callable, given: dict, rest: tuple) -> Tensor:
        given = {"bias": None} | given
        weight, bias = given.pop("weight"), given.pop("bias")
        source = given.pop("input")
        own, offset = self.take(weight), self.take(bias)
        if not (own or offset):
            return func(source, weight, bias, *rest, **given)
        out = func(source, weight, None, *rest, **given)
        unit = out.dim() - weight.dim() + 1
        others = [axis for axis in range(out.dim()) if axis != unit]
        # One scalar a layer: with few inputs a unit's own deviation may be next to nothing. Where all are, or nothing
        # sets the means (no bias), it is the size that must neither grow nor fade.
        spread = size = float(torch.linalg.vector_norm(out)) / math.sqrt(out.numel())
        if offset:
            variance, mean = torch.var_mean(out, others, correction=0) if others else (out * 0, out.clone())
            deviation = float(variance.mean().sqrt())
            spread = deviation if deviation > 0.03 * size else size
        if not 0 < spread < math.inf:
            return out if bias is None else out + bias.view(-1, *[1] * (weight.dim() - 2))
        if own:
            scale = 1 / (spread * self.calm)  # what is curved is straight for small numbers
            weight.mul_(scale)
            out.mul_(scale)
            spread *= scale
            mean = mean * scale if offset else None
        if offset:
            bias.copy_(self.means(len(bias)).double() * spread - mean)
        return out if bias is None else out.add_(bias.view(-1, *[1] * (weight.dim() - 2)))

    def norm(self, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        if training or running_mean is None or running_var is None:
            return
        variance, mean = torch.var_mean(input, [axis for axis in range(input.dim()) if axis != 1], correction=0)
        # The variance of a unit over few entries may be next to nothing: drawn to that of the others.
        count = input.numel() // len(mean)
        variance = (count * variance + 8 * variance.mean()) / (count + 8)
        if not 0 < float(variance.min()) <= float(variance.max()) < math.inf:
            variance = (mean**2).mean().expand_as(mean) if float(mean.abs().max()) else torch.ones_like(mean)
        size = len(mean)
        if self.take(running_mean):
            running_mean.copy_(mean + 0.3 * torch.randn(size, generator=self.generator) * variance.sqrt())
        if self.take(running_var):
            running_var.copy_(variance * _uniform((size,), 0.5, 2.0, self.generator))
        if self.take(weight):
            weight.copy_(_signed((size,), 0.5, 1.5, self.generator))
        if self.take(bias):
            bias.copy_(self.means(size) * weight.abs() if weight is not None else self.means(size))


# Which members the outputs see ------------------------------------------------------------------------------------


class _Differentiable(TorchFunctionMode):
    """While a network runs: notes each BatchNorm's gain and bias, whose gradients tell those of its statistics, which
    torch does not differentiate."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.statistics = {
            id(t)
            for name, t in network.named_buffers()
            if name.endswith(("running_mean", "running_var")) and t is not None
        }
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.eps: list[float] = []

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if func is F.batch_norm:
            given = dict(zip(_NORM, args, strict=False)) | kwargs
            mean, variance = given["running_mean"], given["running_var"]
            if id(mean) in self.statistics and id(variance) in self.statistics and not given.get("training"):
                gain, bias = given.get("weight"), given.get("bias")
                # Nodes of their own for this call, so that a gain used elsewhere too does not count twice.
                gain = torch.ones_like(mean).requires_grad_() if gain is None else gain * 1.0
                bias = torch.zeros_like(mean).requires_grad_() if bias is None else bias * 1.0
                gain, bias = (t if t.requires_grad else t.requires_grad_() for t in (gain, bias))
                self.calls.append((mean, variance, gain, bias))
                self.eps.append(given.get("eps", 1e-5))
                return func(**given | {"weight": gain, "bias": bias})
        return func(*args, **kwargs)

    def gradients(self, found: Sequence[Tensor | None]) -> dict[int, Tensor]:
        """{id of a statistic: its gradient}, from those of each call's gain and bias."""
        grads: dict[int, Tensor] = {}
        for (mean, variance, gain, _), eps, by_gain, by_bias in zip(
            self.calls, self.eps, found[::2], found[1::2], strict=True
        ):
            if by_gain is None or by_bias is None:
                continue
            scale = gain.detach() / (variance + eps)
            for tensor, grad in (
                (mean, -by_bias * scale * (variance + eps).sqrt()),
                (variance, -0.5 * by_gain * scale),
            ):
                grads[id(tensor)] = grads.get(id(tensor), 0) + grad
        return grads


def _culprits(twin: _Twin, groups: Mapping[str, Group], perms: Mapping[str, Tensor]) -> list[str]:
    """The first groups that change the outputs on their own, by bisection: most are right."""
    found: list[str] = []

    def search(names: list[str]) -> None:
        if not names or len(found) == NAMED:
            return
        some = {name: perms[name] for name in names}
        twin.load(groups, some)
        changed = not twin.change(twin.outputs()) <= twin.tolerance
        twin.unload(groups, some)
        if changed and len(names) == 1:
            found.append(names[0])
        elif changed:
            search(names[: len(names) // 2])
            search(names[len(names) // 2 :])

    search(list(perms))
    return found + ["…"] * (len(found) == NAMED < len(perms))


def _sensitivities(
    twin: _Twin,
    groups: Mapping[str, Group],
    perms: Mapping[str, Tensor],
    grads: Mapping[str, Tensor] | None,
    generator: torch.Generator,
) -> dict[tuple[str, Member], float]:
    """{(group, member): by how much forgetting it changes the outputs}, of a twin that is permuted."""
    back = inverse(perms)
    seen: dict[tuple[str, Member], float] = {}
    rounds: list[list[tuple[str, Member]]] = []
    for name, group in groups.items():
        weak = 0
        for member in group.members:
            first = twin.tied[member.tensor]
            seen[name, member] = 0.0
            if grads and first in grads:
                seen[name, member] = _first_order(grads[first], twin.tensors[first], member, back[name], generator)
            if not seen[name, member] >= WEAK:
                # One a group in a round: with all of a group's members forgotten, nothing is permuted or seen.
                rounds += [[]] if weak == len(rounds) else []
                rounds[weak].append((name, member))
                weak += 1
    mutants = iter(range(MUTANTS))
    for some in rounds:
        for key, change in _forgotten(twin, groups, back, some, mutants):
            seen[key] = change
    return seen


def _first_order(grad: Tensor, tensor: Tensor, member: Member, back: Tensor, generator: torch.Generator) -> float:
    parts = []
    axis, size = member.axis, len(back)
    for whole in (grad, tensor.detach()):
        rows = whole[slice(*member.rows)] if member.rows else whole
        places = entries(member, torch.arange(size))
        own = rows.index_select(axis, places) if member.starts else rows.narrow(axis, member.offset, len(places))
        parts.append(own.unflatten(axis, (size, member.block)))
    share = 1.0
    if parts[0].numel() > ENTRIES:
        other = max((a for a in range(parts[0].dim()) if a != axis), key=lambda a: parts[0].shape[a])
        length = parts[0].shape[other]
        kept = max(1, length * ENTRIES // parts[0].numel())
        start = int(torch.randint(length - kept + 1, (), generator=generator))
        parts = [part.narrow(other, start, kept) for part in parts]
        share = kept / length
    by, values = parts
    return abs(float((by * (values.index_select(axis, back) - values)).sum())) / math.sqrt(share)


def _forgotten(
    twin: _Twin,
    groups: Mapping[str, Group],
    back: Mapping[str, Tensor],
    some: list[tuple[str, Member]],
    mutants: Iterator[int],
) -> Iterator[tuple[tuple[str, Member], float]]:
    """((group, member), change) for those that are seen when they are forgotten; at most one member a group.
    Many are forgotten at once, and one by one only where that is seen."""
    if next(mutants, None) is None:
        return
    undo = {}
    for name, member in some:
        alike = [m for m in groups[name].members if twin.tied[m.tensor] == twin.tied[member.tensor]]
        same = [m for m in alike if _place(m) == _place(member)]  # under the tensor's other names, too
        undo[name] = Group(groups[name].size, tuple(same))
    moves = {name: back[name] for name in undo}
    twin.load(undo, moves)
    change = twin.change(twin.outputs())
    twin.unload(undo, moves)
    if change <= twin.tolerance:
        return
    if len(some) == 1:
        yield some[0], change
        return
    yield from _forgotten(twin, groups, back, some[: len(some) // 2], mutants)
    yield from _forgotten(twin, groups, back, some[len(some) // 2 :], mutants)


def _place(member: Member) -> tuple:
    return member.axis, member.block, member.offset, member.rows, member.starts
