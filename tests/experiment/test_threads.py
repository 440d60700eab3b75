"""How many threads a run takes: measured, or as it is told."""

import time

import pytest
import torch

from experiment import threads


@pytest.fixture
def two(monkeypatch):
    """A machine of two threads and nothing said of them; torch's own number is put back."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def work(alone: float, together: float):
    """Something that takes so many seconds with one thread, and with two."""
    return lambda: time.sleep(alone if torch.get_num_threads() == 1 else together)


@pytest.mark.parametrize(("alone", "together", "taken"), [(0.01, 0.03, 1), (0.03, 0.01, 2), (0.02, 0.02, 1)])
@pytest.mark.usefixtures("two")
def test_as_many_threads_are_taken_as_are_faster(alone, together, taken):
    assert threads.choose(lambda: work(alone, together)) == taken
    assert torch.get_num_threads() == taken


@pytest.mark.usefixtures("two")
def test_a_number_that_is_given_is_taken_without_measuring(monkeypatch):
    def never():
        raise AssertionError("measured")

    assert threads.choose(never, given=1) == 1
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.choose(never) == 2
