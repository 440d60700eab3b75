"""Modules of any kind: what torch can batch over tasks, and what goes task by task."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from amaml import Adaptation, mse

LR, STEPS = 0.03, 3


def maml(module, loss=mse, **options) -> Adaptation:
    """By a few steps of gradient descent themselves."""
    return Adaptation(module, loss, LR, STEPS, **{"method": "maml"} | options)


LINKS = torch.tensor([[0.0, 1, 0, 0], [2, 0, 0, 3], [0, 0, 0, 0], [1, 0, 4, 0]]).double().to_sparse()


class Forward(nn.Module):
    """Parts, and what forward does with them."""

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part) if isinstance(part, nn.Module) else self.register_buffer(name, part)

    def forward(self, x):
        return self.function(self, x)


def two_layers(between, **parts) -> Forward:
    """between(module, first layer's output, x)."""
    return Forward(lambda m, x: m.out(between(m, m.into(x), x)), **parts, into=nn.Linear(2, 4), out=nn.Linear(4, 1))


def physics(m, x):
    x = x.detach().requires_grad_()
    u = m.net(x)
    return u + torch.autograd.grad(u.sum(), x, create_graph=True)[0].sum(-1, keepdim=True)


def laplacian(m, x):
    of_point = torch.func.hessian(lambda point: m.net(point)[0])
    return m.net(x) + torch.vmap(lambda point: of_point(point).trace())(x)[:, None]


def filled(m, h, x):
    new = torch.zeros(len(x), 4, dtype=x.dtype)
    for i in range(4):
        new[:, i] = h[:, i] * (i + 1)
    return new


def masked_in_place(m, h, x):
    m.out.weight.data *= (m.out.weight > -0.2).to(x.dtype)
    return h.tanh()


class Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def hooked():
    module = two_layers(lambda m, h, x: h.tanh())
    module.out.register_full_backward_hook(lambda part, into, out: None)
    return module


def doubled(m, h, x):
    if h.requires_grad:
        h.register_hook(lambda gradient: 2 * gradient)
    return h.tanh()


def counting(m, x):
    m.calls += 1
    return m.net(x) * m.calls


def moving(m, x):
    h = m.net(x)
    m.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
    return h - m.mean


def stored(m, h, x, box=SimpleNamespace()):  # noqa: B008 - one for all
    m.last = box.last = h.tanh()
    return m.last


def embedded(**options):
    return two_layers(lambda m, h, x: h + m.table((x > 0).long().sum(1)), table=nn.Embedding(3, 4, **options))


def attention(product=F.scaled_dot_product_attention):
    def forward(m, x):
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(0, 1) for part in m.into(x).chunk(3, -1))
        return m.out(product(q, k, v).transpose(0, 1).flatten(1))

    return Forward(forward, into=nn.Linear(2, 12), out=nn.Linear(4, 1))


def recurrent(kind):
    def between(m, h, x):
        return m.rnn(h[:, None].expand(-1, 4, -1))[0][:, -1]

    return lambda: two_layers(between, rnn=kind(4, 4, batch_first=True))


def encoder(**options):
    layer = nn.TransformerEncoderLayer(4, 2, 6, activation="gelu", batch_first=True, **options)
    return two_layers(lambda m, h, x: m.layer(h[None])[0], layer=layer)


def fourier(m, h, x):
    return m.scale.weight * torch.fft.irfft(torch.fft.rfft(h) * torch.view_as_complex(m.kernel.weight), n=4)


def layers(wrapped=lambda layer: layer) -> nn.Sequential:
    return nn.Sequential(wrapped(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 1)).double()


def messages(m, h, x):
    return h.index_add(0, (x[:, 0] > 0).nonzero()[:, 0], h[(x[:, 0] > 0)].tanh())


CASES = {
    "LSTM": recurrent(nn.LSTM),
    "GRU": recurrent(nn.GRU),
    "encoder layer, train": lambda: encoder(dropout=0.0),
    "encoder layer, eval": lambda: encoder().eval(),
    "attention": attention,
    "Fourier": lambda: two_layers(  # at an odd place among the parameters
        fourier, scale=nn.Linear(1, 1, bias=False), kernel=nn.Linear(2, 3, bias=False)
    ),
    "counter": lambda: Forward(counting, net=nn.Linear(2, 1), calls=torch.zeros(())),
    "stores": lambda: two_layers(stored),
    "padded embedding": lambda: embedded(padding_idx=1),
    "hard sigmoid": lambda: two_layers(lambda m, h, x: F.hardsigmoid(h)),
    "inverse": lambda: two_layers(lambda m, h, x: h @ torch.linalg.inv(torch.eye(4).to(h) + h.T @ h)),
}
if torch.__version__ >= "2.11":  # torch 2.8 traces none
    CASES["sparse matrix"] = lambda: two_layers(lambda m, h, x: torch.sparse.mm(LINKS, h.tanh().T).T + (LINKS @ h[0]))
ONE_BY_ONE = {  # what torch cannot batch
    "embedding by frequency": lambda: embedded(scale_grad_by_freq=True),
    "moving average": lambda: Forward(moving, net=nn.Linear(2, 1), mean=torch.zeros(1)),
    "spectral norm": lambda: layers(nn.utils.parametrizations.spectral_norm),
    "physics": lambda: Forward(physics, net=layers()),
    "Laplacian": lambda: Forward(laplacian, net=layers()),
    "graph of each task": lambda: two_layers(messages),
    "numbers read": lambda: two_layers(lambda m, h, x: h.tanh() * float(x.abs().max())),
    "fills a tensor": lambda: two_layers(filled),
    "weights masked in place": lambda: two_layers(masked_in_place),
    "old function": lambda: two_layers(lambda m, h, x: Squares.apply(h)),
    "backward hook": hooked,
    "tensor hook": lambda: two_layers(doubled),
    "checkpointed": lambda: two_layers(lambda m, h, x: checkpoint(lambda z: m.into(z).tanh(), x, use_reentrant=False)),
}
OTHERWISE = {  # modules of the same parameters, where torch has no second derivative or computes it otherwise
    "attention": lambda: attention(lambda q, k, v: (q @ k.mT / 2**0.5).softmax(-1) @ v),
    "hard sigmoid": lambda: two_layers(lambda m, h, x: F.relu6(h + 3) / 6),
    "checkpointed": lambda: two_layers(lambda m, h, x: h.tanh()),
}
