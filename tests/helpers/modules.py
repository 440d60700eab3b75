"""Modules of any kind, what torch can batch over tasks and what not; what a user changes in a loss between calls."""

from functools import partial, wraps
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from amaml import Adaptation, half_mse, mse

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
    "spectral norm": lambda: layers(nn.utils.parametrizations.spectral_norm),
    "physics": lambda: Forward(physics, net=layers()),
    "Laplacian": lambda: Forward(laplacian, net=layers()),
    "numbers read": lambda: two_layers(lambda m, h, x: h.tanh() * float(x.abs().max())),
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


def number(value) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


WEIGHT = number(1.0)  # read by a loss as a global
NO_STATISTICS = {"running_mean": None, "running_var": None, "num_batches_tracked": None}


class Used:
    """Numbers, tensors and layers that apply or loss use."""

    def __init__(self) -> None:
        self.factor, self.weight, self.held = 1.0, number(1.0), {"tensors": [number(1.0)]}
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double().eval()

    def method(self, prediction, target):
        return self.factor * self.tensor() * half_mse(prediction, target)

    def tensor(self):
        return self.held["tensors"][0]


def of_an_attribute(used, apply):
    return apply, lambda p, t: used.weight * half_mse(p, t)


def of_a_global(used, apply):
    return apply, lambda p, t: WEIGHT * half_mse(p, t)


def of_a_cell(used, apply):
    weight = number(1.0)

    def rebind():
        nonlocal weight
        weight = number(3.0)

    used.rebind = rebind
    return apply, lambda p, t: weight * half_mse(p, t)


def of_a_method(used, apply):
    return apply, used.method


def of_a_partial(used, apply):
    return apply, partial(lambda held, p, t: held["tensors"][0] * half_mse(p, t), used.held)


def of_a_wrapped(used, apply):
    """A function that says to be what it wraps."""
    return apply, wraps(F.mse_loss)(lambda p, t: used.factor * F.mse_loss(p, t))


def encoded(used, apply):
    return lambda theta, x: apply(theta, used.encoder(x)), half_mse


# makers of apply and loss, and what is changed of what these use; in NEW_GRAPH more than that a tensor is another one
NEW_GRAPH = {
    "attribute": (of_a_method, lambda used: setattr(used, "factor", 3.0)),
    "wrapped function": (of_a_wrapped, lambda used: setattr(used, "factor", 3.0)),
    "other dtype": (of_an_attribute, lambda used: setattr(used, "weight", torch.tensor(3))),
    "mode of an encoder": (encoded, lambda used: vars(used.encoder[1]).update(_buffers=NO_STATISTICS)),
}
CHANGES = NEW_GRAPH | {
    "tensor": (of_an_attribute, lambda used: setattr(used, "weight", number(3.0))),
    "tensor changed in place": (of_an_attribute, lambda used: used.weight.fill_(3.0)),
    "rebound name": (of_a_cell, lambda used: used.rebind()),
    "global": (of_a_global, lambda used: globals().update(WEIGHT=3 * WEIGHT)),
    "tensor held by a method": (of_a_method, lambda used: used.held.update(tensors=[number(3.0)])),
    "argument of a partial": (of_a_partial, lambda used: used.held["tensors"].__setitem__(0, number(3.0))),
    "parameter of an encoder": (encoded, lambda used: setattr(used.encoder[0], "bias", nn.Parameter(number([3, 0])))),
}
