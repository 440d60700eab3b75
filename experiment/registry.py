"""What the settings choose by name: methods, networks, optimisers, protocols; each once, with the settings it uses.

Names are checked before torch is loaded, which takes seconds. So this is plain data: the function behind a name is
given as in a package's entry points, "module:name", and is imported when it is called.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One choice.

    function: "module:name" of what makes or does it. flags: the settings that it takes, and the function's keyword for
    each. fixed: keywords with a value of their own. also: settings of this choice that are no business of the function.
    """

    function: str
    flags: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def uses(self) -> set[str]:
        """The settings that this choice uses, beside those that every choice does."""
        return {*self.flags, *self.also}

    def call(self, settings: Any, *positional: Any, **common: Any) -> Any:
        """Call the function; a setting that is None is left to the function's own default."""
        module, name = self.function.split(":")
        own = {keyword: getattr(settings, flag) for flag, keyword in self.flags.items()}
        given = {keyword: value for keyword, value in own.items() if value is not None}
        return getattr(import_module(module), name)(*positional, **common | given | dict(self.fixed))


_FLOW = {
    "solver": "solver",
    "adjoint": "adjoint",
    "rtol": "rtol",
    "prox": "prox",
    "trajectory_checkpoints": "checkpoints",
}
_UNROLLED = {
    "checkpoint_every": "checkpoint_every",
    "inner_optimizer": "inner_optimizer",
    "inner_batch": "inner_batch",
}

METHODS = {
    "amaml": Entry("amaml:AMAML", _FLOW, also=("learn_rates",)),
    "anil": Entry("baselines:anil", _FLOW, also=("learn_rates",)),
    "maml": Entry("baselines:MAML", _UNROLLED),
    "maml1": Entry("baselines:MAML", _UNROLLED, {"inner_steps": 1}),
    "fomaml": Entry("baselines:FOMAML"),
    "imaml": Entry("baselines:IMAML", {"prox": "prox", "cg_steps": "cg_steps", "cg_damping": "damping"}),
    "reptile": Entry("baselines:Reptile"),
    "scratch": Entry("baselines:Scratch"),
    "pretrained": Entry("baselines:Pretrained"),
}

_NETWORKS = "experiment.networks"
_CONV4 = {"width": "filters", "activation": "activation"}
NETWORKS = {
    "mlp": Entry(f"{_NETWORKS}:flat_mlp", {"width": "width", "activation": "activation", "norm": "norm"}),
    "linear": Entry(f"{_NETWORKS}:flat_linear"),
    "conv4": Entry(f"{_NETWORKS}:conv4", _CONV4),
    "conv4-strided": Entry(f"{_NETWORKS}:conv4", _CONV4, {"strided": True}),
    "resnet12": Entry(f"{_NETWORKS}:resnet12_of_width", {"width": "width"}),
}

META_OPTIMIZERS = {  # of theta
    "sgd": Entry("torch.optim:SGD", {"meta_lr": "lr"}),
    "adam": Entry("torch.optim:Adam", {"meta_lr": "lr"}),
}

PROTOCOLS = {  # how theta is adapted at meta-test
    "finetune": Entry("experiment.evaluation:fine_tune", {"test_epochs": "epochs"}),
    "inner": Entry("experiment.evaluation:inner_loop", {"test_steps": "steps"}),
}

BOTH = "both"  # of these protocols, one after the other from the same theta

# the names of tables that live where they are used, in modules that load torch; the tests compare
SOLVERS = ("auto", "euler", "midpoint", "rk4", "rkc", "bosh3", "dopri5")
LEARN_RATES = ("none", "scalar", "parameter")
META_SCHEDULES = ("constant", "cosine")
ADJOINTS = ("discrete", "continuous")
INNER_OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam")
ACTIVATIONS = ("tanh", "relu", "softplus", "gelu")
NORMS = ("none", "batch")
WITH_KINKS = ("relu",)  # activations without a second derivative: their gradient flow is not smooth


def protocols(name: str) -> tuple[str, ...]:
    """The protocols that a meta-test goes through for --protocol NAME."""
    return tuple(PROTOCOLS) if name == BOTH else (name,)


def flag_name(setting: str) -> str:
    """The flag of the command line that gives a setting."""
    return "--" + setting.replace("_", "-")
