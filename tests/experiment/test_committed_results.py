"""The tables and pictures of results/ come out of its CSVs again, to the digit and to the byte."""

import matplotlib
import pandas as pd
import pytest
from helpers.commands import ROOT

from benchmarks import paper, paper_pictures
from benchmarks.peers import report
from experiment import compare, figures, figures_compare, results, tables
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


def test_every_picture_comes_out_again(found, tmp_path, monkeypatch):
    """To the byte, in the version of matplotlib that they name."""
    monkeypatch.setattr(figures, "METADATA", {"svg": {"Date": None}})
    paper_pictures.draw(found["figure"], paper.along(found["horizons"]), paper.PAPER, tmp_path)
    figures.save(report.figure(pd.read_csv(RESULTS / "efficiency" / "peers.csv")), tmp_path / "meta-update")
    only = {"setting": ["ours"], "panel": ["CosMixture-50"], "seed": ["0"]}
    for csv, places in (("tomography/tomography", {}), ("paper/paper-figure", only)):
        for panel in compare.panels(*compare.read_runs([RESULTS / f"{csv}.csv"], places)):
            figures_compare.draw(panel, tmp_path)
    (tmp_path / "CosMixture-50-50-epochs-adaptation.svg").rename(tmp_path / "methods-CosMixture-50.svg")
    committed = {path.name: path.read_text() for path in RESULTS.rglob("*.svg")}
    for name, text in committed.items():
        same = text == (tmp_path / name).read_text()
        assert same or f"Matplotlib v{matplotlib.__version__}" not in text, name


@pytest.mark.parametrize("target", ["paper-figure", "paper-tables", "images"])
def test_what_stands_in_a_csv_counts_as_done_in_a_clone(target, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    count = len(read_grid(TARGETS / f"{target}.toml").cells)
    assert main([target, "--status"]) == 0
    assert capsys.readouterr().out.startswith(f"{count} cells: {count} done\n")
