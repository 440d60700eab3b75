"""A traced graph compiled by torch.compile, and replayed as a CUDA graph on CUDA; as it is where that fails."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

Result = Tensor | tuple[Tensor, ...]


def compile_graph(traced: GraphModule, examples: list[Tensor]) -> Callable[..., Result]:
    """The graph compiled for arguments like these; as it was traced, with one warning, where the device's compiler or
    its CUDA graphs fail."""
    device = examples[0].device.type
    if device in _without_compiler:
        return traced
    replayed = _compiled_for(device, traced)
    try:
        for _ in range(3 if device == "cuda" else 1):  # a CUDA graph is warmed up, recorded, replayed
            replayed(*examples)  # compiled for these: a call with one tensor in two places would tie them for good
    except Exception as fault:  # compilers fail in many ways
        _without_compiler.add(device)
        reason = next((line for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
        warnings.warn(
            f"torch.compile fails on this {device} device ({reason.strip()}); going on with the traced graphs, which "
            "take two to three times as long for small networks. --compile off avoids the attempt",
            RuntimeWarning,
            stacklevel=2,
        )
        return traced
    return replayed


def _compiled_for(device: str, traced: GraphModule) -> Callable[..., Result]:
    # the key of a graph already guards shapes, dtypes and devices
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    if device != "cuda":
        return torch.compile(traced, dynamic=False, options=options)
    replayed = torch.compile(traced, dynamic=False, options=options | {"triton.cudagraphs": True})

    def fresh(*arguments: Tensor) -> Result:
        torch.compiler.cudagraph_mark_step_begin()  # a CUDA graph writes every result to the same place
        result = replayed(*arguments)
        return result.clone() if isinstance(result, Tensor) else tuple(part.clone() for part in result)

    return fresh


_without_compiler: set[str] = set()  # kinds of devices on which torch.compile has failed in this process
