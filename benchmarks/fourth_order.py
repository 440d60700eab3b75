"""What a stabilised scheme of fourth order could save: the gradients that the step control would plan with one.

    python -m benchmarks.fourth_order            writes results/efficiency/fourth-order.md

ROCK4 (Abdulle 2002) has a stability interval of about 0.35 s^2 for s >= 5 stages, RKC one of 0.65 s^2. It is granted
the accuracy of rk4, whose constants in the step control (amaml.flow.steps.StepLaw) stand for it. lambda_max is
constant.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from amaml.files import write_atomically
from amaml.flow.steps import MARGIN, SOLVERS, Candidate, StepLaw, _block

INTERVAL, FEWEST, MOST = 0.35, 5, 152
RTOLS = (1e-2, 1e-3, 1e-4, 1e-5)
PRODUCTS = (2, 10, 40, 200, 1000, 5000)  # horizon * lambda_max


@dataclass(frozen=True)
class Rock4:
    """As much of the scheme as a plan needs."""

    cost: int
    order = 4

    @property
    def stability(self) -> float:
        return INTERVAL * self.cost**2


def fewest_stages(z: float) -> Rock4:
    return Rock4(max(FEWEST, math.ceil(math.sqrt(z / MARGIN / INTERVAL))))


ROCK4 = Candidate(4, fewest_stages, MARGIN * Rock4(MOST).stability)


def gradients(candidates: tuple[Candidate, ...], product: float, rtol: float) -> int:
    """Of the forward pass over a horizon of 1."""
    law, t, spent = StepLaw(candidates, 1.0, rtol, start=product), 0.0, 0
    while t < 1.0:
        moves = _block(law.plan(t, product))  # lambda_max is looked at again after each, as in a run
        spent += sum(move.scheme.cost for move in moves)
        t = moves[-1].end
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/efficiency", help="folder of the table")
    out = Path(parser.parse_args().out)
    auto = SOLVERS["auto"]
    lines = [
        "`python -m benchmarks.fourth_order`",
        "",
        "Gradients of a forward pass as the step control plans it: rk4 and rkc (`auto`), and with ROCK4 to choose from "
        "as well, were it as accurate as rk4. A plan, not a run.",
        "",
        "| T lambda_max | " + " | ".join(f"rtol {rtol:g}" for rtol in RTOLS) + " |",
        "|---" * (1 + len(RTOLS)) + "|",
    ]
    for product in PRODUCTS:
        pairs = [(gradients(auto, product, rtol), gradients((*auto, ROCK4), product, rtol)) for rtol in RTOLS]
        cells = [f"{plain}, {both} ({both / plain - 1:+.0%})" for plain, both in pairs]
        lines.append(f"| {product} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "fourth-order.md", text.encode())


if __name__ == "__main__":
    main()
