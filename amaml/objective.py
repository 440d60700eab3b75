"""Losses that see the network itself: regularisers, derivatives in x, several forward passes, masks of one's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from amaml.engine.derivatives import Loss
from amaml.errors import InputError
from amaml.points import Points, call

Objective = Callable[["Model", Any, Any], Tensor]  # (model, x, y) of one task -> scalar


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """The module with the parameters of one task: model(x) is its output, model.parameters are these by name."""

    _apply: Any
    _phi: Tensor
    _shared: Mapping[str, Tensor] | None

    def __call__(self, *x: Any, **keywords: Any) -> Any:
        """The module called with these arguments: all positional, or all by keyword."""
        return self._apply(self._phi, keywords or (x[0] if len(x) == 1 else x), self._shared)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Adapted and shared parameters, as the module names them."""
        return self._apply.pieces(self._phi) | dict(self._shared or {})


class WithModel:
    """An apply that hands out the model and x instead of a prediction, for the loss OfModel."""

    def __init__(self, apply: Any) -> None:
        self.apply, self.module, self.batched = apply, apply.module, apply.batched

    def __call__(self, phi: Tensor, x: Points, shared: Mapping[str, Tensor] | None = None) -> tuple[Model, Points]:
        return Model(self.apply, phi, shared), x


@dataclass(frozen=True, eq=False)
class OfModel:
    """The loss of what WithModel hands out: objective(model, x, y)."""

    objective: Objective

    def __call__(self, model_and_x: tuple[Model, Points], y: Any) -> Tensor:
        return self.objective(*model_and_x, y)


@dataclass(frozen=True, eq=False)
class Predicted:
    """The objective loss(model(x), y) + penalty(model.parameters)."""

    loss: Callable[[Any, Any], Tensor]
    penalty: Callable[[dict[str, Tensor]], Tensor] | None = None

    def __call__(self, model: Model, x: Points, y: Any) -> Tensor:
        value = self.loss(call(model, x), y)
        return value if self.penalty is None else value + self.penalty(model.parameters)


def losses_of(
    loss: Loss | None, query_loss: Loss | None, objective: Objective | None, penalty: Callable | None
) -> tuple[Loss, Loss | None]:
    """The inner loss and the outer one (None: the same) as a learner takes them."""
    if objective is None and penalty is None:
        return loss, query_loss
    inner = OfModel(objective or Predicted(loss, penalty))
    outer = query_loss or (None if objective else loss)
    return inner, None if outer is None else OfModel(Predicted(outer))


def check_given(loss: Any, inner_lr: Any, inner_steps: Any, objective: Any, penalty: Any) -> None:
    """Raise InputError where something that is needed was not given, or twice."""
    if (loss is None) == (objective is None):
        raise InputError("give either loss(prediction, target) or objective(model, x, y)")
    if objective is not None and penalty is not None:
        raise InputError("penalty goes with loss; add it to the objective, which sees model.parameters")
    for name, value in (("inner_lr", inner_lr), ("inner_steps", inner_steps)):
        if value is None:
            raise InputError(f"{name} is missing: Adaptation(module, loss, inner_lr=0.01, inner_steps=200)")


def check_untrained(module: nn.Module, *losses: Any) -> None:
    """Raise InputError where something requires a gradient that an Adaptation does not give it."""
    there = [(f"the buffer {name} of the module", buffer) for name, buffer in module.named_buffers()]
    for loss in losses:
        if isinstance(loss, nn.Module):
            there += [(f"the parameter {name} of the loss", p) for name, p in loss.named_parameters()]
    for name, tensor in there:
        if tensor.requires_grad:
            raise InputError(
                f"{name} requires a gradient, and has no meta-gradient here; give it with the tasks, beside support_y "
                "or support_x, or set .requires_grad_(False)"
            )
