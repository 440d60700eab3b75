"""What is computed of the loss of one task, and of all tasks: of a batch by torch.vmap, or of one after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from amaml.engine.calling import differentiable_twice, no_random_draws, standing
from amaml.losses import evaluate
from amaml.points import Given, task_axis, without_padding

NOISE = 100  # a relative difference of so many eps between two values of a loss is none

Result = Tensor | tuple[Tensor, ...]
Function = Callable[..., Result]
Vjp = Callable[..., tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]]  # as torch.func.vjp


@dataclass(frozen=True)
class Definition:
    """A result for each task: kind(vjp, loss, wanted, phi (P,), ..., x, y), loss a function of phi, x and y.

    wanted: numbers of leaves of the tree (x, y); the last results belong to them, one each. Of all tasks such a result
    has the leaf's shape: one row a task, or the sum over the tasks where the leaf is shared.
    """

    kind: Function
    wanted: tuple[int, ...] = ()

    def of_one(self, apply: Any, loss: Any, vjp: Vjp = torch.func.vjp, cut: bool = False) -> Function:
        """The result of one task as a function of its tensors; cut: without its points of weight zero."""

        def value(phi: Tensor, x: Any, y: Any) -> Tensor:
            x, y = without_padding(x, y) if cut else (x, y)
            return evaluate(loss, called(apply, phi, x), y)

        def result(*arguments: Any) -> Result:
            with standing():  # to the end: the loss, and what autograd computes again, may read the module too
                return self.kind(vjp, value, self.wanted, *arguments)

        return result

    def batched(self, apply: Any, loss: Any) -> Function:
        """The results of all tasks from one pass. (The derivative is taken inside of vmap: taken of the batched
        function, torch 2.13 gets that of batch norm wrong.)"""
        of_one = self.of_one(apply, loss)

        def of_all(*arguments: Any) -> Result:
            return self._summed(torch.vmap(of_one, tuple(map(task_axis, arguments)))(*arguments), arguments)

        return of_all

    def one_by_one(self, apply: Any, loss: Any, cut: bool = False) -> Function:
        """The same results by torch.autograd, of one task after the other: for all that torch.vmap cannot take."""

        def of_all(*arguments: Any) -> Result:
            with no_random_draws(arguments[0].device):  # which may begin with any task
                rows = [self.of_row(apply, loss, arguments, i, cut) for i in range(len(arguments[0]))]
            return self._summed(tree_map(lambda *column: torch.stack(column), *rows), arguments)

        return of_all

    @torch.inference_mode(False)
    def of_row(self, apply: Any, loss: Any, arguments: tuple, i: int, cut: bool = False) -> Result:
        """The result of one of the tasks by torch.autograd, without a graph."""
        return tree_map(Tensor.detach, self.recorded(apply, loss, row_of(arguments, i), cut))

    def recorded(self, apply: Any, loss: Any, row: tuple, cut: bool = False, graph: bool = True) -> Result:
        """Likewise of the tensors of one task, which a network may write into, in the graph that leads to it from those
        that require a gradient; graph: whether autograd is on."""
        with torch.set_grad_enabled(graph), differentiable_twice():
            return self.of_one(apply, loss, vjp_by_autograd, cut)(*row)

    def _summed(self, results: Result, arguments: tuple) -> Result:
        if not self.wanted:
            return results
        leaves, first = tree_leaves(arguments[-2:]), len(results) - len(self.wanted)
        pairs = zip(results[first:], (leaves[i] for i in self.wanted), strict=True)
        return *results[:first], *(r if r.shape == leaf.shape else r.sum(0) for r, leaf in pairs)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two values of a loss are the same but for NOISE; waits for the device."""
    return torch.allclose(one, other, rtol=NOISE * torch.finfo(one.dtype).eps, atol=0.0, equal_nan=True)


def called(apply: Any, phi: Tensor, x: Any) -> Any:
    """The prediction for x of one task, with what is shared."""
    return apply(phi, x.x, x.shared) if isinstance(x, Given) else apply(phi, x)


def row_of(arguments: tuple, i: int) -> tuple:
    """The arguments of one task, as copies without a graph."""

    def row(argument: Any) -> Any:
        if isinstance(argument, Given):
            return Given(row(argument.x), tree_map(Tensor.detach, argument.shared))
        return tree_map(lambda tensor: tensor[i].detach().clone(), argument)

    return tuple(map(row, arguments))


def vjp_by_autograd(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Callable]:
    """As torch.func.vjp, in torch.autograd's graph, so that the result can be differentiated again."""
    inputs = tuple(tensor if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in inputs)
    value = function(*inputs)

    def back(v: Tensor) -> tuple[Tensor, ...]:
        if not value.requires_grad:
            return tuple(map(torch.zeros_like, inputs))
        v = v if v.requires_grad else v.detach().requires_grad_()  # first_look.check_twice sees by that
        return torch.autograd.grad(value, inputs, v, create_graph=True, materialize_grads=True)

    return value, back


# kinds


def loss(vjp: Vjp, value: Function, wanted: tuple, phi: Tensor, x: Any, y: Any) -> Tensor:
    return vjp(lambda p: value(p, x, y), phi)[0]  # recurrent layers can be batched where they are differentiated


def gradient(vjp: Vjp, value: Function, wanted: tuple, phi: Tensor, x: Any, y: Any) -> Tensor:
    return loss_and_gradients(vjp, value, wanted, phi, x, y)[1]


def hvp(vjp: Vjp, value: Function, wanted: tuple, phi: Tensor, v: Tensor, x: Any, y: Any) -> Tensor:
    return vjp(lambda p: gradient(vjp, value, (), p, x, y), phi)[1](v)[0]


def pull_back(vjp: Vjp, value: Function, wanted: tuple, phi: Tensor, v: Tensor, x: Any, y: Any) -> tuple[Tensor, ...]:
    found, back = vjp(*_of_leaves(partial(gradient, vjp, value, ()), phi, x, y, wanted))
    return found, *back(v)


def loss_and_gradients(vjp: Vjp, value: Function, wanted: tuple, phi: Tensor, x: Any, y: Any) -> tuple[Tensor, ...]:
    found, back = vjp(*_of_leaves(value, phi, x, y, wanted))
    return found, *back(torch.ones_like(found))


def _of_leaves(function: Callable[..., Tensor], phi: Tensor, x: Any, y: Any, wanted: tuple[int, ...]) -> tuple:
    """function(phi, x, y) as a function of phi and the wanted leaves of (x, y), and what it is to be called with."""
    leaves, structure = tree_flatten((x, y))

    def of_leaves(phi: Tensor, *chosen: Tensor) -> Tensor:
        now = dict(enumerate(leaves)) | dict(zip(wanted, chosen, strict=True))
        return function(phi, *tree_unflatten(list(now.values()), structure))

    return of_leaves, phi, *(leaves[i] for i in wanted)
