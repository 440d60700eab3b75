"""Domains of tasks by name: DOMAINS[name](sampling) draws them. What a domain must offer is data.domain.Domain.

DOMAINS["package.module:Name"] is a user's own: a class that inherits from data.domain.Domain or Endless.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from amaml.errors import InputError
from data.domain import Domain, check_pool
from data.episodes import Sampling
from data.images import CIFARFS, Glyphs, MiniImageNet, Omniglot
from data.logistic import Logistic
from data.outside import Table
from data.phantoms import Phantoms
from data.ratings import Jester, MovieLens1M, MovieLens100K
from data.sinusoid import Sinusoid
from data.synthetic import Alpine2D, Alpine2DReleased, CosMixture, CosMixture2D, CosMixture2DSlides, CosMixtureSlides


def _domain(name: str, found: Any) -> type[Domain]:
    """A class from outside as a domain; InputError for what is none, or lacks a part of one."""
    if Domain not in getattr(found, "__mro__", ()):
        raise InputError(f"--domain {name} must be a class that inherits from data.domain.Domain, got {found!r}")
    _check_complete(name, sorted(found.__abstractmethods__))
    return found


def _check_complete(name: str, lacking: Sequence[str]) -> None:
    if lacking:
        raise InputError(f"--domain {name} lacks {', '.join(lacking)}; data/domain.py says what a Domain has")


_OWN: dict[str, type[Domain]] = {
    "Alpine2D": Alpine2D,
    "Alpine2D-released": Alpine2DReleased,
    "CosMixture": CosMixture,
    "CosMixture-slides": CosMixtureSlides,
    "CosMixture2D": CosMixture2D,
    "CosMixture2D-slides": CosMixture2DSlides,
    "Sinusoid": Sinusoid,
    "Jester": Jester,
    "MovieLens100K": MovieLens100K,
    "MovieLens1M": MovieLens1M,
    "Omniglot": Omniglot,
    "MiniImageNet": MiniImageNet,
    "CIFARFS": CIFARFS,
    "Glyphs": Glyphs,
    "Logistic": Logistic,
    "Phantoms": Phantoms,
}
DOMAINS = Table("domain", _OWN, _domain)


def make(name: str, sampling: Sampling) -> Domain:
    """The domain of that name; raises InputError where there is none, or where its data do not suffice."""
    domain = DOMAINS[name](sampling)
    _check_complete(name, [part for part in ("input_shape", "outputs", "objective") if not hasattr(domain, part)])
    return domain


def of_settings(s: Any) -> Domain:
    """The domain of an experiment; raises InputError where its data do not suffice for the settings."""
    given = {f.name: getattr(s, f.name) for f in fields(Sampling) if hasattr(s, f.name)}
    domain = make(s.domain, Sampling(**given | {"dtype": getattr(torch, s.dtype)}))
    if s.inner_batch is not None:
        points = s.shots * (domain.outputs if domain.images else 1)
        check_pool("support points of a task", s.inner_batch, points, "--inner-batch")
    domain.check_meta_test(s.test_tasks)
    return domain


__all__ = ["DOMAINS", "Domain", "Sampling", "make", "of_settings"]
