"""A module is given back as it was, after faults, to other threads and to forks; what changes in it is seen."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.modules import layers, maml, two_layers
from helpers.problems import generator, regression
from torch import nn

from amaml import InputError
from amaml.engine.calling import exclusive


def test_a_call_that_fails_or_is_interrupted_gives_the_module_back():
    def forward(m, h, x):
        m.kept.append(h)
        if len(m.kept) > 1:
            raise m.ends
        return h

    module = two_layers(forward).double()
    module.ends, module.kept = None, []
    meta, kinds = maml(module), [type(p) for p in module.parameters()]
    for ends, expected in ((KeyboardInterrupt(), KeyboardInterrupt), (RuntimeError("broken"), InputError)):
        module.kept, module.ends = [torch.zeros(1)], ends
        with pytest.raises(expected, match="test_calling.py line .*broken" if expected is InputError else None):
            meta(regression())
        assert [type(p) for p in module.parameters()] == kinds
        assert len(module.kept) == 1


def test_tensors_in_attributes_are_given_back_and_written_into_in_a_batch():
    def forward(m, h, x):
        m.calls += 1
        m.kept["calls"].add_(1)
        return h.tanh()

    module = two_layers(forward).double()
    module.calls, module.kept = torch.zeros(1), {"calls": torch.zeros(1)}
    meta = maml(module, batched=True)
    meta(regression()).backward()
    meta.predict(meta.adapt(regression()), regression().query_x)
    assert not module.calls
    assert not module.kept["calls"]


def test_threads_wait_for_each_other():
    module = two_layers(lambda m, h, x: h.tanh()).double()
    meta, traced, interval, wrong = maml(module), maml(module), sys.getswitchinterval(), []
    phi = torch.randn(4, 1, 17, generator=generator(), dtype=torch.float64)
    tasks = [regression(tasks=1, seed=seed) for seed in range(4)]
    expected = [meta.predict(phi[k], tasks[k].query_x) for k in range(4)]

    def work(k):
        if k == 0:
            traced(tasks[0])
        wrong.extend(k for _ in range(20) if not torch.equal(meta.predict(phi[k], tasks[k].query_x), expected[k]))

    try:
        sys.setswitchinterval(1e-5)
        with ThreadPoolExecutor() as threads:
            list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert all(isinstance(p, nn.Parameter) for p in module.parameters())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="without os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_waits_for_calls_of_other_threads():
    taken, forked = threading.Event(), threading.Event()

    def work():
        with exclusive:
            taken.set()
            forked.wait(0.2)

    thread = threading.Thread(target=work)
    thread.start()
    taken.wait()
    child = os.fork()
    if not child:
        os._exit(0 if exclusive.acquire(timeout=5) else 1)
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_module_changed_after_wrapping_is_seen():
    module = layers()
    meta = maml(module, method="fomaml")  # of few graphs
    before = meta(regression()).item()
    for change in (
        lambda: module.append(nn.Linear(1, 1).double()),
        lambda: module[0].requires_grad_(False),
        lambda: module[0].requires_grad_(True),
        lambda: module.__setitem__(1, nn.ReLU()),
    ):
        change()
        fresh = maml(module, method="fomaml")
        assert meta(regression()).item() == pytest.approx(fresh(regression()).item(), rel=1e-12)
        assert abs(meta(regression()).item() - before) > 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_and_parallel_modules_are_unwrapped():
    module = layers()
    inside = nn.Sequential(torch.compile(module[0]), module[1], module[2])
    wrapped = module, torch.compile(module), nn.DataParallel(module), inside
    assert len({maml(one, adapt=("2",))(regression()).item() for one in wrapped}) == 1
