"""Image sets in their publishers' layouts: the same pixels from each, decoded once, one line for what is unreadable."""

import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.archives import REAL, as_folders, as_pickles, as_tables, cifar, omniglot, pictures
from PIL import Image

from amaml.errors import InputError
from data import image_files
from data.image_files import ImageSet, cached
from data.images import CIFARFS, Images, MiniImageNet, Omniglot


def load(domain: type[Images], root: Path | str | None) -> ImageSet:
    """The images of a data root as the domain reads them."""
    return image_files.load(domain.source, domain.find, root and str(root))


@pytest.fixture(scope="module")
def classes():
    return pictures(train=3, others=2)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A user's cache of the test's own."""
    monkeypatch.setattr(image_files, "cached", cached)  # which others leave out
    monkeypatch.setenv("XDG_CACHE_HOME", str(home := tmp_path_factory.mktemp("cache")))
    return home / "amaml"


def change(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


def of_numpy_1(folder: Path, classes) -> None:
    as_pickles(folder, classes, protocol=2)
    for path in folder.glob("*.pkl"):
        change(path, b"numpy._core", b"numpy.core")


LAYOUTS = {
    "pickles": as_pickles,
    "pickles of an older NumPy": of_numpy_1,
    "pickles of protocol 5": partial(as_pickles, protocol=5),
    "tables": as_tables,
    "folders": as_folders,
}


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_mini_imagenet_is_the_same_in_every_layout(tmp_path, classes, write):
    folder = tmp_path / ("mini-imagenet" if write in (as_tables, as_folders) else "")
    folder.mkdir(exist_ok=True)
    write(folder, classes)
    content = load(MiniImageNet, tmp_path)
    for split, group in classes.items():
        images, counts = content.split(split)
        assert list(content.splits[split]) == list(group)
        assert counts.tolist() == [4] * len(group)
        assert np.array_equal(images, np.concatenate(list(group.values())).transpose(0, 3, 1, 2))


def test_pictures_of_another_size_are_resized(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for name, shape in (("grey", (100, 100)), ("colour", (100, 100, 3))):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / part / name / "0.jpg")
    assert load(MiniImageNet, tmp_path).images.shape == (6, 3, 84, 84)


def test_cifar_fs(tmp_path):
    cifar(tmp_path)
    content = load(CIFARFS, tmp_path)
    splits = {"train": ["apple", "bee", "whale"], "validation": ["can"], "test": ["bus", "pine_tree"]}
    assert {split: list(names) for split, names in content.splits.items()} == splits
    whale = np.asarray(Image.open(tmp_path / "cifar100/data/whale/1.png")).transpose(2, 0, 1)
    assert np.array_equal(content.split("train")[0][7], whale)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload",)


def pickled(images, rows: dict | None = None) -> bytes:
    return pickle.dumps({"image_data": images, "class_dict": rows or {}})


SMALL, WHOLE = (np.zeros((4, n, n, 3), np.uint8) for n in (8, 84))
PICKLES = {
    "a function": (pickled(Payload()), "posix.mkdir|nt.mkdir"),
    "another size": (pickled(SMALL, {"a": [0]}), "uint8 .4, 8, 8, 3"),
    "a row too many": (pickled(WHOLE, {"a": [4]}), "out of bounds"),
    "another content": (pickle.dumps({"images": 0}), "image_data"),
    "cut short": (pickled(0)[:-5], "truncated|expected"),
    "no pickle": (b"no pickle", "invalid load key"),
}


@pytest.mark.parametrize(("content", "reason"), PICKLES.values(), ids=PICKLES)
def test_a_pickle_is_data_or_refused(tmp_path, monkeypatch, classes, content, reason):
    monkeypatch.chdir(tmp_path)
    as_pickles(tmp_path, classes)
    (tmp_path / "mini-imagenet-cache-val.pkl").write_bytes(content)
    with pytest.raises(InputError, match=f"cache-val.pkl.*({reason}).*class_dict"):
        load(MiniImageNet, tmp_path)
    assert not (tmp_path / "payload").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(name: str, content: bytes):
    return lambda root: (root / name).write_bytes(content)


OMNIGLOT = "images_background.zip"
DAMAGES = [
    (CIFARFS, lambda root: (root / "cifar100/splits/bertinetto/val.txt").unlink(), "bertinetto/val.txt is missing"),
    (CIFARFS, lambda root: [p.unlink() for p in root.glob("*/data/bus/*")], "data/bus/.* missing.*fetch it there$"),
    (MiniImageNet, text("train.csv", b"file,class\na,b\n"), "train.csv.*expected the columns"),
    (MiniImageNet, text("val.csv", b"filename,label\n\xff,b\n"), "val.csv.*expected the col"),
    (MiniImageNet, text("test.csv", b"filename,label\na.jpg,b\n"), "images/a.jpg is missing"),
    (MiniImageNet, lambda root: (root / "test.csv").unlink(), "test.csv is missing.*publisher is https://github.com/"),
    (MiniImageNet, lambda root: cut(next((root / "images").iterdir())), "cannot read the image .*images/.*fetch it"),
    (Omniglot, lambda root: cut(root / OMNIGLOT), f"{OMNIGLOT}.*fetch it again"),
    (Omniglot, lambda root: change(root / OMNIGLOT, b"IDAT", b"IDAX"), "0001_01.png.*fetch it again"),
]


@pytest.mark.parametrize(("domain", "spoil", "message"), DAMAGES)
def test_what_is_missing_or_damaged_is_named_with_what_to_do(tmp_path, classes, domain, spoil, message):
    with pytest.raises(InputError, match=f"{domain.source.name} is not in.*nothing was downloaded"):
        load(domain, tmp_path)
    cifar(tmp_path)
    as_tables(tmp_path, classes)
    omniglot(tmp_path, "background", {"Greek": 3})
    spoil(tmp_path)
    with pytest.raises(InputError, match=message) as fault:
        load(domain, tmp_path)
    assert "\n" not in str(fault.value)


def test_omniglot_reads_any_archives_and_merges_what_stands_in_two(tmp_path):
    omniglot(tmp_path / "omniglot", "background_small1", {"Greek": 4, "Latin": 3})
    omniglot(tmp_path / "omniglot", "background_small2", {"Greek": 4, "Tagalog": 5})
    content = load(Omniglot, tmp_path)
    names = [name for classes in content.splits.values() for name in classes]
    sizes = {"Greek": 4, "Latin": 3, "Tagalog": 5}
    assert sorted(names) == sorted(f"{a}/character{i:02}" for a, count in sizes.items() for i in range(1, count + 1))
    assert {split: len(classes) for split, classes in content.splits.items()} == {"train": 9, "test": 3}
    assert list(content.splits["train"]) != sorted(names)[:9]  # the split is random
    assert round(1623 * image_files.TRAIN_SHARE) == 1200
    assert {count for classes in content.splits.values() for count in classes.values()} == {3}
    assert content.images.shape == (36, 1, 28, 28)
    first, second, _ = content.images[3 * names.index("Greek/character02") :][:3, 0]
    assert max(first[:3].max(), first[:, :1].max()) < 9  # paper, but for the resampling's ripple
    assert (first[6:, 5:] > 246).all()  # ink
    assert first[6, 10] > 246 > second[6, 10]  # drawings are in order


def test_files_are_decoded_again_only_when_they_change(tmp_path, monkeypatch):
    omniglot(tmp_path, "background", {"Greek": 3})
    first = load(Omniglot, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "_decode", None)
        assert np.array_equal(load(Omniglot, tmp_path).images, first.images)
        os.utime(tmp_path / "images_background.zip", (0, 0))  # another file of the same size, for all that is known
        with pytest.raises(TypeError):
            load(Omniglot, tmp_path)
    omniglot(tmp_path, "background", {"Greek": 3}, shift=30)
    assert not np.array_equal(load(Omniglot, tmp_path).images, first.images)
    omniglot(tmp_path, "evaluation", {"Latin": 1})
    assert len(load(Omniglot, tmp_path).images) == 12


IMAGES = np.random.default_rng(0).integers(0, 256, (10, 1, 30, 30), dtype=np.uint8)
CONTENT = ImageSet(IMAGES, {"train": {"a": 3, "b": 4}, "test": {"c": 3}})


def built(fingerprint: str = "fingerprint") -> bool:
    """Whether the cache has the images built, where it cannot read them; they are the same in any case."""
    calls = []
    found = cached("some", fingerprint, lambda: calls.append(1) or CONTENT)
    assert np.array_equal(found.images, CONTENT.images)
    assert found.splits == CONTENT.splits
    return bool(calls)


def test_the_cache_keeps_what_was_built_from_the_same_files_and_a_damaged_one_is_built_again(cache):
    """By changed bytes and lengths: what comes back is what was built, and what was found wrong is mended."""
    path, mended = cache / "some.npz", 0
    assert [built(files) for files in ("one", "one", "two", "fingerprint")] == [1, 0, 1, 1]
    assert list(cache.iterdir()) == [path]
    whole = path.read_bytes()
    places = [*range(0, 300, 3), *range(300, len(whole), 99), *range(len(whole) - 300, len(whole), 3)]
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    smaller = whole.replace(b"(10, 1, 30, 30)", b"(10, 1, 30, 20)")
    for damaged in [b"\xff" * len(whole), smaller, *(whole[:length] for length in range(0, len(whole), 499)), *flipped]:
        path.write_bytes(damaged)
        if built():
            assert path.stat().st_size == len(whole)
            mended += 1
    assert mended > len(flipped) / 2  # the rest are of no account, as the time of writing


@pytest.mark.parametrize("home", ["/proc/none", "below/here"], ids=["read-only", "no folder"])
def test_without_a_place_for_the_cache_the_images_stay_in_memory(monkeypatch, home):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert [built(), built()] == [True, True]


def test_the_small_sets_are_242_characters_of_which_the_papers_draw(tmp_path):
    zips = list(REAL.glob("omniglot/images_background_small[12].zip"))
    if len(zips) < 2:
        pytest.skip("no images_background_small1.zip and images_background_small2.zip: set AMAML_DATA to their folder")
    for path in zips:
        (tmp_path / path.name).symlink_to(path.resolve())
    content = load(Omniglot, tmp_path)
    assert {split: len(classes) for split, classes in content.splits.items()} == {"train": 179, "test": 63}
    assert {count for classes in content.splits.values() for count in classes.values()} == {20}
    assert len(np.unique(content.images, axis=0)) > 0.99 * len(content.images)  # Greek and Latin stand there once
