"""What benchmarks.paper says beside the committed results, whose tables and curves test_committed_results makes."""

import pandas as pd
import pytest

from benchmarks import paper, paper_pictures
from experiment import results


def result(
    points: dict[str, list[float]],
    unit: str = "epoch",
    update: int = 300,
    epochs: tuple[int, ...] | None = None,
    seed: int = 0,
    **labels: str,
) -> pd.DataFrame:
    """A run's lines; its last meta-test alone."""
    epochs = epochs or ((0, 10, 1000) if unit == "epoch" else (0, 1, 200))
    facts = {"then": 0, "update": update, "seconds": 0.25, "unit": unit, "epoch": epochs}
    return pd.DataFrame({"seed": seed, **labels, **facts, **points})


def frame(*parts: pd.DataFrame) -> pd.DataFrame:
    return results.marked(pd.concat(parts, ignore_index=True))


POINTS = {"support": [0.9, 0.6, 0.3], "test": [1.1, 0.8, 0.4]}
PLACE = {"domain": "Alpine2D", "method": "amaml", "inner_steps": "200"}


@pytest.mark.parametrize(
    ("unseen", "seen", "passed", "verdict"),
    [
        (0.11, 0.5, [10.0], "reproduced"),
        (0.13, 0.09, [10.0], "seen only, inner loop"),
        (0.13, 0.11, [10.0, 20.0], "seen only, Adam"),
        (0.13, 0.11, [10.0, float("inf")], "not"),
    ],
)
def test_a_number_of_the_tables_is_reproduced_where_unseen_ratings_have_it(unseen, seen, passed, verdict):
    inner = result({"support": [seen], "test": [unseen]}, "inner step", epochs=(50,))
    assert paper._table_verdict((0.1, 0.01), inner, pd.Series(passed)) == verdict


def test_seeds_that_were_tested_at_other_updates_share_a_curve():
    """A run that was made longer in steps has been tested where the others were not."""
    found = frame(
        *(result(POINTS, "inner step", **PLACE), result(POINTS, "inner step", 50, **PLACE)),
        result(POINTS, "inner step", seed=1, **PLACE),
    )
    values = paper_pictures._seconds(found[found["end"]])
    assert list(values.index) == [75.0]
    assert values.loc[75.0].tolist() == pytest.approx([0.4, 0.4])


def test_the_horizons_picture_says_which_runs_were_shorter():
    long = [result(POINTS, "inner step", update, **PLACE) for update in (300, 900)]
    both = frame(result(POINTS, "inner step", **PLACE | {"method": "maml"}), *long)
    left = paper_pictures.over_horizons(both, both.head(0), "Alpine2D", 900).axes[0]
    assert left.get_title() == "after 900 meta-updates\n(open marks: MAML with 200 steps after 300)"
    assert [line.get_markerfacecolor() for line in left.lines].count("white") == 1
    names = {text.get_text(): text.xyann[1] for text in left.texts}
    assert names.keys() == {"A-MAML", "MAML"}  # whose ends are at one place
    assert abs(names["A-MAML"] - names["MAML"]) > 0.05
    left = paper_pictures.over_horizons(frame(*long), both.head(0), "Alpine2D", 900).axes[0]
    assert left.get_title() == "after 900 meta-updates"


def test_a_picture_says_how_many_seeds_its_curves_have():
    runs = [result(POINTS, seed=seed, method="amaml") for seed in range(3)]
    assert paper_pictures.seeds_of(frame(runs[0])) == "one seed"
    several = paper_pictures.seeds_of(frame(*runs, result(POINTS, method="maml")))
    assert several == "mean, and bars from lowest to highest, of 1 to 3 seeds"
