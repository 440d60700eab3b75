"""Image sets in their publishers' layouts: the same pixels from each, decoded once, one line for what is unreadable."""

import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.archives import as_folders, as_pickles, as_tables, cifar, omniglot, pictures
from PIL import Image

from amaml.errors import InputError
from data import Sampling, image_files
from data.image_cache import ImageSet, cached
from data.images import CIFARFS, Images, MiniImageNet, Omniglot

SHARED = Path(os.environ.get("AMAML_DATA") or Path(__file__).parents[3] / "shared" / "datasets")


def load(domain: type[Images], root: Path | str | None) -> ImageSet:
    """The images of a data root as the domain reads them."""
    return image_files.load(domain.source, domain.find, root and str(root))


@pytest.fixture(scope="module")
def classes():
    return pictures(train=3, others=2)


LAYOUTS = {
    "pickles": as_pickles,
    "pickles of Python 2's protocol": partial(as_pickles, protocol=2),
    "pickles of protocol 5": partial(as_pickles, protocol=5),
    "tables": as_tables,
    "folders": as_folders,
}


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("below", ["", "mini-imagenet"])
def test_mini_imagenet_is_the_same_in_every_layout(tmp_path, classes, write, below):
    (tmp_path / below).mkdir(exist_ok=True)
    write(tmp_path / below, classes)
    content = load(MiniImageNet, tmp_path)
    for split, group in classes.items():
        images, counts = content.split(split)
        assert list(content.splits[split]) == list(group)
        assert counts.tolist() == [4] * len(group)
        assert np.array_equal(images, np.concatenate(list(group.values())).transpose(0, 3, 1, 2))


def test_a_pickle_of_an_older_numpy_is_read(tmp_path, classes):
    as_pickles(tmp_path, classes, protocol=2)
    for path in tmp_path.glob("*.pkl"):
        assert b"numpy._core" in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert load(MiniImageNet, tmp_path).images.shape == (28, 3, 84, 84)


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
    assert content.splits["test"] == {"bus": 3, "pine_tree": 3}
    whale = np.asarray(Image.open(tmp_path / "cifar100/data/whale/1.png")).transpose(2, 0, 1)
    assert np.array_equal(content.split("train")[0][7], whale)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: None, "cifar-fs"),
        (lambda root: cifar(root) or (root / "cifar100/splits/bertinetto/val.txt").unlink(), "bertinetto/val.txt"),
        (lambda root: cifar(root) or [p.unlink() for p in (root / "cifar100/data/bus").iterdir()], "cifar100/data/bus"),
    ],
)
def test_a_missing_file_is_named_with_what_to_do(tmp_path, spoil, named):
    spoil(tmp_path)
    with pytest.raises(InputError) as fault:
        load(CIFARFS, tmp_path)
    message = str(fault.value)
    assert "\n" not in message
    for part in (named, "https://github.com/bertinetto/r2d2", "cifar100/data/CLASS/*.png", "nothing was downloaded"):
        assert part in message
    assert message.endswith("fetch it there")  # no command: its publisher has no link to fetch it from


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"image_data": Payload(), "class_dict": {}}), "posix.mkdir|nt.mkdir"),
        (pickle.dumps({"image_data": np.zeros((4, 8, 8, 3), np.uint8), "class_dict": {"a": [0]}}), "uint8 .4, 8, 8, 3"),
        (pickle.dumps({"image_data": np.zeros((4, 84, 84, 3), np.uint8), "class_dict": {"a": [4]}}), "out of bounds"),
        (pickle.dumps({"images": 0}), "image_data"),
        (pickle.dumps({"image_data": 0})[:-5], "truncated|expected"),
        (b"no pickle", "invalid load key"),
    ],
    ids=["a function", "another size", "a row too many", "another content", "cut short", "no pickle"],
)
def test_a_pickle_is_data_or_refused(tmp_path, monkeypatch, classes, content, reason):
    monkeypatch.chdir(tmp_path)
    as_pickles(tmp_path, classes)
    (tmp_path / "mini-imagenet-cache-val.pkl").write_bytes(content)
    with pytest.raises(InputError, match=f"cache-val.pkl.*({reason}).*class_dict"):
        load(MiniImageNet, tmp_path)
    assert not (tmp_path / "payload").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train.csv").write_text("file,class\na,b\n"), "train.csv.*expected the columns"),
        (lambda root: (root / "test.csv").write_text("filename,label\nlost.jpg,b\n"), "images/lost.jpg is missing"),
        (lambda root: (root / "test.csv").unlink(), "test.csv is missing"),
        (lambda root: next((root / "images").iterdir()).write_bytes(b"no picture"), "cannot read the image .*images/"),
        (lambda root: (root / "val.csv").write_bytes(b"filename,label\n\xff\xff,b\n"), "val.csv.*expected the columns"),
    ],
)
def test_a_damaged_layout_is_refused(tmp_path, classes, spoil, message):
    as_tables(tmp_path, classes)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        load(MiniImageNet, tmp_path)


def test_omniglot_reads_any_archives_and_merges_what_stands_in_two(tmp_path):
    omniglot(tmp_path / "omniglot", "background_small1", {"Greek": 4, "Latin": 3})
    omniglot(tmp_path / "omniglot", "background_small2", {"Greek": 4, "Tagalog": 5})
    content = load(Omniglot, tmp_path)
    names = [name for classes in content.splits.values() for name in classes]
    sizes = {"Greek": 4, "Latin": 3, "Tagalog": 5}
    assert sorted(names) == sorted(f"{a}/character{i:02}" for a, count in sizes.items() for i in range(1, count + 1))
    assert {split: len(classes) for split, classes in content.splits.items()} == {"train": 9, "test": 3}
    assert {count for classes in content.splits.values() for count in classes.values()} == {3}
    assert content.images.shape == (36, 1, 28, 28)
    first, second, _ = content.images[3 * names.index("Greek/character02") :][:3, 0]
    assert (first[:3] < 9).all()  # paper, but for the resampling's ripple
    assert (first[:, :1] < 9).all()
    assert (first[6:, 5:] > 246).all()  # ink
    assert first[6, 10] > 246 > second[6, 10]  # drawings are in order


def test_the_split_of_omniglot_is_random_and_the_same_in_every_run(tmp_path):
    assert round(1623 * image_files.TRAIN_SHARE) == 1200
    omniglot(tmp_path, "background", {"Greek": 8, "Latin": 8})
    splits = [load(Omniglot, tmp_path).splits for _ in range(2)]
    assert splits[0] == splits[1]
    assert set(splits[0]["train"]).isdisjoint(splits[0]["test"])
    assert list(splits[0]["train"]) != sorted([*splits[0]["train"], *splits[0]["test"]])[:12]


def test_a_damaged_archive_is_refused(tmp_path):
    omniglot(tmp_path, "background", {"Greek": 3})
    path = tmp_path / "images_background.zip"
    whole = path.read_bytes()
    for damaged, named in ((whole[: len(whole) // 2], "background.zip"), (whole.replace(b"IDAT", b"IDAX"), "0001_01")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{named}.*fetch it again"):
            load(Omniglot, tmp_path)


def test_files_are_decoded_again_only_when_they_change(tmp_path, monkeypatch):
    omniglot(tmp_path, "background", {"Greek": 3})
    first = load(Omniglot, tmp_path)
    decode, decoded = image_files._decode, []
    monkeypatch.setattr(image_files, "_decode", lambda *args: decoded.append(args) or decode(*args))
    assert np.array_equal(load(Omniglot, tmp_path).images, first.images)
    assert not decoded
    omniglot(tmp_path, "background", {"Greek": 3}, shift=30)
    assert not np.array_equal(load(Omniglot, tmp_path).images, first.images)
    assert len(decoded) == 9
    omniglot(tmp_path, "evaluation", {"Latin": 1})
    assert len(load(Omniglot, tmp_path).images) == 12


class Build:
    """Counts how often it is asked for its images."""

    def __init__(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (10, 1, 3, 3), dtype=np.uint8)
        self.content, self.calls = ImageSet(images, {"train": {"a": 3, "b": 4}, "test": {"c": 3}}), 0

    def __call__(self) -> ImageSet:
        self.calls += 1
        return self.content

    def equals(self, found: ImageSet) -> bool:
        return np.array_equal(found.images, self.content.images) and found.splits == self.content.splits


def test_the_cache_keeps_what_was_built_from_the_same_files(tmp_path):
    build = Build()
    assert all(build.equals(cached([tmp_path], "some", "fingerprint", build)) for _ in range(3))
    assert build.calls == 1
    cached([tmp_path], "some", "another fingerprint", build)
    assert build.calls == 2
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]


def test_a_damaged_cache_is_built_again(tmp_path):
    """By changed bytes and lengths: what comes back is what was built, and what was found wrong is mended."""
    build, path = Build(), tmp_path / "some.npz"
    cached([tmp_path], "some", "fingerprint", build)
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), 2)]
    for damaged in [b"\xff" * len(whole), *(whole[:length] for length in range(0, len(whole), 31)), *flipped]:
        before = build.calls
        path.write_bytes(damaged)
        assert build.equals(cached([tmp_path], "some", "fingerprint", build))
        assert build.calls == before or path.stat().st_size == len(whole)
    assert build.calls > len(flipped) / 2  # the rest are of no account, as the time of writing


def test_the_cache_goes_where_it_can_be_written(tmp_path, monkeypatch):
    sealed, missing, build = tmp_path / "sealed", tmp_path / "user" / "amaml", Build()
    sealed.mkdir()
    sealed.chmod(0o555)
    for _ in range(2):
        cached([sealed, None, missing], "some", "fingerprint", build)
    assert (build.calls, list(sealed.iterdir())) == (1, [])
    (tmp_path / "file").touch()
    assert build.equals(cached([tmp_path / "file"], "some", "fingerprint", build))
    sealed.chmod(0o755)
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError("no space left on device")))
    assert build.equals(cached([sealed], "some", "fingerprint", build))
    assert list(sealed.iterdir()) == []


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory) -> str:
    zips = list(SHARED.glob("omniglot/images_background_small[12].zip"))
    if len(zips) < 2:
        pytest.skip("no images_background_small1.zip and images_background_small2.zip: set AMAML_DATA to their folder")
    root = tmp_path_factory.mktemp("data")
    for path in zips:
        (root / path.name).symlink_to(path.resolve())
    return str(root)


def test_the_small_sets_are_242_characters_of_which_the_papers_draw(small_sets):
    content = load(Omniglot, small_sets)
    assert {split: len(classes) for split, classes in content.splits.items()} == {"train": 179, "test": 63}
    assert {count for classes in content.splits.values() for count in classes.values()} == {20}
    assert len(np.unique(content.images, axis=0)) > 0.99 * len(content.images)  # Greek and Latin stand there once
    ink = content.images.mean((1, 2, 3)) / 255
    assert 0.01 < ink.min() < ink.max() < 0.5
    images = Omniglot(Sampling(1, 15, 2, 0, data_root=small_sets, ways=20))
    assert images.episode(0).query_x.shape == (2, 300, 1, 28, 28)
    assert images.meta_test(3).test_y.unique().tolist() == list(range(20))
