"""Data sets made up in their publishers' layouts, and where real ones may be."""

import csv
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

REAL = Path(os.environ.get("AMAML_DATA") or Path(__file__).parents[3] / "shared" / "datasets")
PARTS = {"train": "train", "validation": "val", "test": "test"}
Classes = dict[str, dict[str, np.ndarray]]  # split -> class -> images (4, 84, 84, 3)


def pictures(train: int, others: int) -> Classes:
    """Random images in the size of mini-ImageNet, so many classes in meta-training and in the other splits."""
    rng, found = np.random.default_rng(0), {}
    for split, count in {"train": train, "validation": others, "test": others}.items():
        found[split] = {f"n{split}{i}": rng.integers(0, 256, (4, 84, 84, 3), dtype=np.uint8) for i in range(count)}
    return found


def as_pickles(folder: Path, classes: Classes, protocol: int = 4) -> None:
    for split, group in classes.items():
        rows = {name: list(range(4 * i, 4 * i + 4)) for i, name in enumerate(group)}
        content = {"image_data": np.concatenate(list(group.values())), "class_dict": rows}
        (folder / f"mini-imagenet-cache-{PARTS[split]}.pkl").write_bytes(pickle.dumps(content, protocol))


def as_tables(folder: Path, classes: Classes) -> None:
    (folder / "images").mkdir()
    for split, group in classes.items():
        with open(folder / f"{PARTS[split]}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            for name, images in group.items():
                for i, image in enumerate(images):
                    Image.fromarray(image).save(folder / "images" / f"{name}{i:08}.png")
                    rows.writerow([f"{name}{i:08}.png", name])


def as_folders(folder: Path, classes: Classes) -> None:
    for split, group in classes.items():
        for name, images in group.items():
            place = folder / PARTS[split] / name
            place.mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image).save(place / f"{i:08}.PNG", "png")
            (place / "._0.png").write_bytes(b"what a file manager leaves")


def cifar(folder: Path) -> None:
    """CIFAR-FS: three images a class."""
    rng = np.random.default_rng(0)
    (folder / "cifar100/splits/bertinetto").mkdir(parents=True)
    for part, names in (("train", ["apple", "bee", "whale"]), ("val", ["can"]), ("test", ["bus", "pine_tree"])):
        (folder / f"cifar100/splits/bertinetto/{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            (folder / "cifar100/data" / name).mkdir(parents=True)
            for i in range(3):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                image.save(folder / "cifar100/data" / name / f"{i}.png")


def omniglot(folder: Path, name: str, alphabets: dict[str, int], shift: int = 0) -> None:
    """An archive as published: 105 x 105, one bit, white paper; so many characters, three drawings each."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"images_{name}.zip", "w") as archive:
        archive.mkdir(f"images_{name}")
        for a, (alphabet, characters) in enumerate(alphabets.items()):
            for character in range(1, characters + 1):
                for drawing in range(1, 4):
                    paper = np.full((105, 105), 255, np.uint8)
                    paper[15 * drawing :, 5 * character + 20 * a + shift :] = 0
                    file = io.BytesIO()
                    Image.fromarray(paper).convert("1").save(file, "png")
                    member = f"images_{name}/{alphabet}/character{character:02}/{character:04}_{drawing:02}.png"
                    archive.writestr(member, file.getvalue())
        archive.writestr("__MACOSX/images_background/Greek/._0001_01.png", b"no picture")


def ratings(users: int = 240, items: int = 120) -> np.ndarray:
    """(users, items) of 1 to 5, NaN where unrated; an item's chance of a rating falls with its number."""
    rng = np.random.default_rng(3)
    taste = rng.normal(size=(users, 1)) + rng.normal(size=(1, items)) + rng.normal(size=(users, items))
    rated = rng.random((users, items)) < np.linspace(0.9, 0.05, items) * rng.uniform(0.2, 1, (users, 1))
    return np.where(rated, np.clip(np.round(3 + taste), 1, 5), np.nan)


def movielens(path: Path, ratings: np.ndarray, separator: str = "\t") -> None:
    """A line a rating of a matrix (users, items), NaN where unrated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(u + 1, i + 1, f"{ratings[u, i]:.0f}", 881250949) for u, i in np.argwhere(~np.isnan(ratings))]
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))


def every_set(root: Path) -> None:
    """All of them: 240 users of 120 items, 220 of 100 jokes, a few classes of images."""
    movielens(root / "u.data", ratings())
    movielens(root / "ratings.dat", ratings(), "::")
    jokes = np.random.default_rng(0).uniform(-10, 10, (220, 100)).round(2)
    (root / "jester-data-1.csv").write_text("".join(f"100,{','.join(map(str, row))}\n" for row in jokes))
    omniglot(root / "omniglot", "background", {"Greek": 4, "Latin": 4})
    as_pickles(root, pictures(2, 2))
    cifar(root)
