"""Losses that see the network itself: regularisers, derivatives in x, several forward passes, masks of one's own."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from amaml.points import Points

Objective = Callable[["Model", Any, Any], Tensor]  # (model, x, y) of one task -> scalar


class Model:
    """The module with the parameters of one task: model(x) is its output, model.parameters are these by name."""

    def __init__(self, apply: Any, phi: Tensor, shared: Mapping[str, Tensor] | None) -> None:
        self._apply, self._phi, self._shared = apply, phi, shared

    def __call__(self, *x: Any, **keywords: Any) -> Any:
        """The module called with these arguments: all positional, or all by keyword."""
        return self._apply(self._phi, keywords or (x[0] if len(x) == 1 else x), self._shared)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Adapted and shared parameters, as the module names them."""
        return self._apply.pieces(self._phi) | dict(self._shared or {})


class Bound:
    """An apply that hands out the model and x instead of a prediction, for an Objective's loss."""

    def __init__(self, apply: Any) -> None:
        self.apply, self.module, self.batched = apply, apply.module, apply.batched

    def __call__(self, phi: Tensor, x: Points, shared: Mapping[str, Tensor] | None = None) -> tuple[Model, Points]:
        return Model(self.apply, phi, shared), x


class OfModel:
    """The loss of what Bound hands out: objective(model, x, y)."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, model_and_x: tuple[Model, Points], y: Any) -> Tensor:
        return self.objective(*model_and_x, y)


class Predicted:
    """The objective loss(model(x), y) + penalty(model.parameters)."""

    def __init__(
        self, loss: Callable[[Any, Any], Tensor], penalty: Callable[[dict[str, Tensor]], Tensor] | None = None
    ) -> None:
        self.loss, self.penalty = loss, penalty

    def __call__(self, model: Model, x: Points, y: Any) -> Tensor:
        prediction = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
        value = self.loss(prediction, y)
        return value if self.penalty is None else value + self.penalty(model.parameters)
