"""ANIL: the last layer alone adapts; the body is shared by all tasks, and learns by the exact meta-gradient."""

from typing import Any

import torch

from amaml.amaml import AMAML
from amaml.engine.derivatives import Loss
from amaml.models import Flattened


def anil(apply: Flattened, loss: Loss, inner_lr: float, inner_steps: int, **options: Any) -> AMAML:
    """Almost No Inner Loop (Raghu et al. 2020, section 4): A-MAML with a rate of zero for all but the last layer.

    The last layer is the one whose parameters the module declares last. theta and phi hold all parameters. The body's
    part of phi stays that of theta; its part of the meta-gradient is that of shared parameters, through the whole
    inner loop. Costs what A-MAML costs on the whole network: with a large body amaml.Adaptation(module, ...,
    adapt=(head,)) gives the same gradients for less. options are those of amaml.AMAML.
    """
    *_, last = apply.shapes
    head = last.rpartition(".")[0]
    one = next(apply.module.parameters())
    rates = [
        torch.full((size,), inner_lr if name.rpartition(".")[0] == head else 0.0, dtype=one.dtype, device=one.device)
        for name, size in zip(apply.shapes, apply.sizes, strict=True)
    ]
    return AMAML(apply, loss, torch.cat(rates), inner_steps, **options)
