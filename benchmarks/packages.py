"""Unrolled MAML by the packages `higher`, `torchopt` and `torch-maml`, task by task as they do it; all optional."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from amaml import MetaGradient, Tasks
from amaml.flow.field import Evaluations


class Higher:
    """MAML through higher 0.2.1: a monkey-patched copy of the network and a differentiable SGD for each task."""

    def __init__(self, module: nn.Module, loss, inner_lr: float, inner_steps: int) -> None:
        import higher

        self.higher, self.module, self.loss, self.lr, self.steps = higher, module, loss, inner_lr, inner_steps

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        torch.nn.utils.vector_to_parameters(theta, self.module.parameters())
        self.module.zero_grad()
        losses = []
        for i in range(len(tasks)):
            optimizer = torch.optim.SGD(self.module.parameters(), lr=self.lr)
            with self.higher.innerloop_ctx(self.module, optimizer, copy_initial_weights=False) as (net, inner):
                for _ in range(self.steps):
                    inner.step(self.loss(net(tasks.support_x[i]), tasks.support_y[i]))
                losses.append(_query_loss(net, self.loss, tasks, i))
        return _gradient(self.module.parameters(), losses, self.steps)


class TorchOpt:
    """MAML through TorchOpt 0.7.3: a differentiable SGD whose steps are taken back after each task."""

    def __init__(self, module: nn.Module, loss, inner_lr: float, inner_steps: int) -> None:
        import torchopt

        self.torchopt, self.module, self.loss, self.lr, self.steps = torchopt, module, loss, inner_lr, inner_steps

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        torch.nn.utils.vector_to_parameters(theta, self.module.parameters())
        self.module.zero_grad()
        optimizer = self.torchopt.MetaSGD(self.module, lr=self.lr)
        start = [self.torchopt.extract_state_dict(part, by="reference") for part in (self.module, optimizer)]
        parameters, losses = list(self.module.parameters()), []
        for i in range(len(tasks)):
            for _ in range(self.steps):
                optimizer.step(self.loss(self.module(tasks.support_x[i]), tasks.support_y[i]))
            losses.append(_query_loss(self.module, self.loss, tasks, i))
            for part, state in zip((self.module, optimizer), start, strict=True):
                self.torchopt.recover_state_dict(part, state)
        return _gradient(parameters, losses, self.steps)


class TorchMAML:
    """MAML through torch-maml 1.0 (memory-efficient MAML); checkpoint_steps=None unrolls all steps."""

    def __init__(
        self, module: nn.Module, loss, inner_lr: float, inner_steps: int, checkpoint_steps: int | None
    ) -> None:
        import torch_maml

        kind = torch_maml.NaiveMAML if checkpoint_steps is None else torch_maml.GradientCheckpointMAML
        options = {} if checkpoint_steps is None else {"checkpoint_steps": checkpoint_steps}
        self.module, self.loss, self.steps = module, loss, inner_steps
        self.maml = kind(module, self._inner_loss, optimizer=torch_maml.IngraphGradientDescent(inner_lr), **options)

    def _inner_loss(self, net, batch) -> Tensor:
        x, y = batch
        return self.loss(net(x), y)

    def meta_gradient(self, theta: Tensor, tasks: Tasks) -> MetaGradient:
        torch.nn.utils.vector_to_parameters(theta, self.module.parameters())
        self.module.zero_grad()
        losses = []
        for i in range(len(tasks)):
            batch = (tasks.support_x[i], tasks.support_y[i])
            updated, *_ = self.maml([batch] * self.steps)
            losses.append(_query_loss(updated, self.loss, tasks, i))
        return _gradient(self.module.parameters(), losses, self.steps)


def _query_loss(net, loss, tasks: Tasks, i: int) -> Tensor:
    """Of an adapted network on task i; its share of the mean goes back to the network's parameters."""
    query_loss = loss(net(tasks.query_x[i]), tasks.query_y[i])
    (query_loss / len(tasks)).backward()
    return query_loss.detach()


def _gradient(parameters: Iterable[nn.Parameter], losses: list[Tensor], steps: int) -> MetaGradient:
    value = torch.cat([p.grad.reshape(-1) for p in parameters])
    return MetaGradient(value[None], torch.stack(losses), Evaluations(steps, steps))
