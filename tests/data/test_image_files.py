"""Image sets in their publishers' layouts: the same pixels from each, and one line for what cannot be read."""

import csv
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amaml.errors import InputError
from data import image_files
from data.episodes import Sampling
from data.images import IMAGES, Images

PARTS = {"train": "train", "validation": "val", "test": "test"}


def domain(name: str, root: Path, shots: int = 1, queries: int = 2, ways: int = 2) -> Images:
    return Images(IMAGES[name], Sampling(shots, queries, 2, 0, torch.float32, "cpu", str(root)), ways=ways)


def picture(rng, side: int, grey: bool = False) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (side, side) if grey else (side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def classes():
    """Pictures in the sizes of mini-ImageNet: split -> class -> images (n, 84, 84, 3)."""
    rng = np.random.default_rng(0)
    shapes = {"train": 3, "validation": 2, "test": 2}
    return {
        split: {f"n{split}{i}": rng.integers(0, 256, (4, 84, 84, 3), dtype=np.uint8) for i in range(count)}
        for split, count in shapes.items()
    }


def as_pickles(folder: Path, classes, protocol: int = 4) -> None:
    for split, group in classes.items():
        rows = np.arange(4 * len(group)).reshape(len(group), 4)
        content = {
            "image_data": np.concatenate(list(group.values())),
            "class_dict": {name: row.tolist() for name, row in zip(group, rows, strict=True)},
        }
        path = folder / f"mini-imagenet-cache-{PARTS[split]}.pkl"
        path.write_bytes(pickle.dumps(content, protocol))


def as_tables(folder: Path, classes) -> None:
    (folder / "images").mkdir()
    for split, group in classes.items():
        with open(folder / f"{PARTS[split]}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            for name, images in group.items():
                for i, image in enumerate(images):
                    Image.fromarray(image).save(folder / "images" / f"{name}{i:08}.png")
                    rows.writerow([f"{name}{i:08}.png", name])


def as_folders(folder: Path, classes) -> None:
    for split, group in classes.items():
        for name, images in group.items():
            place = folder / PARTS[split] / name
            place.mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image).save(place / f"{i:08}.PNG", "png")
            (place / "._0.png").write_bytes(b"what a file manager leaves")


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
    content = image_files.MINI_IMAGENET.load(str(tmp_path))
    for split, group in classes.items():
        images, counts = content.split(split)
        assert list(content.splits[split]) == list(group)
        assert counts.tolist() == [4] * len(group)
        assert np.array_equal(images, np.concatenate(list(group.values())).transpose(0, 3, 1, 2))


def test_pictures_of_another_size_are_resized(tmp_path):
    rng = np.random.default_rng(0)
    for part in PARTS.values():
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                picture(rng, 100, grey=name == "a").save(tmp_path / part / name / f"{i}.jpg")
    assert domain("MiniImageNet", tmp_path).episode(0).support_x.shape[2:] == (3, 84, 84)


def cifar(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "cifar100/splits/bertinetto").mkdir(parents=True)
    for part, names in (("train", ["apple", "bee", "whale"]), ("val", ["can"]), ("test", ["bus", "pine_tree"])):
        (folder / f"cifar100/splits/bertinetto/{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            (folder / "cifar100/data" / name).mkdir(parents=True)
            for i in range(3):
                picture(rng, 32).save(folder / "cifar100/data" / name / f"{i}.png")


def test_cifar_fs(tmp_path):
    cifar(tmp_path)
    images = domain("CIFARFS", tmp_path)
    assert images.input_shape == (3, 32, 32)
    content = image_files.CIFAR_FS.load(str(tmp_path))
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
        image_files.CIFAR_FS.load(str(tmp_path))
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
        image_files.MINI_IMAGENET.load(str(tmp_path))
    assert not (tmp_path / "payload").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train.csv").write_text("file,class\na,b\n"), "train.csv.*expected the columns"),
        (lambda root: (root / "test.csv").write_text("filename,label\nlost.jpg,b\n"), "images/lost.jpg is missing"),
        (lambda root: next((root / "images").iterdir()).write_bytes(b"no picture"), "cannot read the image .*images/"),
        (lambda root: (root / "val.csv").write_bytes(b"filename,label\n\xff\xff,b\n"), "val.csv.*expected the columns"),
    ],
)
def test_a_damaged_layout_is_refused(tmp_path, classes, spoil, message):
    as_tables(tmp_path, classes)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        image_files.MINI_IMAGENET.load(str(tmp_path))
