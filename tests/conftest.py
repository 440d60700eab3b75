"""What every test shares: one thread, so that seconds and bits do not depend on the machine's load."""

import os

import pytest
import torch
from helpers import archives

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for run.py in a process of its own


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory) -> str:
    """A data root with every data set in its publisher's layout, made up."""
    root = tmp_path_factory.mktemp("data")
    archives.every_set(root)
    return str(root)
