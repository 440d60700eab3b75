"""A few-shot character set that needs no download: letters of many scripts, drawn from the fonts of matplotlib.

A class is a letter; its 20 drawings differ in face, stroke weight, rotation, shear, scale and place. The splits are by
script, so that meta-testing asks for letters of alphabets never met.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch.nn.functional import affine_grid, grid_sample

from data.episodes import generator
from data.image_files import ImageSet, cached

FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
Scripts = dict[str, tuple[str, ...]]
SCRIPTS: Scripts = {
    "train": ("LATIN", "GREEK", "CYRILLIC", "COPTIC", "MATHEMATICAL", "CANADIAN SYLLABICS", "LISU", "OLD ITALIC"),
    "validation": ("ARABIC", "OGHAM"),
    "test": ("ARMENIAN", "GEORGIAN", "HEBREW", "LAO", "NKO", "TIFINAGH"),
}
RESTYLED = {"BOLD", "ITALIC", "SANS-SERIF", "MONOSPACE"}  # the mathematical alphabets that repeat Latin and Greek

DRAWINGS = 20
SIZE = 28  # pixels of a drawing's side
FACTOR = 3
FINE = FACTOR * SIZE  # pixels of an outline's side
BODY = FACTOR * 20  # of them, the longer side of the glyph

NEAR = 1.5  # pixels of a drawing within which ink explains ink
UNEXPLAINED = 0.05  # the share of unexplained ink up to which glyphs are near-identical

SEED = 0
ROTATION = 15.0  # degrees; this range and those below are uniform in [-range, range]
SHEAR = 0.25
SCALE = 0.2
SHIFT = 0.12  # of half a side
WEIGHT = (-0.2, 0.7)  # pixels, added to the half width of every stroke; a thinner one would break


@dataclass(frozen=True)
class Glyph:
    """A letter, its script, its split and its outlines: uint8 (faces, FINE, FINE), one for every face that has it."""

    name: str
    script: str
    split: str
    outlines: np.ndarray


def load() -> ImageSet:
    """The whole set, (images, 1, 28, 28) with ink 255, from the user's cache, or drawn and put there."""
    fonts = font_files()
    digest = hashlib.sha256(f"{PIL.__version__} {unicodedata.unidata_version}".encode())
    for part in (Path(__file__), *fonts):  # what is drawn depends on this file too
        digest.update(part.read_bytes())
    return cached("Glyphs", digest.hexdigest(), lambda: draw(distinct(letters(fonts, SCRIPTS))))


def font_files() -> list[Path]:
    """The faces, in files that matplotlib ships."""
    import matplotlib  # here, so that run.py has said first what it is to draw with

    return [Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf") for face in FACES]


def letters(fonts: Sequence[Path], scripts: Scripts) -> list[Glyph]:
    """The letters (Unicode's categories L*) of the scripts that a font has, by script and code point."""
    from matplotlib.ft2font import FT2Font

    basic = ImageFont.Layout.BASIC
    faces = [(ImageFont.truetype(str(f), FINE, layout_engine=basic), FT2Font(str(f)).get_charmap()) for f in fonts]
    split_of = {script: split for split, group in scripts.items() for script in group}
    found: dict[str, list[Glyph]] = {script: [] for script in split_of}
    for code in sorted(set().union(*(codes for _, codes in faces))):
        letter, name = chr(code), unicodedata.name(chr(code), "")
        script = next((script for script in split_of if name.startswith(f"{script} ")), None)
        restyled = script == "MATHEMATICAL" and RESTYLED & set(name.split())
        if script is None or unicodedata.category(letter)[0] != "L" or restyled:
            continue
        outlines = [outline for font, codes in faces if code in codes and (outline := _outline(font, letter)).any()]
        if outlines:
            found[script].append(Glyph(name, script, split_of[script], np.stack(outlines)))
    return [glyph for group in found.values() for glyph in group]


def _outline(font: ImageFont.FreeTypeFont, letter: str) -> np.ndarray:
    """The letter in the middle of a (FINE, FINE) image, its longer side BODY; all zero where it has no ink."""
    left, top, right, bottom = font.getbbox(letter)
    drawn = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(drawn).text((1 - left, 1 - top), letter, fill=255, font=font)
    image, box = Image.new("L", (FINE, FINE)), drawn.getbbox()
    if box is not None:
        width, height = box[2] - box[0], box[3] - box[1]
        scale = BODY / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        ink = drawn.resize(size, Image.Resampling.BICUBIC, box)
        image.paste(ink, ((FINE - size[0]) // 2, (FINE - size[1]) // 2))
    return np.asarray(image)


def distinct(glyphs: Sequence[Glyph]) -> list[Glyph]:
    """The glyphs that are near-identical to none kept before them; those that are, are merged into it by leaving them.

    Two are near-identical where some outline of one and some of the other explain each other: at most UNEXPLAINED of
    the ink of either is further than NEAR from the other's ink (a partial Hausdorff distance, Huttenlocher et al.
    1993). The first kept are the scripts of meta-training: no class of another split resembles one of theirs.
    """
    near = near_identical(glyphs)
    kept: list[int] = []
    for i in range(len(glyphs)):
        if not near[i, kept].any():
            kept.append(i)
    return [glyphs[i] for i in kept]


def near_identical(glyphs: Sequence[Glyph]) -> np.ndarray:
    """For every glyph and those before it, (glyphs, glyphs) bool; false above the diagonal."""
    counts = np.array([len(glyph.outlines) for glyph in glyphs])
    starts = np.cumsum(counts) - counts
    outlines = np.concatenate([glyph.outlines for glyph in glyphs]).reshape(-1, SIZE, FACTOR, SIZE, FACTOR)
    ink = outlines.mean((2, 4)) > 96  # at the size of a drawing the thinnest strokes reach it
    far = np.stack([distance_transform_edt(~each) for each in ink]) > NEAR
    ink, far = ink.reshape(len(ink), -1).astype(np.float32), far.reshape(len(far), -1).astype(np.float32)
    ink /= ink.sum(1, keepdims=True)
    unexplained = ink @ far.T
    np.maximum(unexplained, unexplained.T, out=unexplained)  # (outlines, outlines)
    by_glyph = np.minimum.reduceat(np.minimum.reduceat(unexplained, starts, axis=1), starts)
    return np.tril(by_glyph <= UNEXPLAINED)


def draw(glyphs: Sequence[Glyph], block: int = 64) -> ImageSet:
    """DRAWINGS of every glyph, its faces by turns; the classes are in the order of splits."""
    splits = {
        split: [glyph for glyph in glyphs if glyph.split == split] for split in dict.fromkeys(g.split for g in glyphs)
    }
    ordered = [glyph for group in splits.values() for glyph in group]
    rng, pieces = generator(SEED), []
    for first in range(0, len(ordered), block):
        distances = [_signed_distances(glyph.outlines) for glyph in ordered[first : first + block]]
        faces = np.concatenate([field[np.arange(DRAWINGS) % len(field)] for field in distances])
        pieces.append(_drawings(torch.from_numpy(faces), rng))
    names = {split: {glyph.name: DRAWINGS for glyph in group} for split, group in splits.items()}
    return ImageSet(np.concatenate(pieces), names)


def _signed_distances(outlines: np.ndarray) -> np.ndarray:
    """Distance to the edge of the ink, negative inside, in pixels of a drawing; (faces, FINE, FINE)."""
    fields = [distance_transform_edt(paper) - distance_transform_edt(~paper) for paper in outlines < 128]
    return (np.stack(fields) / FACTOR).astype(np.float32)


def _drawings(fields: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
    """One drawing of every field (drawings, FINE, FINE): uint8 (drawings, 1, SIZE, SIZE)."""
    count = len(fields)
    angle, shear, wide, high, right, down = rng.uniform(-1.0, 1.0, (6, count))
    angle, shear = np.deg2rad(ROTATION) * angle, SHEAR * shear
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[1 + SCALE * wide, shear], [np.zeros(count), 1 + SCALE * high]])
    linear = np.einsum("ijn,jkn->nik", turn, slant)
    affine = np.concatenate([linear, SHIFT * np.stack([right, down], 1)[..., None]], 2)  # from drawing to outline
    grid = affine_grid(torch.from_numpy(affine).float(), [count, 1, SIZE, SIZE], align_corners=False)
    sampled = grid_sample(fields[:, None], grid, padding_mode="border", align_corners=False)
    weight = torch.from_numpy(rng.uniform(*WEIGHT, (count, 1, 1, 1))).float()
    ink = (0.5 + weight - sampled).clamp(0.0, 1.0)  # an edge is one pixel wide
    return (255 * ink).round().to(torch.uint8).numpy()
