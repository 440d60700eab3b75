"""Tables of what the program has by name, which also take what a user's own module holds, as package.module:Name."""

import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from amaml.errors import InputError, unknown

T = TypeVar("T")
OUTSIDE = "package.module:Name"


class Table(dict[str, T]):
    """Entries by name; table["package.module:Name"] is made of that object the first time it is asked for.

    kind: what the entries are called in an error. entry(name, found): the entry of an object from outside; raises
    InputError where it is none of that kind.
    """

    def __init__(self, kind: str, entries: dict[str, T], entry: Callable[[str, Any], T]) -> None:
        super().__init__(entries)
        self.kind, self.entry = kind, entry

    def __missing__(self, name: str) -> T:
        if ":" not in name:
            raise unknown(self.kind, name, [*self, OUTSIDE])
        self[name] = made = self.entry(name, found(f"--{self.kind}", name))
        return made


def found(flag: str, name: str) -> Any:
    """The object package.module:Name, its module looked for in the folder where the program started as well."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return pkgutil.resolve_name(name)
    except ModuleNotFoundError as fault:
        if not f"{name.partition(':')[0]}.".startswith(f"{fault.name}."):
            raise  # the module is there, and misses another one
        remedy = "start in the folder that holds it, or put that folder into PYTHONPATH"
        raise InputError(f"{flag} {name}: there is no module {fault.name!r} in {os.getcwd()}; {remedy}") from fault
    except AttributeError as fault:
        raise InputError(f"{flag} {name}: {fault}; give the name of what it defines") from fault
    except ValueError as fault:
        raise InputError(f"{flag} {name!r} must be a name, or {OUTSIDE}") from fault


def short(name: str) -> str:
    """Name of package.module:Name, for folders and files; other names as they are."""
    return name.rpartition(":")[2]
