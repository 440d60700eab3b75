"""Domains of tasks by name. make(name, sampling) builds one."""

from collections.abc import Callable
from functools import partial

from amaml.errors import unknown
from data.episodes import Domain, Sampling
from data.images import IMAGES, Images
from data.logistic import Logistic
from data.ratings import Ratings
from data.sinusoid import Sinusoid
from data.synthetic import FAMILIES, Synthetic


def _ratings(name: str, s: Sampling) -> Ratings:
    return Ratings(name, s, s.item_features, train_users=s.train_tasks, unseen=s.unseen)


DOMAINS: dict[str, Callable[[Sampling], Domain]] = {
    **{name: partial(Synthetic, family) for name, family in FAMILIES.items()},
    "Sinusoid": Sinusoid,
    **{name: partial(_ratings, name) for name in ("Jester", "MovieLens100K", "MovieLens1M")},
    **{name: lambda s, source=source: Images(source, s, s.ways) for name, source in IMAGES.items()},
    "Logistic": Logistic,
}


def make(name: str, sampling: Sampling) -> Domain:
    """The domain of that name; raises InputError where there is none, or where its data do not suffice."""
    if name not in DOMAINS:
        raise unknown("domain", name, DOMAINS)
    return DOMAINS[name](sampling)


__all__ = ["DOMAINS", "Domain", "Sampling", "make"]
