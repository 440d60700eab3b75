"""What every learner checks before and after it computes, in one decorator for adapt and gradient."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.engine.graphs import refresh
from amaml.errors import Diverged, InputError
from amaml.learner import Followed, MetaGradient, outer_loss
from amaml.models import Apply
from amaml.tasks import Tasks

MOST_NAMED = 5  # tasks that an error names


def validated(method: Callable[..., Any]) -> Callable[..., Any]:
    """Check theta and tasks before a learner's adapt or gradient, and that its result is finite.

    Before: types, dtypes and devices, and whether apply and loss still are what was traced. Afterwards: one look at the
    result, which waits for the device. A result that is not finite raises InputError where theta or the tasks are not
    finite either, and names the tensor and the tasks; otherwise Diverged, which tells whether it is the loss that has
    no derivative at theta, or the inner loop that leaves the finite numbers.
    """

    @functools.wraps(method)
    def call(learner: Any, theta: Tensor, tasks: Tasks, *memory: Any) -> Any:
        check_input(learner.apply, theta, tasks)
        refresh(learner.apply, learner.loss, theta)
        if outer_loss(learner) is not learner.loss:
            refresh(learner.apply, outer_loss(learner), theta)
        try:
            result = method(learner, theta, tasks, *memory)
        except Diverged:
            _check_cause(learner, theta, tasks)
            raise
        if not _finite(result):
            _check_cause(learner, theta, tasks)
            kind = "the meta-gradient or the query loss" if isinstance(result, MetaGradient) else "phi"
            raise Diverged(f"{kind} is not finite; try a smaller inner_lr or fewer inner steps")
        return result

    return call


def check_input(apply: Apply, theta: Tensor, tasks: Tasks) -> None:
    """Raise InputError unless a learner can begin: an apply of theta (P,) and tasks of its dtype on its device."""
    if isinstance(apply, nn.Module) or not callable(apply):
        raise InputError(
            f"apply must be a function of theta and x, got {type(apply).__name__}; amaml.flatten(module) makes it: "
            "theta, apply = amaml.flatten(module)"
        )
    if not isinstance(theta, Tensor) or theta.ndim != 1 or not theta.dtype.is_floating_point:
        raise InputError(
            f"theta must be one flat tensor (P,) of floating-point numbers, got {_description(theta)}; "
            "amaml.flatten(module) makes it: theta, apply = amaml.flatten(module)"
        )
    check_tasks(tasks)
    for name, tensor in tasks.leaves().items():
        own = name.startswith("shared.")  # a module may hold parts of another dtype
        if tensor.dtype.is_floating_point and tensor.dtype != theta.dtype and not own:
            raise InputError(
                f"{name} is {tensor.dtype}, theta is {theta.dtype}; make them the same: tasks.to({theta.dtype})"
            )
        if tensor.device != theta.device:
            raise InputError(
                f"{name} is on {tensor.device}, theta is on {theta.device}; move one of them: "
                f"tasks.to({str(theta.device)!r})"
            )


def check_tasks(tasks: Any) -> None:
    """Raise InputError for what is no batch of tasks."""
    if not isinstance(tasks, Tasks):
        raise InputError(f"tasks must be amaml.Tasks, got {type(tasks).__name__}; see amaml.Tasks(support_x, ...)")


def check_precision(theta: Tensor, rates: Tensor | None, rtol: float, rounding: Callable[[Tensor], float]) -> None:
    """Raise InputError for rates that do not fit theta, or a dtype that cannot hold a meta-gradient of error rtol."""
    if theta.dtype not in (torch.float32, torch.float64):
        raise InputError(f"theta is {theta.dtype}, whose rounding spoils the adjoint; use float32 or float64")
    if rates is not None and rates.shape != theta.shape:
        raise InputError(f"inner_lr has shape {tuple(rates.shape)}; one rate, or one for each of {len(theta)}")
    if rates is not None and (rates.dtype, rates.device) != (theta.dtype, theta.device):
        raise InputError(
            f"inner_lr is {rates.dtype} on {rates.device}, theta {theta.dtype} on {theta.device}; give "
            "inner_lr.to(theta)"
        )
    if rtol < rounding(theta):
        raise InputError(
            f"rtol {rtol:g} is more than {theta.dtype} can reach; use {rounding(theta):.1g} or more"
            + (", or float64" if theta.dtype == torch.float32 else "")
        )


def _check_cause(learner: Any, theta: Tensor, tasks: Tasks) -> None:
    """Raise what explains a result that is not finite by what the inner loop begins with, if that does."""
    check_finite(theta, tasks)
    weight = tasks.support_weight
    if getattr(learner, "inner_batch", None) is not None and weight is not None and not weight.all():
        raise InputError(
            "inner_batch takes the same points of every task, and a step may have found points of weight zero alone "
            "(padding of ragged tasks?); leave inner_batch out, or give each task as many points"
        )
    for rates in (getattr(learner, "inner_lr", None), getattr(learner, "schedule", None)):
        if isinstance(rates, Tensor) and not rates.isfinite().all():
            raise InputError(f"inner_lr holds {_kinds(rates)}; an earlier update of it may have been too large")
    theta, tasks = theta.detach().expand(len(tasks), -1), tasks.detach()
    _check_loss("support", learner, learner.loss, theta, *tasks.support)
    _check_loss("query", learner, outer_loss(learner), theta, *tasks.query)


def _check_loss(name: str, learner: Any, loss: Loss, theta: Tensor, x: Any, y: Any) -> None:
    """Raise Diverged where a loss is not finite at theta (tasks, P), or has no derivatives there."""
    losses, gradient = derivatives.losses_and_gradients(learner.apply, loss, theta, x, y)
    what = "value" if not losses.isfinite().all() else "" if gradient.isfinite().all() else "derivative"
    if not what and name == "support":
        with contextlib.suppress(InputError):  # there is none, for methods that do without
            product = derivatives.hvps(learner.apply, loss, theta, torch.ones_like(gradient), x, y)
            what = "" if product.isfinite().all() else "second derivative"
    if what:
        raise Diverged(
            f"the {name} loss has no finite {what} at theta, where no inner_lr and no number of steps can help; look "
            "for a norm, square root, logarithm or division of zero, also in a branch that torch.where does not take, "
            "and add a small number to what is zero"
        )


def check_finite(theta: Tensor, tasks: Tasks) -> None:
    """Raise InputError if theta, support or query hold NaN or infinity: which tensor, and which tasks."""
    for name, tensor in ({"theta": theta} | tasks.leaves()).items():
        if name == "theta" or name.startswith("shared."):
            if not tensor.isfinite().all():
                raise InputError(f"{name} holds {_kinds(tensor)}; an earlier update may have been too large")
            continue
        rows = (~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()[:, 0].tolist()
        if rows:
            named = ", ".join(map(str, rows[:MOST_NAMED])) + (", ..." if len(rows) > MOST_NAMED else "")
            raise InputError(
                f"{name} holds {_kinds(tensor)} in {len(rows)} of {len(tasks)} tasks (number {named}, from 0); "
                "leave these points out or replace the values"
            )
        if name.endswith("_weight") and not tensor.sum(1).all():
            raise InputError(f"{name} adds up to zero for some task; every task needs a point that counts")


def _finite(result: MetaGradient | Followed | Tensor) -> bool:
    parts = [result.path if isinstance(result, Followed) else result]
    if isinstance(result, MetaGradient):
        parts = [result.value, result.query_loss, *result.gradients.values()]
    return bool(torch.stack([part.isfinite().all() for part in parts]).all())


def _kinds(tensor: Tensor) -> str:
    return " and ".join(name for name, there in (("NaN", tensor.isnan()), ("infinity", tensor.isinf())) if there.any())


def _description(value: object) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)} of {value.dtype}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__
