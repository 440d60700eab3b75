"""What an experiment asks of its machine."""

import contextlib
import ctypes

import pytest
import torch

from amaml import InputError, Tasks, flatten, mlp
from data.domain import OTHER_UNITS
from experiment import machine
from experiment.build import Experiment
from experiment.settings import checked, merged
from experiment.stop import StopRequest


class Libc:
    """Notes what it is asked to do with the heap."""

    def __init__(self):
        self.calls = []

    def mallopt(self, parameter, value):
        self.calls.append(value >> 20)

    def malloc_trim(self, pad):
        self.calls.append("trim")


class Domain:
    """Tasks of two points each, all the same."""

    images = False
    objective = OTHER_UNITS

    def meta_test(self, count, first=0):
        return Tasks(*[torch.ones(count, 2, 1)] * 6)


@pytest.fixture
def libc(monkeypatch):
    made = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: made)
    return made


def test_the_heap_is_trimmed_at_every_record_and_left_as_it_was(libc):
    with contextlib.suppress(KeyboardInterrupt), machine.steady_memory() as trim:
        trim()
        raise KeyboardInterrupt
    assert libc.calls == [16, "trim", "trim", 32, "trim"]


def test_a_system_without_glibc_needs_no_trimming(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with machine.steady_memory() as trim:
        trim()


def test_a_meta_test_trims(libc):
    s = checked({**vars(merged({"domain": "CosMixture"})), "protocol": "finetune", "test_tasks": 2, "test_epochs": 20})
    theta, apply = flatten(mlp(1, 1, 3))
    Experiment(s, Domain(), apply, theta, theta, None).meta_test(theta, 0, StopRequest())
    assert libc.calls.count("trim") == 2 + 3  # at the beginning and the end, and after 0, 10 and 20 epochs


def test_memory_that_is_not_there_is_refused(monkeypatch):
    machine.check_memory(1, "cpu", "one byte takes")
    with pytest.raises(InputError, match=r"all of it takes at least [\d,]+ GiB of memory, cpu has [\d,]+"):
        machine.check_memory(2**60, "cpu", "all of it takes")


def test_a_device_that_is_not_there_is_refused():
    machine.check_device("cpu")
    with pytest.raises(InputError, match="--device 'cuda:99' is not there; this machine has: cpu"):
        machine.check_device("cuda:99")
