"""The cache of decoded pixels: built once, built again when it is not sound, written whole or not at all."""

import os

import numpy as np

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
    assert [path.name for path in tmp_path.iterdir()] == ["some.cache"]


def test_a_damaged_cache_is_built_again(tmp_path):
    build = Build(some_images())
    cached([tmp_path], "some", "fingerprint", build)
    path = tmp_path / "some.cache"
    whole = path.read_bytes()
    damages = [whole[:-1], whole + b"0", b"", whole[:10], b"x" + whole[1:], b"\xff" * len(whole)]
    for place in (9, 17, 30, 150, len(whole) // 2, len(whole) - 1):
        damages.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for calls, damaged in enumerate(damages, start=2):
        path.write_bytes(damaged)
        assert np.array_equal(cached([tmp_path], "some", "fingerprint", build).images, build.content.images)
        assert build.calls == calls
        assert path.read_bytes() == whole


def test_the_cache_goes_where_it_can_be_written(tmp_path):
    sealed, missing, build = tmp_path / "sealed", tmp_path / "user" / "amaml", Build(some_images())
    sealed.mkdir()
    sealed.chmod(0o555)
    for _ in range(2):
        cached([sealed, missing], "some", "fingerprint", build)
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
