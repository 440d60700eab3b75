"""How a function of tensors is batched over tasks, traced, compiled and replayed."""
