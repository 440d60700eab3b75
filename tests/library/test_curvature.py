"""lambda_max: from below, settled, and not missed where the field does not show it."""

import pytest
import torch
from helpers.problems import Quadratic, diagonal, mlp_flow
from torch.func import jacrev, vmap

from amaml import half_mse
from amaml.flow.curvature import Curvature, Leading
from amaml.flow.field import GradientFlow


def test_lambda_max_is_settled_before_it_is_believed():
    flow = mlp_flow(shots=20)
    exact = vmap(jacrev(jacrev(lambda u, x, y: flow.loss(flow.apply(u, x), y))), (None, 0, 0))
    largest = torch.linalg.eigvalsh(exact(flow.theta, *flow.tasks.support))[:, -1]
    found = torch.tensor(Curvature(flow).at(flow.start), dtype=torch.float64)
    assert (found <= largest * (1 + 1e-9)).all()
    assert (found > 0.9 * largest).all()


def hidden() -> GradientFlow:
    """A flow in which theta is optimal along the one stiff direction."""
    theta, tasks, _ = diagonal([50.0, *39 * [1.0]], [1.0, *39 * [0.0]], 40 * [1.0])
    return GradientFlow(Quadratic.apply, half_mse, tasks, theta)


def products(flow: GradientFlow, curvature: Curvature, u) -> int:
    before = flow.evaluations.hvps
    curvature.at(u)
    return flow.evaluations.hvps - before


def test_a_look_that_finds_nothing_changed_takes_one_product():
    flow = mlp_flow(shots=20)
    curvature = Curvature(flow)
    assert products(flow, curvature, flow.start) >= 3
    assert products(flow, curvature, flow.start) == 0
    curvature.at(flow.start + 0.0)
    assert products(flow, curvature, flow.start + 1e-3) == 1
    for other in (3.0, 0.0):  # lambda_max larger, and smaller
        assert products(flow, curvature, other * flow.start) > 1


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.3])
def test_what_another_batch_had_is_a_direction_to_begin_from_and_no_value(factor):
    flow = mlp_flow(shots=20)
    look = Curvature(flow)
    look.at(flow.start)
    assert look.leading.value == max(look.found)
    known = Curvature(flow, known=look.leading._replace(value=factor * look.leading.value))
    assert products(flow, known, flow.start) == 2
    assert known.leading.value == pytest.approx(look.leading.value, rel=0.1)
    direction = known.leading.direction
    assert direction.untyped_storage().nbytes() == direction.nbytes  # a checkpoint holds it, and not the whole batch


def test_a_stiff_direction_is_found_from_call_to_call_although_none_of_them_looks_long():
    """What is known is another eigenvector: each call begins where the last one ended."""
    flow, known = hidden(), Leading(1.0, torch.eye(40, dtype=torch.float64)[1])
    for _ in range(3):
        curvature = Curvature(flow, known=known)
        curvature.at(flow.start)
        known = curvature.leading
    assert known.value > 40


def test_a_stiff_direction_that_the_field_does_not_hold_is_seen():
    flow = hidden()
    assert flow.at_start[0, 0] == 0
    assert Curvature(flow).at(flow.start)[0] > 40
