"""The tables and pictures of results/ come out of its CSVs again: every digit of a table, every point of a curve."""

import csv
import re

import numpy as np
import pandas as pd
import pytest
from helpers.commands import ROOT

from benchmarks import directions, paper, paper_pictures
from benchmarks.peers import picture
from benchmarks.peers import table as peers_table
from experiment import compare, results, tables
from experiment.evaluation import mean_and_interval
from experiment.grid import TARGETS, read_grid
from experiment.reproduce import main

RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def found():
    """The frame of every part of the paper."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {part: paper.read(targets) for part, targets in paper.TARGETS.items()}


def test_the_tables_come_out_again(found):
    horizons, after = found["horizons"], found["trained on"]
    made = {
        "figure.md": paper.figure(found["figure"]),
        "tables.md": paper.tables(found["tables"]),
        "horizons.md": f"{paper.horizons(horizons)}\n{paper.trained_on(after, horizons)}",
        "trials.md": paper.trials(found["trials"]),
        "directions.md": directions.table(pd.read_csv(RESULTS / "paper" / "directions.csv")),
        "../efficiency/peers.md": peers_table.tables(pd.read_csv(RESULTS / "efficiency" / "peers.csv")),
    }
    for name, text in made.items():
        assert text == (RESULTS / "paper" / name).read_text(), name


def test_the_table_of_images_comes_out_again():
    """Of README.md: the mean over the seeds in %, its interval, and each seed."""
    frame = results.read(RESULTS / "images" / "images.csv")
    ends = results.marked(frame).query("end and final").set_index(["run", "domain", "seed"])["test"].sort_index() * 100
    rows = [
        [c.strip() for c in line.split("|")] for line in (RESULTS / "images" / "README.md").read_text().splitlines()
    ]
    names = {"amaml, euler": "amaml", "imaml, damping 1": "imaml", "imaml, damping 10": "imaml-damping10"}
    seen = [row for row in rows if len(row) == 9 and names.get(row[1], row[1]) in ends.index.get_level_values("run")]
    assert len(seen) == 9
    for row in seen:
        for domain, column in (("Omniglot", 2), ("Glyphs", 5)):
            values = ends[names.get(row[1], row[1]), domain].to_numpy()
            assert row[column] == "{:.1f} +- {:.1f}".format(*mean_and_interval(values))
            assert row[column + 1] == ", ".join(f"{value:.1f}" for value in values)


def test_the_tables_of_tomography_come_out_again():
    text = (RESULTS / "tomography" / "comparison.md").read_text()
    for panel in compare.panels(*compare.read_runs([RESULTS / "tomography" / "tomography.csv"])):
        made = [tables.errors(panel, points, panel.epochs(None)) for points in tables.HEADS]
        for table in (*made, tables.predictors(panel), tables.costs(panel)):
            assert tables.as_markdown(table) in text


def test_a_part_of_a_csv_is_compared_as_the_pages_say():
    place = {"setting": ["ours"], "panel": ["CosMixture-50"], "seed": ["0"]}
    for panel in compare.panels(*compare.read_runs([RESULTS / "paper" / "paper-figure.csv"], place)):
        assert len(panel.labels) >= 6
        head, *rows = tables.differences(panel, "amaml", panel.epochs(None))
        assert all(len(row) == len(head) for row in rows)


def test_the_picture_of_the_peers_draws_the_numbers_of_its_csv():
    axis = picture.figure(pd.read_csv(picture.CSV)).axes[0]
    shown = dict(
        zip((t.get_text() for t in axis.get_yticklabels()), (b.get_width() for b in axis.patches), strict=True)
    )
    place = {"network": "small", "dtype": "float64", "theta": "untrained", "steps": "200", "quantity": "A-MAML, 1e-2"}
    with open(picture.CSV) as file:
        (line,) = [line for line in csv.DictReader(file) if place.items() <= line.items()]
    assert shown["A-MAML, rtol 1e-2: amaml"] == pytest.approx(1000 * float(line["seconds"]))


def lines(target: str, **place: str) -> list[dict[str, str]]:
    """The lines of a CSV at a place, read without pandas."""
    with open(RESULTS / "paper" / f"{target}.csv") as file:
        return [line for line in csv.DictReader(file) if place.items() <= line.items()]


def test_the_papers_figure_draws_the_numbers_of_its_csv(found):
    shown = found["figure"].query("setting == 'ours' and unit == 'epoch' and final")
    for panel, points in (("CosMixture-50", "support"), ("Alpine2D-100", "test")):
        axes = paper_pictures.panels(shown, "ours", points, paper.PAPER).axes
        (axis,) = [a for a in axes if a.get_title() == f"{panel.replace('-', ', ')} support points"]
        own = lines("paper-figure", panel=panel, setting="ours", method="imaml")
        assert len(own) == 3
        names = [name for name in own[0] if re.fullmatch(rf"{points}_epoch_\d+", name)]
        mean = np.mean([[float(line[name]) for name in names] for line in own], axis=0)
        curves = [line for line in axis.lines if len(line.get_xdata()) == len(names)]
        assert any(np.allclose(line.get_ydata(), mean, rtol=1e-12) for line in curves)
        np.testing.assert_array_equal(curves[0].get_xdata(), [int(name.split("_")[-1]) for name in names])


def test_the_horizons_picture_draws_the_numbers_of_its_csvs(found):
    own = {
        part: found[part].query("domain == 'CosMixture2D' and unit != 'epoch'") for part in ("horizons", "trained on")
    }
    left, right = paper_pictures.over_horizons(own["horizons"], own["trained on"], "CosMixture2D", 450).axes
    place = {"domain": "CosMixture2D", "method": "fomaml", "inner_steps": "50"}
    at_450 = [float(line["test_step_50"]) for line in lines("horizons", update="450", **place)]
    assert len(at_450) == 3
    (curve,) = [line for line in left.lines if line.get_color() == paper_pictures.STYLES["fomaml"]["color"]]
    assert dict(zip(curve.get_xdata(), curve.get_ydata(), strict=True))[50] == pytest.approx(np.mean(at_450), rel=1e-12)
    last = lines("horizons-on", domain="CosMixture2D", method="amaml")
    dotted = [line for line in right.lines if line.get_linestyle() == ":"]
    ends = [line.get_ydata()[-1] for line in dotted]
    assert ends[0] == pytest.approx(np.mean([float(line["test_step_200"]) for line in last]), rel=1e-12)


@pytest.mark.parametrize(
    "target", ["paper-figure", "paper-tables", "horizons", "horizons-maml", "horizons-on", "images"]
)
def test_what_stands_in_a_csv_counts_as_done_in_a_clone(target, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    count = len(read_grid(TARGETS / f"{target}.toml").cells)
    assert main([target, "--status"]) == 0
    assert capsys.readouterr().out.startswith(f"{count} cells: {count} done\n")
