"""The cache of decoded pixels: built once, built again when it is not sound, written whole or not at all."""

import os

import numpy as np
import pytest

from data.image_cache import ImageSet, cached


def some_images() -> ImageSet:
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 3, 3), dtype=np.uint8)
    return ImageSet(images, {"train": {"a": 3, "b": 4}, "test": {"c": 3}})


class Build:
    """Counts how often it is asked for its images."""

    def __init__(self, content: ImageSet) -> None:
        self.content, self.calls = content, 0

    def __call__(self) -> ImageSet:
        self.calls += 1
        return self.content


def test_the_cache_keeps_what_was_built(tmp_path):
    build = Build(some_images())
    for _ in range(3):
        content = cached([tmp_path], "some", "fingerprint", build)
        assert np.array_equal(content.images, build.content.images)
        assert content.splits == build.content.splits
    assert build.calls == 1
    cached([tmp_path], "some", "another fingerprint", build)
    assert build.calls == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.json", "some.npy"]
    assert np.array_equal(np.load(tmp_path / "some.npy"), build.content.images)


@pytest.mark.parametrize("name", ["some.npy", "some.json"])
def test_a_damaged_cache_is_built_again(tmp_path, name):
    """Every changed byte and every length: what comes back is what was built, and what was found wrong is mended."""
    build = Build(some_images())
    cached([tmp_path], "some", "fingerprint", build)
    path = tmp_path / name
    whole = path.read_bytes()
    damages = [whole[:length] for length in range(0, len(whole), 7)]
    for place in range(len(whole)):
        damages += [whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :] for bit in (1, 16)]
    harmless = 0
    for damaged in [b"\xff" * len(whole), *damages]:
        before = build.calls
        path.write_bytes(damaged)
        content = cached([tmp_path], "some", "fingerprint", build)
        assert np.array_equal(content.images, build.content.images)
        assert content.splits == build.content.splits
        harmless += build.calls == before
        assert build.calls == before or path.read_bytes() == whole
        path.write_bytes(whole)
    assert harmless < 0.1 * len(damages)  # a blank in a header may be another one


def test_pixels_and_header_of_different_builds_are_not_mixed(tmp_path):
    """As a kill between the two files, or two writers, may leave them."""
    build = Build(some_images())
    cached(
        [tmp_path / "other"], "some", "fingerprint", Build(ImageSet(255 - build.content.images, build.content.splits))
    )
    cached([tmp_path], "some", "fingerprint", build)
    os.replace(tmp_path / "other" / "some.npy", tmp_path / "some.npy")
    assert np.array_equal(cached([tmp_path], "some", "fingerprint", build).images, build.content.images)
    assert build.calls == 2


def test_the_cache_goes_where_it_can_be_written(tmp_path):
    sealed, missing, build = tmp_path / "sealed", tmp_path / "user" / "amaml", Build(some_images())
    sealed.mkdir()
    sealed.chmod(0o555)
    for _ in range(2):
        cached([sealed, None, missing], "some", "fingerprint", build)
    assert (build.calls, list(sealed.iterdir())) == (1, [])
    (tmp_path / "file").touch()
    for calls in (2, 3):
        assert cached([tmp_path / "file"], "some", "fingerprint", build).splits == build.content.splits
        assert build.calls == calls
    sealed.chmod(0o755)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cached([tmp_path], "some", "fingerprint", Build(some_images()))
    assert list(tmp_path.iterdir()) == []
