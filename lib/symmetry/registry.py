"""Which rule an operation has, whatever way it is written: as a module, a function, a method or an operator of ATen."""

import operator
from collections.abc import Callable

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.nn import functional as F

# Operation -> rule(tracer, node, module or None) -> layout of the result. An operation is a module class, a function,
# "module.qualified_name" of a function whose package takes too long to import for its rule alone, or a name, which
# stands for torch's functions, methods and ATen operators of that name, in place or not.
RULES: dict[object, Callable] = {}
# What turns a tensor into plain numbers (shapes, devices): no permutation passes through.
NUMBERS = {"getattr", "size", "dim", "ndimension", "numel", "type", "stride", "get_device", "is_floating_point"}
NUMBERS |= {"sym_size", "sym_numel", "sym_stride", "_assert", "_assert_tensor_metadata", "len", "element_size"}

# What makes a tensor of equal entries, from none.
MAKERS = {
    f"{prefix}{kind}{suffix}"
    for kind in ("zeros", "ones", "full")
    for prefix, suffix in (("", ""), ("new_", ""), ("", "_like"))
}

_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div", "concat": "cat"}
_NATIVE = {
    function: name
    for space in (operator, torch, F)
    for name, function in vars(space).items()
    if callable(function) and not isinstance(function, type) and not name.startswith("__")
}
_NATIVE[getattr] = "getattr"


# Rules that say themselves which maps beyond permutations an operation allows; any other allows none.
LINEAR: set[Callable] = set()


def rule(*operations, linear: bool = False) -> Callable:
    """Registers a rule for module classes, functions or names (see `RULES`). `linear`: what goes in may be mapped by
    any matrix, and the result with it, except where the rule itself limits it (`_Tracer.limit`); else by
    permutations."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(operations, function))
        if linear:
            LINEAR.add(function)
        return function

    return register


def spelled(target: object) -> str:
    """The name of an operation."""
    if isinstance(target, OpOverload):
        return target._schema.name.partition("::")[2]
    return target if isinstance(target, str) else _NATIVE.get(target, getattr(target, "__name__", str(target)))


def function_rule(target: object) -> Callable | None:
    """The rule of a function, a method's name or an ATen operator."""
    qualified = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    for key in (target, qualified):
        if key in RULES:
            return RULES[key]
    if not isinstance(target, str | OpOverload) and target not in _NATIVE:
        return None
    name = spelled(target)
    plain = name if name.startswith("__") else name.removesuffix("_")
    return RULES.get(_IN_PLACE.get(plain, plain))


def known(target: object) -> bool:
    """Whether a function has a rule or is torch's or Python's own, into which there is no looking."""
    module = (getattr(target, "__module__", None) or "torch").partition(".")[0]
    return module in ("torch", "_operator", "builtins", "math", "numpy") or function_rule(target) is not None


def module_rule(module: nn.Module) -> Callable | None:
    """The rule of a module: that of its class, or of the class that it computes the same as."""
    for kind in type(module).__mro__:
        if kind in RULES:
            return RULES[kind]
        if {"forward", "__call__", "_conv_forward"} & vars(kind).keys():
            return None  # it does something else than the class it derives from
    return None


def reads_numbers(target: object) -> bool:
    return spelled(target).removesuffix("_") in NUMBERS


def kind_of_layer(node: fx.Node, module: nn.Module | None) -> str:
    """ "attention: " where an operation without a rule belongs to attention and its own name may not say so."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    kinds = [spelled(node.target), type(module).__name__, *(str(kind) for _, kind in stack)]
    return "attention: " if any("attention" in kind.lower() or "Transformer" in kind for kind in kinds) else ""
