"""What a user may type: bad input is an InputError, told in one line."""

import ast
import difflib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from torch import nn


class InputError(ValueError):
    """Bad input from the user, told in one line: what was wrong and what is accepted."""

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: in a notebook the user reads the line, not the stack of a library they did not write.
        return [f"InputError: {self}"]


def first_line(error: Exception) -> str:
    """What an error says in its first line, its type where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def check_choice(name: str, value: object, accepted: Iterable[str]) -> None:
    """Raises InputError unless `value` is one of `accepted`."""
    accepted = tuple(accepted)
    if value not in accepted:
        raise InputError(f"unknown {name} {value!r}; accepted: {', '.join(accepted)}{nearest(value, accepted)}")


def nearest(name: object, known: Iterable[str]) -> str:
    """The name that was meant, as a question in brackets; "" where none is near."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def check_whole(name: str, value: object, least: int) -> None:
    """Raises InputError unless `value` is a whole number ≥ `least` that 64 bits hold (PyTorch's seeds and counts)."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise InputError(f"{name} {value!r} is not accepted; accepted: a whole number of at least {least}")


def check_known(name: str, known: Iterable[str], what: str = "the parameters cell") -> None:
    """Raises InputError, with the nearest name, where `known`, the parameters of a notebook, lacks `name`."""
    known = list(known)
    if name not in known:
        raise InputError(f"{what} has no parameter {name}{nearest(name, known)}; it has: {', '.join(known)}")


def check_injected(namespace: Mapping[str, Any]) -> None:
    """Raises InputError where papermill has set a name that the notebook does not declare: alone it would only warn,
    and the notebook would run with its defaults.

    Args:
        namespace: a notebook's globals(). Its `In`, the cells that have run, holds papermill's cell of assignments,
            headed "# Parameters", behind the parameters cell. Without one there is nothing to check.
    """
    declared: list[str] = []
    for cell in namespace.get("In") or ():
        if declared and cell.startswith("# Parameters\n"):  # the first of them may be a parameters cell so headed
            for name in _assigned(cell):
                check_known(name, declared)
        else:
            declared += [name for name in _assigned(cell) if name not in declared]


def _assigned(cell: str) -> list[str]:
    """The names that a cell's own statements assign, in order; none where it is more than Python."""
    names = []
    with suppress(SyntaxError, ValueError):
        for statement in ast.parse(cell).body:
            targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def unwrapped(model: "nn.Module") -> "nn.Module":
    """The network itself, whose tensors have the names that its class gives them: what nn.DataParallel,
    DistributedDataParallel, AveragedModel and torch.compile wrap, however often, and the only network in a
    LightningModule that has no forward of its own; any other module as it is.

    Raises:
        InputError: it is a TorchScript module, or no module at all.
    """
    import torch
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    if not isinstance(model, nn.Module):
        raise InputError(f"a network is given as {type(model).__name__}; accepted: a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("TorchScript modules cannot be traced or copied apart; accepted: the nn.Module it was made of")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        return unwrapped(model.module)
    inner = model._modules.get("_orig_mod")  # torch._dynamo's OptimizedModule, whose import takes a second
    held = [child for child in model.children() if child.state_dict()]
    defined = getattr(type(model).forward, "__module__", None) or ""
    if defined.startswith(("lightning.", "pytorch_lightning.")) and len(held) == 1:
        inner = held[0]
    return model if inner is None else unwrapped(inner)


@dataclass(frozen=True)
class Method:
    """The annotation of an option that is a method itself, such as a server's matcher: what it is called, and its
    table."""

    kind: str
    table: Mapping[str, Any]


def split_outside(text: str) -> list[str]:
    """The parts of a text between commas that stand in no brackets."""
    return re.split(r",(?![^()]*\))", text)


def read_method(
    kind: str, text: str, table: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """(name, options) of a method as a user writes it, such as "activation(tap=pre_norm)" or "graph(restarts=3)"; an
    option may be a method, too: "matched(matcher=graph(restarts=3))".

    Args:
        kind: what the error calls it, such as "matcher".
        table: {name: row}; the parameters of row.run after the first are the options, their annotations (bool, int ≥ 0,
            float ≥ 0, Literal, Method) what each accepts.
        options: more of them, which go before those in the text.

    Raises:
        InputError: a name that is not in the table, an option that it does not have, or a value that is not accepted.
    """
    parts = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text, re.DOTALL) if isinstance(text, str) else None
    if parts is None:
        check_choice(kind, text, table)
    name, inside = parts[1], parts[2]
    check_choice(kind, name, table)
    written = {}
    for item in split_outside(inside) if (inside or "").strip() else ():
        option, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not option.isidentifier():
            raise InputError(f"{kind} {text!r} cannot be read; accepted: {name}(option=value, …)")
        written[option] = _value(value)
    accepted = dict(list(inspect.signature(table[name].run).parameters.items())[1:])
    options = written | dict(options or {})
    if unknown := sorted(options.keys() - accepted.keys()):
        listed = ", ".join(accepted) or "none"
        raise InputError(f"{kind} {name!r} takes no option {', '.join(unknown)}; accepted: {listed}")
    return name, {option: _fitting(kind, name, option, accepted[option], value) for option, value in options.items()}


def spell_method(name: str, options: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """How `read_method`'s answer is recorded and labelled: the options that differ from their defaults, in order."""
    defaults = {option: p.default for option, p in inspect.signature(table[name].run).parameters.items()}
    words = [
        f"{option}={str(options[option]).lower() if isinstance(options[option], bool) else options[option]}"
        for option, default in defaults.items()
        if option in options and options[option] != default
    ]
    return f"{name}({', '.join(words)})" if words else name


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text.strip("'\"")


def _fitting(kind: str, name: str, option: str, parameter: inspect.Parameter, value: Any) -> Any:
    """`value` in the type that an option's annotation declares; InputError where it does not fit."""
    wanted = parameter.annotation
    if isinstance(wanted, Method):
        return spell_method(*read_method(wanted.kind, value, wanted.table), wanted.table)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if get_origin(wanted) is Literal:
        fits, accepted = value in get_args(wanted), ", ".join(map(str, get_args(wanted)))
    elif wanted is bool:
        fits, accepted = isinstance(value, bool), "true, false"
    else:
        fits = number and 0 <= value < math.inf and (wanted is float or value == int(value))
        value = wanted(value) if fits else value
        accepted = "a finite number ≥ 0" if wanted is float else "a whole number ≥ 0"
    if not fits:
        raise InputError(f"{kind} {name!r}: {option} {value!r} is not accepted; accepted: {accepted}")
    return value
