"""Phantoms: projections in closed form against numerical ones, noise, and the average along a ray."""

import numpy as np
import pytest
import torch
from helpers.problems import relative_error
from skimage.metrics import structural_similarity
from skimage.transform import iradon

from data import Sampling, phantoms
from data.phantoms import TRAIN, Phantoms


def some(count=3) -> np.ndarray:
    return phantoms.jittered(np.random.default_rng(0).random((count, 10, 6)), *TRAIN)


def make(**changes) -> Phantoms:
    return Phantoms(Sampling(**{"shots": 3, "queries": 50, "meta_batch": 4, "seed": 0} | changes))


def test_projections_are_the_line_integrals():
    angles, offsets = np.array([[0.0, 0.7], [1.1, 2.0], [2.9, 3.1]]), np.linspace(-0.95, 0.95, 9)
    expected = np.empty((3, 2, 9))
    along = (2 * np.arange(20_000) + 1) / 20_000 - 1  # the middles of short pieces of a ray, 2 units long
    for view in range(2):
        for ray, offset in enumerate(offsets):
            cos, sin = np.cos(angles[:, view, None]), np.sin(angles[:, view, None])
            places = np.stack([offset * cos - along * sin, offset * sin + along * cos], -1)
            expected[:, view, ray] = 2 * phantoms.densities(some(), places).mean(-1)
    found = phantoms.projections(some(), angles, offsets)
    np.testing.assert_allclose(found, expected, atol=5e-4)  # a piece of 1e-4 at each edge


def test_noise_is_that_of_photons_and_of_the_measurements_alone():
    exact, noisy = make(shots=40).episode(0), make(shots=40, noise=0.01).episode(0)
    assert torch.equal(noisy.query_y, exact.query_y)
    error = 2 * (noisy.support_y - exact.support_y) / (0.01 * exact.support_y.exp())  # exp(integral / 2) of the noise
    assert abs(error.mean()) < 0.05
    assert abs(error.std() - 1) < 0.05
    assert make(noise=0.9).episode(0).support_y.isfinite().all()  # of one photon, which may not arrive


def test_loss_and_metric_are_of_the_average_along_a_ray():
    predictions = torch.tensor([[0.1, 0.5], [0.2, 0.2]])[..., None]  # averages 0.3 and 0.2
    assert Phantoms.objective.loss(predictions, torch.tensor([[0.4], [0.2]])) == pytest.approx(0.005)
    predictions = torch.full((5, 3, 1), 0.4)
    assert Phantoms.objective.metric(predictions, torch.full((5, 1), 0.5)) == pytest.approx(20.0, abs=1e-4)


def test_filtered_back_projection_is_scikit_images(monkeypatch):
    monkeypatch.setattr(phantoms, "RAYS", 33)  # theirs turns about the middle of one ray
    offsets = (2 * np.arange(33) + 1) / 33 - 1
    places = np.stack([part.ravel() for part in np.meshgrid(offsets, offsets)], -1)
    truth, likeness = phantoms.densities(some(count=1), places[None]).reshape(33, 33), []
    for views in (4, 60):
        angles = np.pi * np.arange(views) / views
        integrals = phantoms.projections(some(count=1), angles[None], offsets)
        normals = np.stack([np.cos(angles), np.sin(angles)], -1)[None]
        found = phantoms.back_projected(normals, integrals, places).reshape(33, 33)
        theirs = iradon(integrals[0].T * 33 / 2, theta=-np.rad2deg(angles), circle=True)
        inside = np.hypot(*places.T).reshape(33, 33) < 0.95
        assert relative_error(torch.tensor(found[inside]), torch.tensor(theirs[inside])) < 0.02
        likeness.append(structural_similarity(truth, found, data_range=1.0))
    assert likeness[1] > 0.6 > 0.4 > likeness[0]
