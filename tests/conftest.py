"""What every test shares: one thread, so that seconds and bits do not depend on the machine's load."""

import os
from collections.abc import Iterator

import pytest
import torch
from helpers import archives

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for run.py in a process of its own


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory) -> Iterator[str]:
    """A data root with every data set in its publisher's layout, made up."""
    from data import image_files

    root = tmp_path_factory.mktemp("data")
    archives.every_set(root)
    with pytest.MonkeyPatch.context() as patch:  # the user's cache is not for these
        patch.setattr(image_files, "cached", lambda name, fingerprint, build: build())
        yield str(root)
