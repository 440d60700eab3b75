"""Meta-learning with adjoint methods: meta-gradients of long inner loops without a graph."""

from amaml.amaml import AMAML
from amaml.errors import Diverged, InputError
from amaml.flow.derivatives import compiled
from amaml.learner import MetaGradient, MetaLearner
from amaml.losses import accuracy, half_mse, mse, rmse
from amaml.models import flatten, load, mlp, predict
from amaml.tasks import Tasks

__all__ = [
    "AMAML",
    "Diverged",
    "InputError",
    "MetaGradient",
    "MetaLearner",
    "Tasks",
    "accuracy",
    "compiled",
    "flatten",
    "half_mse",
    "load",
    "mlp",
    "mse",
    "predict",
    "rmse",
]
