"""What a user may type: bad input is an InputError, told in one line."""

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user, told in one line: what was wrong and what is accepted."""

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: in a notebook the user reads the line, not the stack of a library they did not write.
        return [f"InputError: {self}"]


def check_choice(name: str, value: object, accepted: Iterable[str]) -> None:
    """Raises InputError unless `value` is one of `accepted`."""
    accepted = tuple(accepted)
    if value not in accepted:
        raise InputError(f"unknown {name} {value!r}; accepted: {', '.join(accepted)}")
