"""The tables and pictures of results/ come out of its CSVs again: every digit of a table, every point of a curve."""

import csv
import re

import numpy as np
import pandas as pd
import pytest
from helpers.commands import ROOT

from benchmarks import paper, paper_pictures
from benchmarks.peers import report
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
    made = {
        "figure.md": paper.figure(found["figure"]),
        "tables.md": paper.tables(found["tables"]),
        "horizons.md": paper.horizons(found["horizons"]),
        "trials.md": paper.trials(found["trials"]),
        "../efficiency/peers.md": report.tables(pd.read_csv(RESULTS / "efficiency" / "peers.csv")),
    }
    for name, text in made.items():
        assert text == (RESULTS / "paper" / name).read_text(), name


def test_a_verdict_that_no_cell_has_is_that_a_seed_never_passes_the_papers_number():
    inner = pd.DataFrame({"support": [0.11], "test": [0.13]})
    assert paper._table_verdict((0.1, 0.01), inner, pd.Series([10.0, np.inf])) == "not"


def test_the_table_of_images_comes_out_again():
    """Of README.md: the mean over the seeds in %, its interval, and each seed."""
    frame = results.read(RESULTS / "images" / "images.csv")
    ends = results.marked(frame).query("end and final").set_index(["run", "domain", "seed"])["test"].sort_index() * 100
    text = (RESULTS / "images" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
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
        made = [tables.errors(panel, points) for points in tables.HEADS]
        for table in (*made, tables.predictors(panel), tables.costs(panel)):
            assert tables.as_markdown(table) in text


def test_the_picture_of_the_peers_draws_the_numbers_of_its_csv():
    axis = report.figure(pd.read_csv(report.CSV)).axes[0]
    names, widths = [t.get_text() for t in axis.get_yticklabels()], [b.get_width() for b in axis.patches]
    place = {"network": "small", "dtype": "float64", "theta": "untrained", "steps": "200", "quantity": "A-MAML, 1e-2"}
    (line,) = lines("efficiency/peers.csv", **place)
    assert len(names) == len(widths)
    assert widths[names.index("A-MAML, rtol 1e-2: amaml")] == pytest.approx(1000 * float(line["seconds"]))


def lines(csv_file: str, **place: str) -> list[dict[str, str]]:
    """The lines of a CSV of results/ at a place, read without pandas."""
    with open(RESULTS / csv_file) as file:
        return [line for line in csv.DictReader(file) if place.items() <= line.items()]


def test_the_papers_figure_draws_the_numbers_of_its_csv(found):
    shown = found["figure"].query("setting == 'ours' and unit == 'epoch' and final")
    for panel, points in (("CosMixture-50", "support"), ("Alpine2D-100", "test")):
        axes = paper_pictures.panels(shown, "ours", points, paper.PAPER).axes
        (axis,) = [a for a in axes if a.get_title() == f"{panel.replace('-', ', ')} support points"]
        own = lines("paper/paper-figure.csv", panel=panel, setting="ours", method="imaml")
        assert len(own) == 3
        names = [name for name in own[0] if re.fullmatch(rf"{points}_epoch_\d+", name)]
        mean = np.mean([[float(line[name]) for name in names] for line in own], axis=0)
        curves = [line for line in axis.lines if len(line.get_xdata()) == len(names)]
        assert any(np.allclose(line.get_ydata(), mean, rtol=1e-12) for line in curves)
        np.testing.assert_array_equal(curves[0].get_xdata(), [int(name.split("_")[-1]) for name in names])


def test_the_pictures_of_horizons_draw_the_numbers_of_their_csvs(found):
    frame = paper.along(found["horizons"])
    own = lines("paper/horizons.csv", domain="CosMixture2D", run="amaml", inner_steps="200", update="450")
    assert len(own) == 5
    test = np.mean([float(line["test_step_200"]) for line in own])
    work = np.mean([0.45 * (float(line["gradients"]) + 2 * float(line["hvps"])) for line in own])
    over_steps = paper_pictures.over_horizons(frame[frame["final"]])
    over_work = paper_pictures.over_work(frame)
    for drawn, x in ((over_steps, 200), (over_work, work)):
        (axis,) = [axis for axis in drawn.axes if axis.get_title() == "CosMixture2D"]
        points = np.concatenate([line.get_xydata() for line in axis.lines])
        assert np.isclose(points, (x, test), rtol=1e-9).all(axis=1).any()


@pytest.mark.parametrize("target", ["paper-figure", "paper-tables", "images"])
def test_what_stands_in_a_csv_counts_as_done_in_a_clone(target, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    count = len(read_grid(TARGETS / f"{target}.toml").cells)
    assert main([target, "--status"]) == 0
    assert capsys.readouterr().out.startswith(f"{count} cells: {count} done\n")
