"""Letters drawn from matplotlib's fonts: which are classes, what keeps them apart, how they are drawn and kept."""

import unicodedata

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from data import glyphs
from data.glyphs import DRAWINGS, NEAR, SCRIPTS, SIZE, UNEXPLAINED, Glyph


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
