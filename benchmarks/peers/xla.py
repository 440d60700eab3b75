"""JAX: jit, vmap over the tasks, lax.scan over the steps, jax.checkpoint around each.

python benchmarks/peers/xla.py PROBLEM.npz NETWORK STEPS
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from turns import serve


def main() -> None:
    file, network, steps = sys.argv[1:]
    jax.config.update("jax_enable_x64", True)
    given = {name: jnp.asarray(value) for name, value in np.load(file).items()}
    shapes = [tuple(int(n) for n in shape if n) for shape in np.asarray(given["shapes"])]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    theta, inner_lr = given["theta"], given["inner_lr"].item()
    support, query = ((given[f"{part}_x"], given[f"{part}_y"]) for part in ("support", "query"))
    predict, loss = (conv, classified) if network == "conv" else (mlp, fitted)
    phi, v = (jnp.tile(one, (len(support[0]), 1)) for one in (theta, given["v"]))

    def value(p, x, y):
        pieces = zip(jnp.split(p, ends), shapes, strict=True)  # of the layers, in the order of torch's
        return loss(predict([piece.reshape(shape) for piece, shape in pieces], x), y)

    gradient = jax.grad(value)

    def adapted(theta, x, y):
        step = jax.checkpoint(lambda p, _: (p - inner_lr * gradient(p, x, y), None))
        return jax.lax.scan(step, theta, None, length=int(steps))[0]

    def outer(theta):
        return jax.vmap(lambda x, y, x_q, y_q: value(adapted(theta, x, y), x_q, y_q))(*support, *query).mean()

    def first_order(theta):
        return jax.vmap(lambda x, y, x_q, y_q: gradient(adapted(theta, x, y), x_q, y_q))(*support, *query).mean(0)

    def hvp(p, v, x, y):
        return jax.vjp(lambda p: gradient(p, x, y), p)[1](v)[0]

    quantities = {
        "gradient": (jax.vmap(gradient), phi, *support),
        "product": (jax.vmap(hvp), phi, v, *support),
        "FOMAML": (first_order, theta),
        "MAML, checkpointed": (jax.grad(outer), theta),
    }
    serve({name: partial(jax.jit(function), *given) for name, (function, *given) in quantities.items()})


def mlp(parameters, x):
    """Linear layers with tanh between them; weights (outputs, inputs)."""
    for i in range(0, len(parameters), 2):
        x = (jnp.tanh(x) if i else x) @ parameters[i].T + parameters[i + 1]
    return x


def conv(parameters, x):
    """Blocks of [convolution of stride 2, batch norm by the batch, GELU], the mean over space, a linear layer."""
    for weight, bias, scale, shift in zip(*(parameters[i:-2:4] for i in range(4)), strict=True):
        x = jax.lax.conv_general_dilated(x, weight, (2, 2), ((1, 1), (1, 1))) + bias[:, None, None]
        mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        x = (x - mean) / jnp.sqrt(variance + 1e-5) * scale[:, None, None] + shift[:, None, None]
        x = jax.nn.gelu(x, approximate=False)
    return x.mean((2, 3)) @ parameters[-2].T + parameters[-1]


def fitted(prediction, y):
    return 0.5 * ((prediction - y) ** 2).mean()


def classified(logits, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


if __name__ == "__main__":
    main()
