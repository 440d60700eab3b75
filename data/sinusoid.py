"""Sinusoid regression as in the MAML paper (Finn et al. 2017, section 5.1): an endless stream of tasks.

y = amplitude sin(x - phase), amplitude in [0.1, 5], phase in [0, pi], x in [-5, 5]; not standardised, so that errors
compare with the published ones.
"""

import numpy as np

from amaml.tasks import Tasks
from data.domain import OTHER_UNITS, Endless

GRID = 1000  # test points, evenly on the line


class Sinusoid(Endless):
    """New sinusoids in every episode."""

    input_shape = (1,)
    outputs = 1
    objective = OTHER_UNITS

    def tasks(self, rng: np.random.Generator, count: int, first: int = 0, test: bool = False) -> Tasks:
        """count sinusoids; the test points are the grid."""
        s = self.sampling
        draws = rng.uniform(size=(first + count, 2 + s.shots + s.queries, 1))[first:]
        amplitude, phase = 0.1 + 4.9 * draws[:, :1], np.pi * draws[:, 1:2]
        inputs = np.split(-5.0 + 10.0 * draws[:, 2:], [s.shots], axis=1)
        if test:
            inputs.append(np.tile(np.linspace(-5.0, 5.0, GRID)[:, None], (count, 1, 1)))
        return Tasks(*(self.tensor(part) for x in inputs for part in (x, amplitude * np.sin(x - phase))))
