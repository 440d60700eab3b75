"""Domains of tasks by name. make(name, sampling) builds one.

A domain's module is imported when it is built, so that names can be checked before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from amaml.errors import unknown

if TYPE_CHECKING:
    from data.episodes import Domain, Sampling


class Kind(NamedTuple):
    """Domains of one kind: what builds the one of a name, and the settings that this kind alone uses.

    defaults: the name of a file in configs/ that these domains share, None where each has its own alone.
    """

    build: Callable[[str, Sampling], Domain]
    uses: tuple[str, ...] = ()
    defaults: str | None = None


def _synthetic(name: str, s: Sampling) -> Domain:
    from data.synthetic import FAMILIES, Synthetic

    return Synthetic(FAMILIES[name], s)


def _sinusoid(name: str, s: Sampling) -> Domain:
    from data.sinusoid import Sinusoid

    return Sinusoid(s)


def _ratings(name: str, s: Sampling) -> Domain:
    from data.ratings import Ratings

    return Ratings(name, s, s.item_features, train_users=s.train_tasks, unseen=s.unseen)


def _images(name: str, s: Sampling) -> Domain:
    from data.images import IMAGES, Images

    return Images(IMAGES[name], s, s.ways)


def _logistic(name: str, s: Sampling) -> Domain:
    from data.logistic import Logistic

    return Logistic(s)


_FAMILIES = (
    "Alpine2D",
    "Alpine2D-released",
    "CosMixture",
    "CosMixture-slides",
    "CosMixture2D",
    "CosMixture2D-slides",
)
DOMAINS: dict[str, Kind] = {
    **dict.fromkeys(_FAMILIES, Kind(_synthetic, defaults="synthetic")),
    "Sinusoid": Kind(_sinusoid),
    **dict.fromkeys(
        ("Jester", "MovieLens100K", "MovieLens1M"), Kind(_ratings, ("item_features", "train_tasks", "unseen"))
    ),
    **dict.fromkeys(("Omniglot", "MiniImageNet", "CIFARFS", "Glyphs"), Kind(_images, ("ways",))),
    "Logistic": Kind(_logistic),
}
ITEM_FEATURES = ("onehot", "svd")  # as in data.ratings


def make(name: str, sampling: Sampling) -> Domain:
    """The domain of that name; raises InputError where there is none, or where its data do not suffice."""
    if name not in DOMAINS:
        raise unknown("domain", name, DOMAINS)
    return DOMAINS[name].build(name, sampling)


def of_settings(s: Any) -> Domain:
    """The domain of an experiment; raises InputError where its data do not suffice for the settings."""
    import torch

    from data.episodes import Sampling, check_pool

    special = {"ways": s.ways, "item_features": s.item_features, "train_tasks": s.train_tasks, "unseen": s.unseen}
    dtype = getattr(torch, s.dtype)
    sampling = Sampling(s.shots, s.queries, s.meta_batch, s.seed, dtype, s.device, s.data_root, **special)
    domain = make(s.domain, sampling)
    if s.inner_batch is not None:
        points = s.shots * (domain.outputs if domain.images else 1)
        check_pool("support points of a task", s.inner_batch, points, "--inner-batch")
    domain.check_meta_test(s.test_tasks)
    return domain


def __getattr__(name: str) -> Any:
    if name in ("Domain", "Sampling"):
        from data import episodes

        return getattr(episodes, name)
    raise AttributeError(f"module 'data' has no attribute {name!r}")


__all__ = ["DOMAINS", "Domain", "Sampling", "make", "of_settings"]
