"""Omniglot's archives as published: which characters, which drawings, which split; decoded once."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amaml.errors import InputError
from data import image_files
from data.episodes import Sampling
from data.images import IMAGES, Images

SHARED = Path(os.environ.get("AMAML_DATA") or Path(__file__).parents[3] / "shared" / "datasets")


def omniglot(folder: Path, name: str, alphabets: dict[str, int], shift: int = 0) -> None:
    """An archive as published: 105 x 105, one bit, white paper, three drawings a character here."""
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


def test_omniglot_reads_any_archives_and_merges_what_stands_in_two(tmp_path):
    omniglot(tmp_path / "omniglot", "background_small1", {"Greek": 4, "Latin": 3})
    omniglot(tmp_path / "omniglot", "background_small2", {"Greek": 4, "Tagalog": 5})
    content = image_files.OMNIGLOT.load(str(tmp_path))
    names = [name for classes in content.splits.values() for name in classes]
    assert sorted(names) == sorted(
        f"{alphabet}/character{i:02}"
        for alphabet, count in (("Greek", 4), ("Latin", 3), ("Tagalog", 5))
        for i in range(1, count + 1)
    )
    assert {split: len(classes) for split, classes in content.splits.items()} == {"train": 9, "test": 3}
    assert {count for classes in content.splits.values() for count in classes.values()} == {3}
    assert content.images.shape == (36, 1, 28, 28)
    first = content.images[3 * names.index("Greek/character02")][0]
    assert (first[:3] < 9).all()  # paper, but for the resampling's ripple
    assert (first[:, :1] < 9).all()
    assert (first[6:, 5:] > 246).all()  # ink
    second = content.images[3 * names.index("Greek/character02") + 1][0]
    assert first[6, 10] > 246 > second[6, 10]  # drawings are in order


def test_omniglot_split_is_1200_of_1623_in_every_run(tmp_path):
    assert round(1623 * image_files.TRAIN_SHARE) == 1200
    omniglot(tmp_path, "background", {"Greek": 8, "Latin": 8})
    splits = [image_files.OMNIGLOT.load(str(tmp_path)).splits for _ in range(2)]
    assert splits[0] == splits[1]
    assert set(splits[0]["train"]).isdisjoint(splits[0]["test"])
    assert list(splits[0]["train"]) != sorted([*splits[0]["train"], *splits[0]["test"]])[:12]  # chosen at random


def test_the_environment_names_the_data_root(tmp_path, monkeypatch):
    monkeypatch.delenv("AMAML_DATA", raising=False)
    with pytest.raises(InputError, match="--data-root or AMAML_DATA.*data.download Omniglot --data-root DIR"):
        image_files.OMNIGLOT.load(None)
    omniglot(tmp_path, "evaluation", {"Greek": 4})
    monkeypatch.setenv("AMAML_DATA", str(tmp_path))
    assert image_files.OMNIGLOT.load(None).images.shape == (12, 1, 28, 28)


def test_a_damaged_archive_is_refused(tmp_path):
    omniglot(tmp_path, "background", {"Greek": 3})
    path = tmp_path / "images_background.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="images_background.zip.*fetch it again"):
        image_files.OMNIGLOT.load(str(tmp_path))
    path.write_bytes(whole.replace(b"IDAT", b"IDAX"))
    with pytest.raises(InputError, match="character01/0001_01.png.*fetch it again"):
        image_files.OMNIGLOT.load(str(tmp_path))


def test_files_are_decoded_again_only_when_they_change(tmp_path, monkeypatch):
    omniglot(tmp_path, "background", {"Greek": 3})
    first = image_files.OMNIGLOT.load(str(tmp_path))
    decode, decoded = image_files._decode, []
    monkeypatch.setattr(image_files, "_decode", lambda *args: decoded.append(args) or decode(*args))
    assert np.array_equal(image_files.OMNIGLOT.load(str(tmp_path)).images, first.images)
    assert not decoded
    omniglot(tmp_path, "background", {"Greek": 3}, shift=30)
    assert not np.array_equal(image_files.OMNIGLOT.load(str(tmp_path)).images, first.images)
    assert len(decoded) == 9
    omniglot(tmp_path, "evaluation", {"Latin": 1})
    assert len(image_files.OMNIGLOT.load(str(tmp_path)).images) == 12


def test_a_read_only_data_root_is_left_alone(tmp_path, monkeypatch):
    root = tmp_path / "root"
    omniglot(root, "background", {"Greek": 3})
    root.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    image_files.OMNIGLOT.load(str(root))
    assert [path.name for path in root.iterdir()] == ["images_background.zip"]
    assert sorted(path.suffix for path in (tmp_path / "user/amaml").iterdir()) == [".json", ".npy"]
    root.chmod(0o755)


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory) -> str:
    zips = list(SHARED.glob("omniglot/images_background_small[12].zip"))
    if len(zips) < 2:
        pytest.skip("no images_background_small1.zip and images_background_small2.zip: set AMAML_DATA to their folder")
    root = tmp_path_factory.mktemp("data")
    for path in zips:
        (root / path.name).symlink_to(path.resolve())
    return str(root)


def test_the_small_sets_are_242_characters(small_sets):
    content = image_files.OMNIGLOT.load(small_sets)
    assert {split: len(classes) for split, classes in content.splits.items()} == {"train": 179, "test": 63}
    assert {count for classes in content.splits.values() for count in classes.values()} == {20}
    assert len(np.unique(content.images, axis=0)) > 0.99 * len(content.images)  # Greek and Latin stand there once
    ink = content.images.mean((1, 2, 3)) / 255
    assert 0.01 < ink.min() < ink.max() < 0.5


def test_experiments_of_the_papers_can_be_drawn(small_sets):
    images = Images(IMAGES["Omniglot"], Sampling(1, 15, 2, 0, data_root=small_sets), ways=20)
    tasks = images.episode(0)
    assert tasks.support_x.shape == (2, 20, 1, 28, 28)
    assert tasks.query_x.shape == (2, 300, 1, 28, 28)
    assert images.meta_test(3).test_y.unique().tolist() == list(range(20))
