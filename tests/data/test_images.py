"""N-way K-shot tasks: what is drawn, from which classes, and that it is drawn again."""

import numpy as np
import pytest
import torch

from amaml.errors import InputError
from data import Sampling
from data.image_files import ImageSet
from data.images import Images

SPLITS = ("train", "validation", "test")


def labelled(train=7, validation=5, test=6, counts=(4, 6, 5)) -> ImageSet:
    """Images whose first pixels tell split, class and drawing."""
    images, splits = [], {}
    for split, classes in enumerate((train, validation, test)):
        sizes = [counts[i % len(counts)] for i in range(classes)]
        told = [(split, label, drawing) for label, size in enumerate(sizes) for drawing in range(size)]
        images.append(np.zeros((len(told), 1, 3, 3), np.uint8))
        images[-1][:, 0, 0] = told
        splits[SPLITS[split]] = {f"class {i}": size for i, size in enumerate(sizes)}
    return ImageSet(np.concatenate(images), splits)


def domain(content=None, turned=False, **changes) -> Images:
    class Made(Images):
        rotations = turned

        def load(self):
            return content or labelled()

    return Made(Sampling(**{"shots": 1, "queries": 2, "meta_batch": 3, "seed": 0, "ways": 3} | changes))


def told(x):
    """split, class and drawing of every image, (tasks, points, 3)."""
    return (255 * x[:, :, 0, 0]).round().long()


@pytest.mark.parametrize("split", ["train", "test"])
def test_tasks_are_of_their_split_with_distinct_classes_and_images(split):
    images = domain(shots=2, queries=2, meta_batch=40)
    tasks = images.episode(40) if split == "train" else images.meta_test(40)
    assert tasks.support_x.shape == tasks.query_x.shape == (40, 6, 1, 3, 3)
    shown = told(torch.cat([tasks.support_x, tasks.query_x], 1))
    labels = torch.cat([tasks.support_y, tasks.query_y], 1)
    assert (shown[..., 0] == SPLITS.index(split)).all()
    for task in range(40):
        of_label = [shown[task, labels[task] == label] for label in range(3)]
        assert [len(own.unique(dim=0)) for own in of_label] == [4] * 3  # no image twice, in support or in query
        assert all(len(own[:, 1].unique()) == 1 for own in of_label)
        assert len(shown[task, :, 1].unique()) == 3  # one class a label


def test_a_slice_of_the_meta_test_reads_no_other_images(monkeypatch):
    images, read = domain(), []
    select = torch.Tensor.index_select
    monkeypatch.setattr(torch.Tensor, "index_select", lambda x, dim, i: read.append(len(i)) or select(x, dim, i))
    slice_ = images.meta_test(4, first=100)
    assert read == [4 * 3 * 1, 4 * 3 * 2]
    assert slice_.test_x is slice_.query_x
    assert slice_.test_y is slice_.query_y


def test_turned_images_are_new_training_classes():
    content = labelled(train=2, test=8, counts=(4,))
    tasks = domain(content, turned=True, ways=8, shots=3, queries=1, meta_batch=1).episode(0)
    turned = torch.cat([tasks.support_x[0], tasks.query_x[0]])
    found = {(255 * image).round().to(torch.uint8).numpy().tobytes() for image in turned}
    expected = {np.rot90(i[0], turns).tobytes() for i in content.split("train")[0] for turns in range(4)}
    assert found == expected
    test = domain(content, turned=True).meta_test(50)
    assert (told(test.test_x)[..., 0] == 2).all()  # none of them is turned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 1}, "--ways 1 .* at least 2"),
        ({"ways": 8}, "--ways 8 is more than the 7 train classes"),
        ({"ways": 8, "turned": True}, "--ways 8 is more than the 6 test classes"),
        ({"shots": 3, "queries": 2}, "--shots and --queries: together 5 is more than the 4 images of a train class"),
    ],
)
def test_more_than_a_split_holds_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        domain(**changes)
