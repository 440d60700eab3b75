"""Unrolled MAML by the packages `higher` and `torch-maml`, task by task as they do it; both optional."""

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
                query_loss = self.loss(net(tasks.query_x[i]), tasks.query_y[i])
                (query_loss / len(tasks)).backward()
                losses.append(query_loss.detach())
        value = torch.cat([p.grad.reshape(-1) for p in self.module.parameters()])
        return MetaGradient(value, torch.stack(losses), Evaluations(self.steps, self.steps))


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
            query_loss = self.loss(updated(tasks.query_x[i]), tasks.query_y[i])
            (query_loss / len(tasks)).backward()
            losses.append(query_loss.detach())
        value = torch.cat([p.grad.reshape(-1) for p in self.module.parameters()])
        return MetaGradient(value, torch.stack(losses), Evaluations(self.steps, self.steps))
