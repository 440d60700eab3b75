"""MAML: the exact meta-gradient of K inner steps, by backpropagation through all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amaml.checks import validated
from amaml.engine import derivatives
from amaml.engine.derivatives import Loss
from amaml.errors import InputError, unknown
from amaml.flow.field import Evaluations
from amaml.learner import (
    Memory,
    MetaGradient,
    check_count,
    check_inner_loop,
    mean_if_large,
    no_memory,
    query_gradient,
    unchanged,
    with_own_memory,
)
from amaml.models import Apply
from amaml.points import Points, map_points
from amaml.tasks import Tasks
from baselines.inner import INNER_OPTIMIZERS

State = tuple[Tensor, ...]  # phi and the slots of the inner optimiser, (tasks, P) each


@dataclass(frozen=True, eq=False)
class MAML:
    """Model-Agnostic Meta-Learning (Finn et al. 2017, algorithm 1).

    value = d/dtheta mean over tasks of L_query(phi_K),   phi_0 = theta,   phi_(k+1) = phi_k - inner_lr grad L(phi_k).
    Costs K gradients, K Hessian-vector products and the query gradient. Backpropagation goes step by step: autograd
    keeps phi of every step, not the activations, and one Hessian-vector product leads back through a step. The
    memory grows with K. With inner_steps=1 this is the paper's MAML-1.

    checkpoint_every: C keeps the state of every C-th step alone and unrolls C steps at a time, from the last to the
    first: memory for K / C + C states, least at C about sqrt(K), for at most K gradients more (Griewank and Walther
    2000; Chen et al. 2016). The value is the same.
    inner_optimizer: "momentum", "rmsprop" and "adam" take the place of the plain step; all are differentiated through.
    inner_batch: so many support points a step. The steps go through the support set in a random order, then in another,
    and so on; the orders are the same for every call. None takes all points at every step.
    """

    apply: Apply
    loss: Loss
    inner_lr: float
    inner_steps: int
    checkpoint_every: int | None = None
    inner_optimizer: str = "sgd"
    inner_batch: int | None = None

    def __post_init__(self) -> None:
        check_inner_loop(self.inner_lr, self.inner_steps)
        if self.inner_optimizer not in INNER_OPTIMIZERS:
            raise unknown("inner optimizer", self.inner_optimizer, INNER_OPTIMIZERS)
        for name in ("checkpoint_every", "inner_batch"):
            check_count(name, getattr(self, name), none=True)

    @validated
    def adapt(self, theta: Tensor, tasks: Tasks) -> Tensor:
        """phi_K for every task, (tasks, P), without a graph."""
        return self._unroll(self._start(theta, tasks), tasks, 0, self.inner_steps, graph=False)[0]

    @validated
    @torch.enable_grad()
    def gradient(self, theta: Tensor, tasks: Tasks, memory: Memory) -> MetaGradient:
        """The gradient in theta of the mean query loss of phi_K."""
        ends = [*range(0, self.inner_steps, self.checkpoint_every or self.inner_steps), self.inner_steps]
        segments = list(zip(ends[:-1], ends[1:], strict=True))
        state, kept = self._start(theta, tasks), []
        for first, last in segments[:-1]:
            kept.append(state)
            state = self._unroll(state, tasks, first, last, graph=False)
        spent = Evaluations(self.inner_steps, self.inner_steps, segments[-1][0])

        sensitivity = query_loss = None
        for first, last in reversed(segments):
            leaves = tuple(tensor.detach().requires_grad_() for tensor in state)
            end = self._unroll(leaves, tasks, first, last, graph=True)
            if sensitivity is None:
                to_phi, query_loss = query_gradient(self.apply, self.loss, end[0].detach(), tasks)
                sensitivity = (to_phi, *(torch.zeros_like(slot) for slot in end[1:]))
            sensitivity = torch.autograd.grad(end, leaves, sensitivity, materialize_grads=True)
            state = kept.pop() if kept else None
        return MetaGradient(mean_if_large(sensitivity[0]), query_loss, spent)

    init, update, meta_gradient = no_memory, unchanged, with_own_memory

    def _start(self, theta: Tensor, tasks: Tasks) -> State:
        phi = theta.detach().expand(len(tasks), -1)
        return phi, *(torch.zeros_like(phi) for _ in range(INNER_OPTIMIZERS[self.inner_optimizer].slots))

    def _unroll(self, state: State, tasks: Tasks, first: int, last: int, graph: bool) -> State:
        """Inner steps number first + 1 to last from a state; graph: whether autograd can differentiate the result."""
        phi, *slots = state
        step = INNER_OPTIMIZERS[self.inner_optimizer].step
        for k in range(first, last):
            gradient = self._gradient(phi, *self._batch(tasks, k), graph)
            phi, slots = step(phi, gradient, tuple(slots), self.inner_lr, k + 1)
        return phi, *slots

    def _gradient(self, phi: Tensor, x: Points, y: Points, graph: bool) -> Tensor:
        gradients = derivatives.differentiable_gradients if graph else derivatives.gradients
        return gradients(self.apply, self.loss, phi, x, y)

    def _batch(self, tasks: Tasks, step: int) -> tuple[Points, Points]:
        """The support points of an inner step."""
        if self.inner_batch is None:
            return tasks.support
        points = tasks.shot
        if self.inner_batch > points:
            raise InputError(f"inner_batch {self.inner_batch} is more than the {points} support points of a task")
        rounds, place = divmod(step, points // self.inner_batch)
        order = torch.randperm(points, generator=torch.Generator().manual_seed(rounds))
        chosen = order[place * self.inner_batch :][: self.inner_batch].to(tasks.device, non_blocking=True)

        def some(tensor: Tensor) -> Tensor:
            return tensor[:, chosen] if tensor.ndim > 1 else tensor  # one number a task has no points

        x, y = (map_points(some, part) for part in tasks.support)
        return x, y
