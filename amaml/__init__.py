"""Meta-learning with adjoint methods: meta-gradients of long inner loops without a graph."""

from amaml.adaptation import Adaptation
from amaml.amaml import AMAML
from amaml.chunked import Chunked
from amaml.engine.compiling import compiled
from amaml.errors import Diverged, InputError, OverBudget
from amaml.flow.accuracy import Controller, Memory
from amaml.learner import MetaGradient, MetaLearner
from amaml.losses import accuracy, half_mse, mse, rmse
from amaml.models import flatten, load, mlp
from amaml.predicting import predict
from amaml.tasks import Tasks

__version__ = "0.1.0"
__all__ = [
    "AMAML",
    "Adaptation",
    "Chunked",
    "Controller",
    "Memory",
    "Diverged",
    "InputError",
    "MetaGradient",
    "MetaLearner",
    "OverBudget",
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
