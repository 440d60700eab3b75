"""What cannot be, one line each: the value, what is allowed and the remedy, as soon as it is given."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.modules import ONE_BY_ONE, Forward, maml
from helpers.problems import mlp, regression
from helpers.unrolled import Problem, body, half_squares, small
from torch import nn
from torch.autograd import forward_ad
from torch.distributions import Normal

import amaml
from amaml import AMAML, Adaptation, Chunked, Tasks, half_mse
from baselines import FOMAML, IMAML, MAML, Pretrained, Reptile, Scratch

(THETA, APPLY), TASKS, SIX, RATE = mlp(), regression(), torch.ones(3, 6, dtype=torch.float64), {"head.weight": 0.1}
tasks = partial(replace, TASKS)
ASKED, BAD_TIMES = TASKS.support_x.clone().requires_grad_(), ((), (3, 2), (0, 8), (-1,), (1.5,), 2)


def ragged(support: int = 6, query: int = 5, targets: int = 5) -> Tasks:
    """The second task has so many points."""
    row = TASKS.support_x[0], TASKS.support_y[0], TASKS.query_x[0], TASKS.query_y[0]
    return Tasks.ragged([row, [part[:n] for part, n in zip(row, (support, support, query, targets), strict=True)]])


def learner(kind=AMAML, **options):
    return kind(APPLY, half_mse, **{"inner_lr": 0.1, "inner_steps": 10} | options)


def single(one, dtype=torch.float32):
    return one.meta_gradient(THETA.to(dtype), TASKS.to(dtype))


def called(at=None, **options):
    """The way forward and back through an Adaptation."""
    problem = Problem(plain=True)
    return problem.adaptation(**options).adapt(problem.tasks, at=at).sum().backward()


def transformed(way) -> None:
    meta, given = small()
    way(lambda rate: meta(given, inner_lr=rate.sum()))


def forward_mode(function):
    with forward_ad.dual_level():
        function(forward_ad.make_dual(*torch.ones(2, 1).double()))


def batched_back(function):
    rate = torch.ones(1).double().requires_grad_()
    torch.autograd.grad(function(rate), rate, torch.ones(2).double(), is_grads_batched=True)


def changed_later(change) -> None:
    meta, given = small(adapt=None)
    change(meta.module)
    meta(given)


WAYS = forward_mode, *(lambda f, way=way: way(f)(torch.ones(1).double()) for way in (torch.vmap, torch.func.grad))
LEARNED, UNDEFINED = torch.ones(2, dtype=torch.float64, requires_grad=True), "defines no meta-gradient of"
READING = ONE_BY_ONE["numbers read"]().double()
OF_TASKS = [
    (lambda: tasks(support_x=TASKS.support_x.numpy()), "support_x must be .*got ndarray; torch.as_tensor"),
    (lambda: tasks(support_y=None), "support_y must be a torch.Tensor, got NoneType"),
    (lambda: tasks(query_x=torch.nested.nested_tensor(list(TASKS.query_x), layout=torch.jagged)), "Tasks.ragged"),
    (lambda: tasks(query_x=TASKS.query_x[:1], query_y=TASKS.query_y[:1]), "same first axis"),
    (lambda: tasks(support_y=TASKS.support_y[:, :2]), "inputs and targets disagree"),
    (lambda: tasks(support_x=torch.zeros(3, 0, 2), support_y=torch.zeros(3, 0, 1)), r"\(3, 0, 2\) has no points"),
    (lambda: tasks(support_weight=torch.ones(3, 5)), r"support_weight must .* each point, \(3, 6\), got \(3, 5\)"),
    (lambda: TASKS[1], r"take tasks\[1 : 2\]"),  # which takes the axis of tasks away, and points for tasks
    (lambda: Tasks.ragged((torch.zeros(2, n),) * 4 for n in (1, 2)), "numbers of points alone, not in keys"),
    (lambda: ragged(6, 2, 3), r"query set of task 1 \(from 0\) has tensors of \[2, 3\] points"),
    (lambda: small()[0]((1, 2)), "tasks must be amaml.Tasks, got tuple"),
    (lambda: learner(FOMAML).adapt(THETA, (TASKS.support_x, TASKS.support_y)), "tasks must be amaml.Tasks, got tuple"),
    (lambda: small()[0](tasks(query_weight=torch.ones(3, 5).double())), r"loss for each .*6 points, got shape \(\)"),
    (lambda: small(loss=half_squares)[0](tasks(support_weight=0 * SIX)), "support_weight adds up to zero for some"),
    (lambda: small()[0](replace(TASKS, shared={"scale": torch.ones(1)})), r"leave Tasks\(shared=...\) out"),
]
OF_LEARNERS = [
    (lambda: learner(solver="rk45"), "did you mean 'rk4'"),
    (lambda: learner(adjoint="discreet"), "did you mean 'discrete'"),
    (lambda: learner(rtol=2), "rtol must lie between 0 and 1, got 2"),
    (lambda: learner(IMAML, prox=0), "positive prox.*got 0"),
    (lambda: learner(IMAML, cg_steps=0), "cg_steps must be a positive integer, got 0"),
    *((lambda r=r: learner(FOMAML, robust=r), "robust must be None") for r in ("median", 0, -1.0, True)),
    (lambda: learner(inner_lr=math.nan * THETA).meta_gradient(THETA, TASKS), "inner_lr holds NaN; an earlier update"),
    *((lambda n=n: Chunked(learner(FOMAML), n), f"task_chunk must be .*, got {n}") for n in (0, -1, 2.0)),
    *((lambda d=d: single(learner(), d), "rounding spoils the adjoint") for d in (torch.float16, torch.bfloat16)),
    (lambda: single(learner(rtol=1e-5)), "rtol 1e-05 is more than torch.float32 can reach; use 0.0001 or more, or fl"),
    *(
        (lambda kind=kind, loop=loop: learner(kind, **loop), f"{next(iter(loop))}.*got")
        for kind in (AMAML, MAML, FOMAML, IMAML, Reptile, Scratch, Pretrained)
        for loop in ({"inner_lr": 0.0}, {"inner_lr": -1.0}, {"inner_steps": 0}, {"inner_steps": 2.5})
    ),
    (lambda: maml(nn.BatchNorm1d(2).double())(regression(shots=1)), "batch norm needs more than one .* more support"),
]
OF_ADAPTATION = [
    (lambda: small(adapt=("heads",)), r"unknown name in adapt.*'heads'; did you mean 'head'"),
    (lambda: small(adapt="head"), r"adapt must be a tuple of names, got 'head'; write adapt=\('head',\)"),
    *((lambda a=a: small(adapt=a), "a tuple of names, as named_param") for a in ((nn.Linear(1, 1),), iter(()))),
    (lambda: small(method="mamml"), r"unknown method 'mamml'; did you mean 'maml'"),
    (lambda: small(solvr="auto"), r"unknown keyword of method amaml 'solvr'; did you mean 'solver'"),
    (lambda: small(inner_lr=RATE), r"must have a rate for every adapted parameter: \['head.bias'\] missing"),
    (lambda: small(inner_lr=RATE | {"head.bias": torch.ones(2)}), r"head.bias is .* of shape \(2,\); give a scalar"),
    (lambda: small(inner_lr=RATE | {"head.bias": -0.1}, solver="auto"), r"negative rate, -0.1, which no flow.*exp\(\)"),
    (lambda: small(inner_lr=RATE | {"head.bias": "0.1"}), "inner_lr of head.bias is str; give a scalar"),
    (lambda: setattr(small()[0], "method", "fomaml"), "method of an Adaptation stays as it was given"),
    (lambda: small()[0].set_extra_state({"problem": 1}), "the state_dict.. is not of method"),
    (lambda: small(method="fomaml", prox=0.1), "method fomaml has no prox"),
    (lambda: small(inner_steps=True), "inner_steps must be a positive integer, got True"),
    (lambda: small(rtol="1e-3"), "rtol must lie between 0 and 1, got '1e-3'"),
    (lambda: small(solver=None), "unknown solver None"),
    *(
        (lambda w=w: small(query_steps=(2, 5), query_weights=(1, w)), "query_weights must have a number for each of 2")
        for w in ("a", math.nan)
    ),
    (lambda: small(method="fomaml")[0](replace(TASKS, support_x=ASKED)), f"{UNDEFINED} support_x.*amaml or maml"),
    (lambda: small(method="imaml", inner_lr=LEARNED[0])[0](TASKS), f"method imaml {UNDEFINED} inner_lr"),
    (lambda: small(method="reptile")[0](TASKS), f"method reptile {UNDEFINED} shared.body.0.weight"),
    (lambda: small(loss=nn.PReLU()), "the parameter weight of the loss requires a gradient"),
    (lambda: maml(Forward(None, net=nn.Linear(2, 1).double(), scale=LEARNED)), "the buffer scale of .* requires a g"),
    (lambda: Adaptation(lambda x: x, half_mse, 0.1, 3), "module must be an nn.Module, got function"),
    (lambda: changed_later(lambda m: m.requires_grad_(False)), "no parameter of the module requires a gradient; thaw"),
    (lambda: changed_later(lambda m: setattr(m, "head", nn.LazyLinear(1))), "parameter 'head.weight' has no shape yet"),
    (lambda: changed_later(lambda m: m.head.float()), "one dtype on one device, found: torch.float32 on cpu, torch"),
    (
        lambda: small(inner_batch=2)[0](tasks(support_x=(TASKS.support_x, torch.zeros(3, 2, 7).double()))),
        r"inner_batch takes some of the 6 points.* support_x.1 \(3, 2, 7\) has another number; leave inner_batch out",
    ),
    (lambda: small(loss=half_squares, inner_batch=2)[0](ragged(1)), "inner_batch takes the same points of every task"),
    (lambda: maml(READING, batched=True)(TASKS), r"cannot batch.*Forward, modules.py line \d+: .*batched=False goes"),
    (lambda: maml(torch.jit.script(nn.Linear(2, 1))), "is scripted.*give the module that was scripted"),
    (lambda: maml(nn.ParameterList([torch.zeros(0)])), "no parameter of the module requires a gradient; thaw"),
    (lambda: small()[0](TASKS, at=(1, 2), weights=LEARNED), "query_weights require a gradient and would get none"),
    *((lambda way=way: transformed(way), "no transform of torch.func") for way in WAYS),
    (lambda: transformed(batched_back), "is_grads_batched and vectorize=True cannot batch this backward pass"),
    (lambda: small()[0].adapt(TASKS, inner_steps=0), "inner_steps must be a positive integer, got 0"),
    *((lambda at=at: small()[0].adapt(TASKS, at=at), "at must be increasing numbers") for at in BAD_TIMES),
]
OF_INNER_LOOPS = [
    ({"inner_lr": [0.1, 0.2]}, "a schedule has a size for each of the 7 inner steps, got 2"),
    ({"inner_lr": torch.optim.SGD([torch.zeros(1)], 0.1)}, "inner_lr must be a number.* got SGD"),
    ({"inner_optimizer": "adam", "momentum": 0.9}, "unknown keyword of the inner optimizer adam 'momentum'"),
    ({"inner_optimizer": "adamm"}, "unknown inner optimizer 'adamm'; did you mean 'adam'"),
    ({"inner_optimizer": "sgd", "momentum": 1.5}, r"momentum must be in \[0, 1\), got 1.5"),
    ({"inner_optimizer": lambda g, state, step: (g * LEARNED[0], ())}, "rule of the inner optimizer uses a tensor"),
    ({"inner_optimizer": lambda g, state, step: g}, r"must make \(update, state\) .* too many values to unpack"),
    ({"inner_optimizer": lambda g, state, step: (g, [g.norm()])}, r"of a gradient \(\d+,\) it makes \(\d+,\), \(\)"),
    ({"inner_optimizer": lambda g, state, step: (g / max(1, g.norm()), ())}, "in the place of if and max"),
    ({"inner_optimizer": "sgd", "momentum": torch.ones(2)}, r"tensor of one, got torch.float32 of shape \(2,\)"),
    ({"method": "amaml", "solver": "rk4", "inner_optimizer": "adam"}, "solver rk4 follows plain gradient descent"),
    ({"adjoint": "continuous", "inner_batch": 2}, "adjoint continuous is that of plain gradient descent"),
    *(({"inner_batch": n}, "inner_batch must be 1 to 6 support points.* got") for n in (9, 0, 2.5, True, [[0]] * 7)),
    ({"inner_batch": torch.tensor([[6]] * 7)}, "tensor .7 steps, n. of their numbers from 0 to 5, got"),
    *(({"inner_lr": lr}, "a schedule gives no number for each inner step") for lr in ([0.1, None], lambda: 0.1)),
    *(({name: torch.tensor(0.1j)}, f"{name} must be a number.* got torch.complex64") for name in ("inner_lr", "prox")),
    ({"method": "imaml", "at": (1, 7)}, "the end of its inner loop alone, 7 steps, got"),
    ({"inner_lr": math.inf}, "inner_lr must be a positive number, got inf"),
    ({"prox": "weak"}, "prox must be zero or a positive number, got 'weak'"),
    ({"inner_optimizer": torch.optim.Adam}, "inner_optimizer must be one of .* got Adam"),
    ({"inner_optimizer": "adam", "betas": 0.9}, "betas must be two numbers"),
    ({"method": "reptile"}, f"method reptile {UNDEFINED} phi"),
]
OF_INNER_LOOPS = [(lambda options=options: called(**options), message) for options, message in OF_INNER_LOOPS]


SIZE, DROPOUT = r"theta has shape \(50,\), the module has 51 parameters", "is active and has no deterministic gradient"
OF_MODULES = [
    (lambda: amaml.load(amaml.mlp(2, 1, 5).double(), THETA[1:]), SIZE),
    (lambda: APPLY.unflatten(THETA[1:]), SIZE),
    (lambda: amaml.load(amaml.mlp(2, 1, 5), THETA.numpy()), "theta has type ndarray"),
    (lambda: APPLY.pieces([0.0]), "theta has type list"),
    (lambda: amaml.predict(APPLY, THETA[None], ()), r"points without a tensor, \(\)"),
    (lambda: APPLY(THETA[1:], torch.zeros(3, 2, dtype=torch.float64)), SIZE),
    (lambda: APPLY.unflatten(THETA.expand(2, -1)), r"theta has shape \(2, 51\), the module has 51"),
    (lambda: amaml.flatten(nn.ModuleDict({"a": nn.MultiheadAttention(2, 1, 0.5)})), f"dropout 'a' {DROPOUT}"),
    (lambda: amaml.flatten(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))), f"dropout '1' {DROPOUT}"),
    (lambda: amaml.flatten(nn.TransformerEncoderLayer(4, 2)), f"dropout 'self_attn' {DROPOUT}"),
    (lambda: amaml.flatten(nn.Sequential(nn.LazyLinear(3), nn.Tanh())), "parameter '0.weight' has no shape yet"),
    (lambda: maml(torch.inference_mode()(body)()), r"body.0.weight' was made in torch.inference_mode\(\)"),
    (lambda: amaml.predict(APPLY, THETA, TASKS.query_x), r"phi must be \(tasks, P\).*predict\(apply, phi\[None\]"),
    (lambda: amaml.predict(APPLY, THETA.expand(2, -1), TASKS.query_x), r"phi must be \(tasks, P\)"),
    (lambda: amaml.predict(APPLY, THETA[None], (TASKS.query_x.numpy(),)), "x.0 must be a torch.Tensor, got ndarray"),
    (lambda: amaml.predict(lambda p, x: Normal(x, 1), THETA[None], TASKS.query_x[:1]), "returns a Normal, in which"),
    (lambda: amaml.predict(lambda p, x: {x}, THETA[None], TASKS.query_x[:1]), "returns a set, in which"),
    (lambda: amaml.predict(lambda p, x: iter((x,)), THETA[None], TASKS.query_x[:1]), "returns a tuple_iterator, in"),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of forward_ad
@pytest.mark.parametrize(("make", "message"), OF_TASKS + OF_LEARNERS + OF_ADAPTATION + OF_INNER_LOOPS + OF_MODULES)
def test_it_is_told(make, message):
    with pytest.raises(amaml.InputError, match=message):
        make()


def test_a_loss_whose_parameters_are_frozen_is_taken():
    small(loss=nn.PReLU().requires_grad_(False))
