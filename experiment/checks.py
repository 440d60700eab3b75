"""What the value of a setting must be: functions (flag, value) -> the value in its type, which raise InputError."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from amaml.errors import InputError, unknown

Check = Callable[[str, Any], Any]


def check(read: Callable[[Any], Any], allowed: str) -> Check:
    """The value as read() makes it; read gives None for one that cannot be used."""

    def checked(flag: str, value: Any) -> Any:
        if (found := read(value)) is None:
            raise InputError(f"{flag} must be {allowed}, got {value!r}")
        return found

    return checked


def number(kind: type, accept: Callable[[Any], bool], allowed: str) -> Check:
    """An int or a float, from a file or as a flag's text."""

    def read(value: Any) -> Any:
        try:
            found = kind(value)
        except (TypeError, ValueError, OverflowError):
            return None
        altered = not isinstance(value, str) and found != value  # a fraction given for an integer
        return found if not altered and not isinstance(value, bool) and accept(found) else None

    return check(read, allowed)


def text(pattern: str, allowed: str) -> Check:
    """A string that matches a pattern."""
    return check(lambda v: v if isinstance(v, str) and re.fullmatch(pattern, v, re.DOTALL) else None, allowed)


def choice(allowed: Iterable[str], none: str | None = None) -> Check:
    """One of these names, of which none is the same as leaving it out: None."""

    def checked(flag: str, value: Any) -> str | None:
        if value not in (names := tuple(allowed)):
            raise unknown(flag.removeprefix("--"), str(value), names)
        return None if value == none else value

    return checked


def several(check: Check) -> Check:
    """A list of at least one such value."""

    def checked(flag: str, values: Any) -> list[Any]:
        if not isinstance(values, list) or not values:
            raise InputError(f"{flag} must be one value or more, got {values!r}")
        return [check(flag, value) for value in values]

    return checked
