"""Whether networks are of one architecture: the same tensors, and modules that do the same."""

import inspect
import re
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from torch import nn

from .. import symmetry
from ..checks import InputError, unwrapped
from .checkpoints import fitting

# What a module has, or its forward reads, without an effect in evaluation.
_IDLE = {*vars(nn.Module()), "inplace", "momentum"}
# A dropout's share, under the names that it goes by.
_DROP = re.compile(r"drop(out|path)?(_|$)")
# Methods that only make or print a module: an attribute that no other reads has no effect.
_MAKERS = {"__init__", "__new__", "__setstate__", "__repr__", "extra_repr", "reset_parameters", "_reset_parameters"}
_FUNCTIONS = (FunctionType, BuiltinFunctionType)


# What says how many units a module of torch reads or makes.
_SIZES = {"in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels", "groups"}
_SIZES |= {"normalized_shape", "embedding_dim", "num_parameters"}


def alike(
    networks: Sequence[nn.Module], names: Sequence[str] | None = None, *, widths: bool = False
) -> list[nn.Module]:
    """The networks without wrappers (`checks.unwrapped`), if they are of one architecture.

    Their state dicts must fit the first one's (`fitting`), and each module must be of the same type and do the same as
    the first network's of that name: plain attributes that some method reads are equal (stride, padding, eps …), except
    those without an effect in evaluation (momentum, inplace, a dropout's p).

    Args:
        names: what errors call the networks; by default "network 1" and so on.
        widths: whether they may differ in how many units their layers have (`symmetry.in_one_width` says whether they
            do in nothing else).

    Raises:
        InputError: in one line, for the first that differs.
    """
    networks = [unwrapped(network) for network in networks]
    names = names or [f"network {number}" for number in range(1, len(networks) + 1)]
    if len(names) != len(networks):
        raise InputError(f"{len(networks)} networks and {len(names)} names; accepted: one name a network")
    for name, network in zip(names[1:], networks[1:], strict=True):
        differs = widths and symmetry.shapes_of(network) != symmetry.shapes_of(networks[0])
        if not differs:
            fitting(networks[0], network.state_dict(), name)
        for difference in _differences(networks[0], network, names[0], _SIZES if differs else set()):
            raise InputError(f"{name} differs: {difference}")
    return networks


def _differences(first: nn.Module, other: nn.Module, name: str, sizes: set[str]) -> Iterator[str]:
    """How `other` differs from `first`, called `name`: in its modules, then in what they do, but for these `sizes`."""
    ours, theirs = (dict(network.named_modules(remove_duplicate=False)) for network in (first, other))
    for place in dict.fromkeys([*ours, *theirs]):
        one, two = (type(m[place]).__name__ if place in m else "missing" for m in (ours, theirs))
        if place not in ours or place not in theirs or _kind(ours[place]) != _kind(theirs[place]):
            yield f"{_called(place)} is {two}, in {name} {one}"
    read = set().union(*(_read(kind) for kind in {type(module) for module in ours.values()}))
    for place, module in ours.items():
        one, two = _does(module, read), _does(theirs[place], read)
        for attribute in dict.fromkeys([*one, *two]):
            if attribute in sizes and type(module).__module__.startswith("torch."):
                continue
            if attribute not in one or attribute not in two or not _same(one[attribute], two[attribute]):
                values = (m.get(attribute, "missing") for m in (two, one))
                shown = [v.__name__ if isinstance(v, _FUNCTIONS) else v for v in values]
                yield f"{_called(place)} has {attribute} {shown[0]}, {name} {shown[1]}"


def _called(place: str) -> str:
    return f"module '{place}'" if place else "it"


def _kind(module: nn.Module) -> str:
    # by name: a cell that is run again makes a new class
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _does(module: nn.Module, read: set[str]) -> dict[str, Any]:
    """The plain attributes of a module that are `read` and have an effect in evaluation."""
    kind = type(module).__name__.lower()
    idle = _IDLE | ({"p"} if any(word in kind for word in ("dropout", "droppath", "stochasticdepth")) else set())
    return {
        name: value
        for name, value in vars(module).items()
        if name in read and name not in idle and not _DROP.search(name) and _is_plain(value)
    }


def _read(kind: type) -> set[str]:
    """The names that the methods of a module's class read, those that it inherits included."""
    names: set[str] = set()
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, method in vars(base).items():
            for attribute in ("fget", "func", "__func__"):  # of properties, cached or not, and of static methods
                method = getattr(method, attribute, method)
            method = inspect.unwrap(method) if callable(method) else method
            if name not in _MAKERS and isinstance(method, FunctionType):
                names |= _names(method.__code__)
    return names


def _names(code: CodeType) -> set[str]:
    """The names in a function's code and in that of the functions inside it."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, *_FUNCTIONS))


def _same(one: Any, two: Any) -> bool:
    """Whether two plain values are the same; 2 is (2, 2) to a pool."""
    if isinstance(one, tuple) != isinstance(two, tuple):
        one, two = (one, two) if isinstance(one, tuple) else (two, one)
        return all(part == two for part in one) and len(one) > 0
    if isinstance(one, _FUNCTIONS) and isinstance(two, _FUNCTIONS):
        return (one.__module__, one.__qualname__) == (two.__module__, two.__qualname__)
    return one == two or repr(one) == repr(two)  # NaN is no NaN
