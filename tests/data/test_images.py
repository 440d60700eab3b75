"""N-way K-shot tasks, of which classes and images they are; the letters that are drawn for them from fonts."""

import unicodedata

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from data import Sampling, glyphs
from data.glyphs import DRAWINGS, NEAR, SCRIPTS, SIZE, UNEXPLAINED, Glyph
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


@pytest.fixture(scope="module")
def letters() -> list[Glyph]:
    return glyphs.letters(glyphs.font_files(), SCRIPTS)


@pytest.fixture(scope="module")
def classes(letters) -> list[Glyph]:
    return glyphs.distinct(letters)


@pytest.fixture(scope="module")
def few(classes) -> list[Glyph]:
    """Thirty classes, ten of every split, the splits mixed."""
    chosen = [[c for c in classes if c.split == split][10:40:3] for split in SCRIPTS]
    return [glyph for group in zip(*chosen, strict=True) for glyph in group]


def unexplained(one: np.ndarray, other: np.ndarray) -> float:
    """The larger share of one outline's ink that is further than NEAR from the other's, from the definition."""
    points = [np.argwhere(o.reshape(SIZE, 3, SIZE, 3).mean((1, 3)) > 96) for o in (one, other)]
    far = cdist(*points) > NEAR
    return max(far.all(1).mean(), far.all(0).mean())


def near_by(one: Glyph, other: Glyph) -> bool:
    return min(unexplained(a, b) for a in one.outlines for b in other.outlines) <= UNEXPLAINED


def test_splits_are_by_script_and_each_has_classes_enough(classes):
    scripts = [glyph.script for glyph in classes]
    assert min(scripts.count(script) for group in SCRIPTS.values() for script in group) >= 4
    sizes = {split: sum(glyph.split == split for glyph in classes) for split in SCRIPTS}
    assert sizes["train"] > 500
    assert min(sizes.values()) > 100
    for glyph in classes:
        assert unicodedata.category(unicodedata.lookup(glyph.name))[0] == "L"
        assert glyph.name.startswith(glyph.script + " ")
        assert glyph.script in SCRIPTS[glyph.split]


def test_near_is_the_partial_hausdorff_distance_and_the_first_of_those_that_are_near_is_kept(letters):
    rng = np.random.default_rng(0)
    sample = [letters[i] for i in sorted(rng.choice(300, 36, replace=False))]
    near = glyphs.near_identical(sample)
    expected = [[j <= i and near_by(a, b) for j, b in enumerate(sample)] for i, a in enumerate(sample)]
    assert np.array_equal(near, np.array(expected))
    assert 2 < np.tril(near, -1).sum() < 300
    kept = []
    for i, row in enumerate(expected):
        kept += [i] * (not any(row[j] for j in kept))
    assert glyphs.distinct(sample) == [sample[i] for i in kept]


def test_drawings_of_a_class_differ_and_resemble_it_and_stay_in_the_picture(few):
    content = glyphs.draw(few)
    assert content.images.shape == (len(few) * DRAWINGS, 1, SIZE, SIZE)
    assert content.images.dtype == np.uint8
    assert {split: len(names) for split, names in content.splits.items()} == {"train": 10, "validation": 10, "test": 10}
    by_class = content.images.reshape(len(few), DRAWINGS, -1)
    assert all(len(np.unique(drawings, axis=0)) == DRAWINGS for drawings in by_class)
    assert by_class.max(2).min() > 200
    assert by_class.mean(2).max() < 128
    edge = np.ones((SIZE, SIZE), bool)
    edge[1:-1, 1:-1] = False
    assert (content.images[:, 0, edge] > 0).mean() < 0.02
    still = {g.name: g.outlines[0].reshape(SIZE, 3, SIZE, 3).mean((1, 3)).ravel() for g in few}
    names = [name for group in content.splits.values() for name in group]
    agreement = np.corrcoef(by_class.mean(1), [still[name] for name in names])[: len(few), len(few) :]
    assert (agreement.argmax(1) == np.arange(len(few))).mean() > 0.9


def test_the_set_is_the_same_every_time_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(glyphs, "SCRIPTS", {"train": ("COPTIC",), "test": ("LAO",)})
    first = glyphs.load()
    draw, drawn = glyphs.draw, []
    monkeypatch.setattr(glyphs, "draw", lambda chosen: drawn.append(chosen) or draw(chosen))
    for times in range(2):
        other = glyphs.load()
        assert len(drawn) == times
        assert other.splits == first.splits
        assert np.array_equal(other.images, first.images)
        (tmp_path / "amaml/Glyphs.npz").unlink()
