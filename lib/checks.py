"""What a user may type: bad input is an InputError, told in one line."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any


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


def check_options(kind: str, name: str, table: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises InputError for a name that `table` does not have, or an option that its entry's `run` does not take (the
    first argument of `run` is what it works on)."""
    check_choice(kind, name, table)
    accepted = list(inspect.signature(table[name].run).parameters)[1:]
    if unknown := sorted(options.keys() - set(accepted)):
        listed = ", ".join(accepted) or "none"
        raise InputError(f"{kind} {name!r} takes no option {', '.join(unknown)}; accepted: {listed}")
