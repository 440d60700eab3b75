"""Domains of tasks by name. make(name, sampling) builds one."""

from collections.abc import Callable
from functools import partial

from amaml.errors import unknown
from data.episodes import Domain, Sampling
from data.sinusoid import Sinusoid
from data.synthetic import FAMILIES, Synthetic

DOMAINS: dict[str, Callable[[Sampling], Domain]] = {
    **{name: partial(Synthetic, family) for name, family in FAMILIES.items()},
    "Sinusoid": Sinusoid,
}


def make(name: str, sampling: Sampling) -> Domain:
    """The domain of that name; raises InputError where there is none, or where its pools are too small."""
    if name not in DOMAINS:
        raise unknown("domain", name, DOMAINS)
    return DOMAINS[name](sampling)


__all__ = ["DOMAINS", "Domain", "Sampling", "make"]
