"""What a user may type: bad input is an InputError, told in one line."""

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin


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
        raise InputError(f"unknown {name} {value!r}; accepted: {', '.join(accepted)}")


def check_whole(name: str, value: object, least: int) -> None:
    """Raises InputError unless `value` is a whole number ≥ `least` that 64 bits hold (PyTorch's seeds and counts)."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise InputError(f"{name} {value!r} is not accepted; accepted: a whole number of at least {least}")


def read_method(
    kind: str, text: str, table: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """(name, options) of a method as a user writes it, such as "activation(tap=pre_norm)" or "graph(restarts=3)".

    Args:
        kind: what the error calls it, such as "matcher".
        table: {name: row}; the parameters of row.run after the first are the options, their annotations (bool, int ≥ 0,
            float ≥ 0, Literal) what each accepts.
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
    for item in (inside or "").split(",") if (inside or "").strip() else ():
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
    wanted, number = parameter.annotation, isinstance(value, int | float) and not isinstance(value, bool)
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
