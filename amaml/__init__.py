"""Meta-learning with adjoint methods: meta-gradients of long inner loops without a graph.

The public names are those of amaml.api. They are loaded, and torch with them, when one of them is first asked for: a
program can so check its flags, and tell a mistake as an amaml.errors.InputError, before the seconds that torch takes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amaml.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":
        raise AttributeError(name)
    try:
        return getattr(import_module("amaml.api"), name)
    except AttributeError:
        raise AttributeError(f"module 'amaml' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
