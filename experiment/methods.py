"""What the settings choose by name: methods, networks, optimisers of theta, protocols; each with the settings it takes.

A new one is one entry of its table here, beside its class or function; its own settings stand in experiment.settings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from amaml import AMAML
from baselines import FOMAML, IMAML, Pretrained, Reptile, Scratch
from experiment.evaluation import fine_tune, inner_loop
from experiment.networks import conv4, flat_linear, flat_mlp, last_layer, resnet12_of_width


@dataclass(frozen=True)
class Choice:
    """A class or function, the settings it takes with its keyword for each, and keywords that the name fixes.

    also: settings of this choice that are no keywords. adapt: names the part of a network that alone adapts.
    """

    make: Callable[..., Any]
    takes: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    adapt: Callable[[nn.Module], tuple[str, ...]] | None = None

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


_ALONG = _alike("query_steps", "query_weights")
_FLOW = _alike("solver", "adjoint", "rtol", "prox") | _ALONG
_STEPS = _alike("inner_optimizer", "inner_batch") | _ALONG

METHODS = {
    "amaml": Choice(AMAML, _FLOW, also=("learn_rates",)),
    "anil": Choice(AMAML, _FLOW, also=("learn_rates",), adapt=last_layer),  # Raghu et al. 2020, section 4
    "maml": Choice(AMAML, _STEPS, {"solver": "euler"}, also=("checkpoint_every",)),  # the exact gradient of the steps
    "maml1": Choice(AMAML, _alike("inner_optimizer", "inner_batch"), {"solver": "euler", "inner_steps": 1}),
    "fomaml": Choice(FOMAML, _ALONG),
    "imaml": Choice(IMAML, _alike("prox", "cg_steps") | {"cg_damping": "damping"}),
    "reptile": Choice(Reptile),
    "scratch": Choice(Scratch),
    "pretrained": Choice(Pretrained),
}

_CONV4 = {"width": "filters", "activation": "activation"}
NETWORKS = {
    "mlp": Choice(flat_mlp, _alike("width", "activation", "norm")),
    "linear": Choice(flat_linear),
    "conv4": Choice(conv4, _CONV4),
    "conv4-strided": Choice(conv4, _CONV4, {"strided": True}),
    "resnet12": Choice(resnet12_of_width, _alike("width")),
}

META_OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}  # of theta
META_SCHEDULES = ("constant", "cosine")  # of their step size
LEARN_RATES = ("none", "scalar", "parameter")  # what is learned of inner_lr, see experiment.build

PROTOCOLS = {  # how theta is adapted at meta-test
    "finetune": Choice(fine_tune, {"test_epochs": "epochs"}),
    "inner": Choice(inner_loop, {"test_steps": "steps"}),
}
BOTH = "both"  # of these protocols, one after the other from the same theta


def protocols(name: str) -> tuple[str, ...]:
    """The protocols that a meta-test goes through for --protocol NAME."""
    return tuple(PROTOCOLS) if name == BOTH else (name,)
