"""What every domain offers. A domain is a class: Domain(sampling) draws tasks from a seed and a step number alone."""

from abc import abstractmethod
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from amaml.engine.derivatives import Loss
from amaml.errors import InputError
from amaml.losses import accuracy, half_mse, mse, rmse
from amaml.tasks import Tasks
from data.episodes import EPISODE, META_TEST_TASKS, Sampling, generator


class Objective(NamedTuple):
    """The loss that tasks are adapted by, and the metric they are judged by, with its name in the tables."""

    loss: Loss
    metric_name: str
    metric: Loss


CLASSES = Objective(cross_entropy, "accuracy", accuracy)
STANDARDISED = Objective(half_mse, "nRMSE", rmse)  # targets have unit variance over the meta-train tasks
OTHER_UNITS = Objective(half_mse, "MSE", mse)


class Domain(Protocol):
    """A family of tasks. A class that inherits from this one has what follows with a body or a value.

    A user's own domain is a class that inherits from this one or from Endless: --domain package.module:Name.

    input_shape and outputs are the sizes of one point: (d,) and 1 for regression, (channels, height, width) and the
    number of classes for classification, whose targets are classes (points,). images: whether the points are images, of
    which shots and queries count those of each class.

    uses: the settings that this domain takes and not every domain does, as fields of Sampling. defaults: the name of a
    file in configs/ that several domains share, None where a domain has its own alone. meta_test_tasks: how many tasks
    of the meta-test there are, None where they have no end.
    """

    uses: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[str | None] = None
    images: ClassVar[bool] = False
    meta_test_tasks: ClassVar[int | None] = None
    objective: Objective
    input_shape: tuple[int, ...]
    outputs: int
    sampling: Sampling

    def __init__(self, sampling: Sampling) -> None:
        """Raises InputError where the domain holds less than is asked for, or lacks its files."""
        self.sampling = sampling

    @abstractmethod
    def episode(self, step: int) -> Tasks:
        """meta_batch meta-train tasks for one meta-update; the same step always gives the same tasks."""

    @abstractmethod
    def meta_test(self, count: int, first: int = 0) -> Tasks:
        """Meta-test tasks first to first + count - 1, with their test points; no others are built.

        The same number always gives the same task. Raises InputError where there are not so many.
        """

    def check_meta_test(self, count: int) -> None:
        """Raise InputError where there are fewer than count meta-test tasks. Builds none."""
        if self.meta_test_tasks is not None:
            check_pool("meta-test tasks", count, self.meta_test_tasks, "--test-tasks")

    def predictors(self, count: int) -> dict[str, np.ndarray]:
        """The metric (count,) of predictors that learn nothing, on the test points of meta_test(count), by name."""
        return {}

    def in_units(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets as a picture shows them: a standardisation undone."""
        return x, y

    def tensor(self, values: np.ndarray) -> Tensor:
        """Real numbers on the device and in the precision of the run; contiguous."""
        return torch.as_tensor(np.ascontiguousarray(values)).to(self.sampling.device, self.sampling.dtype)


class Endless(Domain):
    """Tasks without end: each episode holds new ones, and those of the meta-test have random numbers of their own."""

    def episode(self, step: int) -> Tasks:
        """meta_batch tasks that no other step sees."""
        return self.tasks(generator(self.sampling.seed, EPISODE, step), self.sampling.meta_batch)

    def meta_test(self, count: int, first: int = 0) -> Tasks:
        """Tasks first to first + count - 1, with test points."""
        return self.tasks(generator(self.sampling.seed, META_TEST_TASKS), count, first, test=True)

    @abstractmethod
    def tasks(self, rng: np.random.Generator, count: int, first: int = 0, test: bool = False) -> Tasks:
        """Tasks number first to first + count - 1 of those that the generator gives, a row of random numbers a task.

        test: with test_x and test_y, the points on which the adapted parameters are judged.
        """


def check_pool(name: str, asked: int, pool: int, flag: str) -> None:
    """Raise InputError where more points or tasks are asked for than the pool holds."""
    if asked > pool:
        raise InputError(f"{flag} {asked} is more than the {pool} {name}; choose at most {pool}")
