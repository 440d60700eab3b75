"""Tomography: random Shepp-Logan phantoms from a few views, for networks that give a density at a place.

A phantom is a sum of ten ellipses of constant density (Shepp and Logan 1974, with the contrast of Toft 1996, p. 201),
their parameters jittered. A view is a parallel beam of RAYS rays; what is measured of a ray is the mean density along
its 2 units of length, in closed form: through an ellipse of half axes a, b, at the distance s from its centre, with a
normal under the angle t to the axis of a, the line integral is

    2 density a b sqrt(w - s^2) / w  for s^2 < w = a^2 cos^2 t + b^2 sin^2 t    (Kak and Slaney 1988, section 3.1).

Nothing is downloaded. Learned initialisations for this: Tancik et al., CVPR 2021, section 4.2.
"""

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor

from amaml.losses import mse
from amaml.tasks import Tasks
from data.domain import Endless, Objective, check_pool
from data.episodes import META_TRAIN_TASKS, Sampling, generator, smallest

SIDE = 64  # pixels of a picture, which covers [-1, 1]^2
RAYS = 24  # of a view
SAMPLES = 24  # places on a ray at which the network is asked

# density, half axes, centre and angle in degrees, in the unit disc; the first two are the skull and what it encloses
SHEPP_LOGAN = np.array(
    [
        (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
        (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
        (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
        (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
        (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
        (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
        (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
        (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
        (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
        (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
    ]
)
MEAN_OF = 100  # phantoms, of which the mean is shown as a predictor
SHRUNK = 0.9  # so that a jittered phantom stays within the unit disc, where every ray meets all of it


TRAIN = 0.1, 0.03, 10.0  # half the width of the uniform ranges: a share of densities and half axes, units, degrees
TEST = 0.15, 0.03, 20.0  # phantoms of a wider family than those of meta-training


def jittered(draws: np.ndarray, share: float, place: float, angle: float) -> np.ndarray:
    """Phantoms (tasks, ellipses, 6), as SHEPP_LOGAN, from as many draws in [0, 1) and a range for each column.

    The skull and what it encloses share theirs, and move as one.
    """
    shift = 2.0 * draws - 1.0
    shift[:, 1] = shift[:, 0]
    sizes, places = np.split(SHEPP_LOGAN * (1, SHRUNK, SHRUNK, SHRUNK, SHRUNK, 1), [3], axis=1)
    return np.concatenate([sizes * (1 + share * shift[..., :3]), places + (place, place, angle) * shift[..., 3:]], -1)


def densities(phantoms: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The density (tasks, points) of phantoms (tasks, ellipses, 6) at places x (tasks, points, 2)."""
    density, a, b, right, up, angle = np.moveaxis(phantoms, -1, 0)[:, :, None]  # (tasks, 1, ellipses)
    right, up = x[..., :1] - right, x[..., 1:] - up
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    inside = ((cos * right + sin * up) / a) ** 2 + ((cos * up - sin * right) / b) ** 2 <= 1
    return (inside * density).sum(-1)


def projections(phantoms: np.ndarray, angles: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The line integrals (tasks, views, rays) along x . (cos, sin)(angle) = offset.

    phantoms (tasks, ellipses, 6), angles (tasks, views) of the rays' normals, offsets (rays,).
    """
    density, a, b, *_, angle = np.moveaxis(phantoms, -1, 0)[:, :, None, None]  # (tasks, 1, 1, ellipses)
    normal = np.stack([np.cos(angles), np.sin(angles)], -1)  # (tasks, views, 2)
    centre = normal @ np.swapaxes(phantoms[..., 3:5], 1, 2)  # (tasks, views, ellipses)
    offset = offsets[:, None] - centre[:, :, None]  # (tasks, views, rays, ellipses)
    turn = angles[:, :, None, None] - np.deg2rad(angle)
    width = (a * np.cos(turn)) ** 2 + (b * np.sin(turn)) ** 2
    chords = 2 * a * b * np.sqrt(np.clip(width - offset**2, 0, None)) / width
    return (density * chords).sum(-1)


def along_rays(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the mean of predictions (points, samples, 1) over the samples, against (points, 1)."""
    return mse(prediction.mean(-2), target)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, of a peak of 1, the density of the skull; higher is better."""
    return -10 * torch.log10(along_rays(prediction, target))


class Phantoms(Endless):
    """Endless phantoms, each measured by --shots views at even angles from a random one on.

    support_x (tasks, views * RAYS, SAMPLES, 2): the places on every ray, whose predictions are averaged; query_x
    (tasks, queries, 1, 2): random pixels, test_x all of them, row by row; targets are densities (tasks, points, 1).

    noise: that of a ray through nothing, as a share of its photons. noise^-2 photons leave for every ray, a share of
    exp(-integral) arrives, and their number is Poisson's. 0 measures without noise; queries have none.
    """

    uses = ("noise",)
    input_shape = (2,)
    outputs = 1
    objective = Objective(along_rays, "PSNR", psnr)

    def __init__(self, sampling: Sampling) -> None:
        check_pool("pixels of a phantom", sampling.queries, SIDE**2, "--queries")
        super().__init__(sampling)

    def tasks(self, rng: np.random.Generator, count: int, first: int = 0, test: bool = False) -> Tasks:
        """count phantoms of the family of meta-training, or of the meta-test's, with every pixel as test points."""
        s, rays = self.sampling, self.sampling.shots * RAYS
        draws = rng.uniform(size=(first + count, SHEPP_LOGAN.size + 1 + rays + SIDE**2))[first:]
        shape, turn, noise, keys = np.split(draws, np.cumsum([SHEPP_LOGAN.size, 1, rays]), axis=1)
        phantoms = jittered(shape.reshape(count, *SHEPP_LOGAN.shape), *(TEST if test else TRAIN))
        angles = np.pi * (np.arange(s.shots) + turn) / s.shots  # (tasks, views)
        integrals = projections(phantoms, angles, _centres(RAYS)).reshape(count, rays)
        if s.noise:
            photons = s.noise**-2
            arrived = poisson.ppf(noise, photons * np.exp(-integrals))
            integrals = np.log(photons / np.maximum(arrived, 1))
        x, y = np.meshgrid(_centres(SIDE), _centres(SIDE))
        pixels = np.stack([x.ravel(), y.ravel()], -1)
        sets = [pixels[smallest(keys, np.array(SIDE**2), s.queries)]]
        if test:
            sets.append(np.tile(pixels, (count, 1, 1)))
        support = self.tensor(ray_points(angles)), self.tensor(integrals / 2)[..., None]  # a ray is 2 units long
        queries = [(self.tensor(p)[:, :, None], self.tensor(densities(phantoms, p))[..., None]) for p in sets]
        return Tasks(*support, *(part for pair in queries for part in pair))

    def predictors(self, count: int) -> dict[str, np.ndarray]:
        """Filtered back-projection of the views, and the mean of some phantoms of meta-training."""
        tasks, s = self.meta_test(count), self.sampling
        x, y, places, truth = (
            part.double().cpu().numpy() for part in (tasks.support_x, tasks.support_y, tasks.test_x, tasks.test_y)
        )
        normals = x.reshape(count, s.shots, RAYS, SAMPLES, 2)[:, :, -1].mean(2) / _centres(RAYS)[-1]
        back = back_projected(normals, 2 * y.reshape(count, s.shots, RAYS), places[0, :, 0])
        draws = generator(s.seed, META_TRAIN_TASKS).uniform(size=(MEAN_OF, *SHEPP_LOGAN.shape))
        mean = densities(jittered(draws, *TRAIN), places[:1, :, 0]).mean(0)
        error = {"filtered back-projection": back - truth[..., 0], "mean phantom": mean - truth[..., 0]}
        return {name: -10 * np.log10((apart**2).mean(-1)) for name, apart in error.items()}

    def in_units(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and the density there, of a target or of a prediction; a ray has no place, and is left out."""
        if x.shape[-2] > 1:
            return x[:, :0, 0], y[:, :0]
        return x[..., 0, :], y if y.ndim < 4 else y[..., 0, :]


def back_projected(normals: np.ndarray, integrals: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Filtered back-projection with the filter of Ramachandran and Lakshminarayanan (Kak and Slaney 1988, eq. 61).

    normals (tasks, views, 2), integrals (tasks, views, RAYS), places (pixels, 2): densities (tasks, pixels).
    """
    n, width = np.arange(RAYS) - np.arange(RAYS)[:, None], 2 / RAYS
    ramp = np.where(n == 0, 0.25, np.where(n % 2, -1 / np.maximum(np.pi * np.abs(n), 1) ** 2, 0)) / width
    filtered, offsets = integrals @ ramp, normals @ places.T  # (tasks, views, RAYS), (tasks, views, pixels)
    views = [
        np.mean([np.interp(at, _centres(RAYS), q, 0, 0) for at, q in zip(*task, strict=True)], 0)
        for task in zip(offsets, filtered, strict=True)
    ]
    return np.pi * np.array(views)


def ray_points(angles: np.ndarray) -> np.ndarray:
    """SAMPLES places on every ray of views with normals at angles (tasks, views): (tasks, views * RAYS, SAMPLES, 2)."""
    normal = np.stack([np.cos(angles), np.sin(angles)], -1)[:, :, None, None]
    along = np.stack([-np.sin(angles), np.cos(angles)], -1)[:, :, None, None]
    places = _centres(RAYS)[:, None, None] * normal + _centres(SAMPLES)[:, None] * along
    return places.reshape(len(angles), -1, SAMPLES, 2)


def _centres(count: int) -> np.ndarray:
    """The middles of so many equal parts of [-1, 1]."""
    return (2 * np.arange(count) + 1) / count - 1
