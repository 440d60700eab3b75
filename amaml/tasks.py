"""A batch of tasks, the only form in which data reaches a learner."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from amaml.errors import InputError


@dataclass(frozen=True)
class Tasks:
    """Support and query sets of a batch of tasks; the first axis of every tensor counts the tasks.

    support_x (tasks, shot, *input), query_x (tasks, query, *input), the targets likewise. A meta-test batch
    also carries test_x, test_y: the points on which the adapted parameters are judged.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    test_x: Tensor | None = None
    test_y: Tensor | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, Tensor) and not (value is None and f.name.startswith("test")):
                raise InputError(
                    f"{f.name} must be a torch.Tensor, got {type(value).__name__}; torch.as_tensor({f.name}) makes one"
                )
        counts = {f.name: tuple(t.shape[:1]) for f in fields(self) if (t := getattr(self, f.name)) is not None}
        if len(set(counts.values())) != 1 or () in counts.values() or (0,) in counts.values():
            raise InputError(f"every tensor of Tasks needs the same first axis (tasks >= 1), got {counts}")
        for x, y in (
            (self.support_x, self.support_y),
            (self.query_x, self.query_y),
            (self.test_x, self.test_y),
        ):
            if x is not None and (y is None or x.shape[:2] != y.shape[:2]):
                raise InputError(
                    f"inputs and targets disagree: {tuple(x.shape)} and {None if y is None else tuple(y.shape)}; "
                    "both begin with (tasks, points)"
                )

    def __len__(self) -> int:
        return len(self.support_x)

    def __getitem__(self, which: slice | Tensor) -> Tasks:
        """The tasks of a slice, as views, or those of a tensor of indices, copied."""
        return self._map(lambda tensor: tensor[which])

    def to(self, *args, **kwargs) -> Tasks:
        """As torch.nn.Module.to: every tensor moves to the device, and those of floating-point numbers to the dtype."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(*args, **kwargs)
            return moved if tensor.is_floating_point() else tensor.to(moved.device)  # class numbers stay what they are

        return self._map(move)

    def _map(self, change) -> Tasks:
        tensors = (getattr(self, f.name) for f in fields(self))
        return Tasks(*(None if tensor is None else change(tensor) for tensor in tensors))
