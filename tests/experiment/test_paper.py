"""What benchmarks.paper says beside the committed results, whose tables and curves test_committed_results makes."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from benchmarks import paper, paper_pictures
from experiment import results
from experiment.figures_compare import name_lines


def result(points: dict, unit: str = "epoch", update: int = 300, epochs=None, seed: int = 0, **labels) -> pd.DataFrame:
    """A run's lines; its last meta-test alone."""
    epochs = epochs or ((0, 10, 1000) if unit == "epoch" else (0, 1, 200))
    facts = {"then": 0, "update": update, "seconds": 0.25, "unit": unit, "epoch": epochs}
    return pd.DataFrame({"seed": seed, **labels, **facts, **points})


def frame(*parts: pd.DataFrame) -> pd.DataFrame:
    return results.marked(pd.concat(parts, ignore_index=True))


POINTS = {"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.4]}


def test_a_number_of_the_tables_is_reproduced_where_unseen_ratings_have_it():
    for unseen, seen, passed, verdict in (
        (0.11, 0.5, [10.0], "reproduced"),
        (0.13, 0.09, [10.0], "seen only, inner loop"),
        (0.13, 0.11, [10.0, 20.0], "seen only, Adam"),
        (0.13, 0.11, [10.0, float("inf")], "not"),
    ):
        inner = result({"support": [seen], "test": [unseen]}, "inner step", epochs=(50,))
        assert paper._table_verdict((0.1, 0.01), inner, pd.Series(passed)) == verdict


def horizon(run: str, tests: dict[int, float], seed: int = 0, **cost: float) -> list[pd.DataFrame]:
    """The meta-tests of a run of 200 steps after some updates."""
    place = {"domain": "Alpine2D", "run": run, "inner_steps": "200"}
    cost = {"gradients": 200.0, "hvps": 0.0} | cost
    return [
        result(POINTS | {"test": [1.1, 0.8, test]}, "inner step", n, seed=seed, **place).assign(**cost)
        for n, test in tests.items()
    ]


def test_horizons_tell_the_work_and_how_far_ahead_of_reptile_on_the_same_seeds():
    ours = [part for seed in (0, 1) for part in horizon("amaml", {50: 0.9, 100: 0.5 + seed / 10}, seed, hvps=150)]
    found = frame(*ours, *horizon("reptile", {50: 0.9, 100: 0.7}), *horizon("reptile", {100: 0.2}, seed=2))
    text = paper.horizons(found)
    assert "| amaml | 200 | 0, 1 | 100 | 50 | 0.900, 0.900 | 0.500, 0.600 | 0.200 |" in text
    assert "| reptile | 200 | 0, 2 | 100 | 20 | 0.900 | 0.700, 0.200 |  |" in text


def test_names_stand_apart_where_lines_end_at_one_place():
    axis, look = Figure().subplots(), {"a line": "black", "another": "black"}
    name_lines(axis, dict.fromkeys(look, (0.5, 0.5)), look)
    heights = {text.get_text(): text.xyann[1] for text in axis.texts}
    assert heights.keys() == look.keys()
    assert abs(heights["a line"] - heights["another"]) > 0.05


def test_a_picture_says_how_many_seeds_its_curves_have():
    runs = [result(POINTS, seed=seed, method="amaml") for seed in range(3)]
    assert paper_pictures.seeds_of(frame(runs[0])) == "one seed"
    several = paper_pictures.seeds_of(frame(*runs, result(POINTS, method="maml")))
    assert several == "mean, and bars from lowest to highest, of 1 to 3 seeds"
