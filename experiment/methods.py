"""What the settings choose by name: methods, networks, optimisers of theta, protocols; each with the settings it takes.

A new one is one entry of its table here, beside its class or function; its own settings stand in experiment.settings.
Methods and networks of a user's own module go by package.module:Name; they take the settings that their keywords name.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import nn

from amaml import AMAML, InputError
from baselines import FOMAML, IMAML, Pretrained, Reptile, Scratch
from data.outside import Table
from experiment.evaluation import fine_tune, inner_loop
from experiment.networks import conv4, flat_linear, flat_mlp, fourier, last_layer, resnet12


@dataclass(frozen=True)
class Choice:
    """A class or function, the settings it takes with its keyword for each, and keywords that the name fixes.

    also: settings of this choice that are no keywords. adapt: names the part of a network that alone adapts. images: a
    network for images alone.
    """

    make: Callable[..., Any]
    takes: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    adapt: Callable[[nn.Module], tuple[str, ...]] | None = None
    images: bool = False

    @property
    def uses(self) -> set[str]:
        """The settings that this choice uses, beside those that every choice does."""
        return {*self.takes, *self.also}

    def options(self, settings: Any) -> dict[str, Any]:
        """The keywords and their values; a setting that is None is left to the function's own default."""
        given = {keyword: getattr(settings, name) for name, keyword in self.takes.items()}
        return {keyword: value for keyword, value in given.items() if value is not None} | dict(self.fixed)


def _alike(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


_MEAN = _alike("robust")
_ALONG = _alike("query_steps", "query_weights") | _MEAN
_FLOW = _alike("solver", "adjoint", "rtol", "prox") | _ALONG
_STEPS = _alike("inner_optimizer", "inner_batch") | _ALONG
_BEGUN = "learn_rates", "reptile_first"

_METHODS = {
    "amaml": Choice(AMAML, _FLOW, also=_BEGUN),
    "anil": Choice(AMAML, _FLOW, also=_BEGUN, adapt=last_layer),  # Raghu et al. 2020, section 4
    "maml": Choice(AMAML, _STEPS, {"solver": "euler"}, also=("checkpoint_every", "reptile_first")),  # the steps' own
    "maml1": Choice(AMAML, _alike("inner_optimizer", "inner_batch") | _MEAN, {"solver": "euler", "inner_steps": 1}),
    "fomaml": Choice(FOMAML, _ALONG),
    "imaml": Choice(IMAML, _alike("prox", "cg_steps", "robust") | {"cg_damping": "damping"}),
    "reptile": Choice(Reptile, _MEAN),
    "scratch": Choice(Scratch),
    "pretrained": Choice(Pretrained, _MEAN),
}

_CONV4 = {"width": "filters", "activation": "activation"}
_NETWORKS = {
    "mlp": Choice(flat_mlp, _alike("width", "activation", "norm")),
    "linear": Choice(flat_linear),
    "conv4": Choice(conv4, _CONV4, images=True),
    "conv4-strided": Choice(conv4, _CONV4, {"strided": True}, images=True),
    "resnet12": Choice(resnet12, _alike("width"), images=True),
    "fourier": Choice(fourier, _alike("width", "activation")),
}


def _takes(made: Callable[..., Any], table: Mapping[str, Choice]) -> dict[str, str]:
    """The settings that anything of the table takes, whose keyword this class or function has too."""
    keywords = inspect.signature(made).parameters
    known = {name: keyword for choice in table.values() for name, keyword in choice.takes.items()}
    return {name: keyword for name, keyword in known.items() if keyword in keywords}


def _method(name: str, found: Any) -> Choice:
    """A class from outside as a method; InputError where it is no learner."""
    learner = isinstance(found, type) and is_dataclass(found)
    needs = ("apply", "loss", "inner_lr", "inner_steps")
    lacking = [n for n in needs if not learner or n not in inspect.signature(found).parameters]
    lacking += [n for n in ("init", "adapt", "gradient", "update") if not hasattr(found, n)]
    if lacking:
        needed = f"a dataclass as amaml.MetaLearner says, with the fields {', '.join(needs)}"
        raise InputError(f"--method {name} must be {needed}; it lacks {', '.join(lacking)}")
    return Choice(found, _takes(found, _METHODS))


def _network(name: str, found: Any) -> Choice:
    """A function or class from outside as a network."""
    if not callable(found):
        needed = "a function (input_shape, outputs) -> torch.nn.Module"
        raise InputError(f"--network {name} must be {needed}, got {found!r}")
    return Choice(found, _takes(found, _NETWORKS))


METHODS = Table("method", _METHODS, _method)
NETWORKS = Table("network", _NETWORKS, _network)

META_OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}  # of theta
META_SCHEDULES = ("constant", "cosine")  # of their step size
LEARN_RATES = ("none", "scalar", "parameter")  # what is learned of inner_lr, see experiment.build

PROTOCOLS = {  # how theta is adapted at meta-test
    "finetune": Choice(fine_tune, {"test_epochs": "epochs"}),
    "inner": Choice(inner_loop, {"test_steps": "steps"}),
}
UNITS = {"finetune": "epoch", "inner": "inner step"}  # in which a protocol is recorded
BOTH = "both"  # of these protocols, one after the other from the same theta


def protocols(name: str) -> tuple[str, ...]:
    """The protocols that a meta-test goes through for --protocol NAME."""
    return tuple(PROTOCOLS) if name == BOTH else (name,)
