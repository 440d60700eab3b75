"""The ways a run ends early that are not faults of the program."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value the user gave cannot be used; the message names it, what is allowed and the remedy."""


class Diverged(RuntimeError):
    """A loss, a state or a gradient stopped being finite or trustworthy; the message says what to try.

    observation: what the learner's update() learns from the call.
    """

    observation = None


class OverBudget(Diverged):
    """A meta-gradient could not be made accurate within its budget of evaluations; another batch may be."""


def changed_meanwhile(what: str) -> InputError:
    """The error for a backward pass that meets another module, loss or tasks than the inner loop did."""
    return InputError(f"{what} changed between adapt() and backward(), which goes the way again; call backward() first")


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    nearest = [k for k in known if near and k.lower() == near[0]]
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return InputError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")
