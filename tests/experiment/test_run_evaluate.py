"""Meta-tests from the command line: --evaluate, --draw, --protocol both, --task-chunk."""

import signal

import pytest
import torch
from helpers.commands import assert_same_run, checkpoint, content, error_line, files, start
from PIL import Image

import data
import run
from amaml.errors import Diverged
from data.synthetic import Synthetic
from experiment import pictures
from experiment.build import Experiment


def test_evaluate_takes_a_folder_or_a_checkpoint(tmp_path, quick, capsys):
    out = tmp_path / "run"
    start(out)
    before, final = files(out), content(out, "test.json")[-1]
    copy = tmp_path / "elsewhere" / "theta.pt"
    copy.parent.mkdir()
    copy.write_bytes((out / "checkpoint.pt").read_bytes())
    for given in (out, copy):
        capsys.readouterr()
        assert run.main(["--evaluate", str(given)]) == 0
        folder, name = (out if given is out else copy.parent), "evaluation-CosMixture-4shot-finetune.json"
        evaluation = content(folder, name)
        assert evaluation.items() >= {name: final[name] for name in final if name != "scratch"}.items()
        shown = capsys.readouterr().out
        assert f"{final['test']['mean'][-1]:.4f}" in shown
        assert shown.endswith(f"{folder / name}\n")
    assert {name: b for name, b in files(out).items() if not name.startswith("evaluation")} == before


def test_evaluate_takes_other_tests_than_the_runs_own(tmp_path, quick):
    out, other = tmp_path / "run", tmp_path / "other"
    start(out)
    flags = ["--domain", "Sinusoid", "--shots", "9", "--test-tasks", "3", "--test-epochs", "20"]
    assert run.main(["--evaluate", str(out), "--out", str(other), *flags]) == 0
    assert run.main(["--evaluate", str(out), "--out", str(other), *flags]) == 0  # its own files may be replaced
    name = "evaluation-Sinusoid-9shot-finetune.json"
    evaluation = content(other, name)
    assert set(files(other)) == {name}
    assert evaluation["settings"]["shots"] == 9
    assert evaluation["settings"]["width"] == 4
    assert evaluation["tasks"] == 3
    assert evaluation["epochs"] == [0, 10, 20]


@pytest.mark.parametrize("flag", ["--meta-updates", "--meta-lr", "--clip"])
def test_evaluate_refuses_what_would_have_made_another_theta(tmp_path, quick, capsys, flag):
    start(tmp_path / "run")
    capsys.readouterr()
    assert run.main(["--evaluate", str(tmp_path / "run"), flag, "7"]) == 2
    assert f"was made with {flag}" in error_line(capsys)
    assert not list((tmp_path / "run").glob("evaluation*"))


def test_evaluate_on_another_device_than_the_runs_own(tmp_path, quick, monkeypatch):
    out = tmp_path / "run"
    start(out)
    saved = checkpoint(out)
    saved["settings"]["device"] = "cuda:99"
    torch.save(saved, out / "checkpoint.pt")
    assert run.main(["--evaluate", str(out)]) == 2
    assert run.main(["--evaluate", str(out), "--device", "cpu"]) == 0


@pytest.mark.parametrize(("domain", "panels"), [("CosMixture", 1), ("CosMixture2D", 3)])
def test_draw_shows_data_truth_and_both_fits(tmp_path, monkeypatch, domain, panels):
    figures = []
    png = pictures._png
    monkeypatch.setattr(pictures, "_png", lambda figure: figures.append(figure) or png(figure))
    assert start(tmp_path / "run", "--domain", domain, "--draw", "2") == 0
    with Image.open(tmp_path / "run" / "fits.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
    curves, fits = figures
    axes = [a for a in fits.axes if a.get_label() != "<colorbar>"]
    assert len(axes) == 2 * panels
    family = data.make(domain, data.Sampling(4, 4, 2, 0))
    tasks = family.meta_test(2)
    (support_x, support_y), (_, truths) = (
        family.in_units(*pair) for pair in ((tasks.support_x, tasks.support_y), (tasks.test_x, tasks.test_y))
    )
    for task, first in enumerate(axes[::panels]):
        support, truth = support_x[task], truths[task, :, 0]
        if panels == 1:
            lines = {line.get_label(): line.get_ydata() for line in first.lines}
            assert torch.equal(torch.as_tensor(lines["truth"]), truth)
            assert torch.equal(torch.as_tensor(lines["support"]), support_y[task, :, 0])
            before, after = (y for name, y in lines.items() if "adaptation, nRMSE" in name)
            assert abs(before - after).max() > 1e-4
        else:
            surfaces = [torch.as_tensor(a.collections[0].get_array()).flatten() for a in axes[3 * task : 3 * task + 3]]
            assert torch.equal(surfaces[0], truth)
            assert (surfaces[1] - surfaces[2]).abs().max() > 1e-4
            assert torch.equal(torch.as_tensor(first.collections[1].get_offsets().data), support)
    assert len(curves.axes) == 2


@pytest.mark.parametrize("protocol", ["finetune", "inner"])
def test_the_chunk_of_tasks_holds_at_meta_test_too(tmp_path, quick, monkeypatch, protocol):
    """The numbers are the same to rounding; no more tasks are drawn at once, and none before the training."""
    drawn, draw = [], Synthetic.meta_test
    monkeypatch.setattr(Synthetic, "meta_test", lambda d, *span: (drawn.append(span), draw(d, *span))[1])
    start(tmp_path / "run", "--protocol", protocol, "--test-tasks", "5", "--task-chunk", "2")
    assert drawn == [(2, 0), (2, 2), (1, 4)] * 2  # theta's meta-test and the random initialisation's
    start(tmp_path / "whole", "--protocol", protocol, "--test-tasks", "5")
    assert drawn[6:] == [(5, 0)] * 2
    entries = [content(tmp_path / name, "test.json")[-1] for name in ("run", "whole")]
    for points in ("support", "test"):
        for statistic in ("mean", "ci95"):
            one, two = (entry[points][statistic] for entry in entries)
            assert one == pytest.approx(two, rel=1e-9)


def test_both_protocols_are_reported_in_one_table(tmp_path, quick):
    for protocol in ("both", "finetune", "inner"):
        start(tmp_path / protocol, "--protocol", protocol)
    both, finetune, inner = (content(tmp_path / p, "test.json")[-1] for p in ("both", "finetune", "inner"))
    (also,) = both["also"]
    for one, two in ((both, finetune), (also, inner)):
        assert all(one[name] == two[name] for name in ("unit", "epochs", "support", "test"))
    rows = {p: content(tmp_path / p, "summary.json")["table"].splitlines()[1:-1] for p in ("both", "finetune", "inner")}
    assert rows["both"] == rows["finetune"] + rows["inner"]
    assert content(tmp_path / "both", "summary.json")["also"][0]["unit"] == "inner step"
    assert run.main(["--evaluate", str(tmp_path / "finetune"), "--protocol", "both", "--test-steps", "3"]) == 0
    evaluation = content(tmp_path / "finetune", "evaluation-CosMixture-4shot-both.json")
    assert evaluation["also"][0]["epochs"] == [0, 1, 3]


def test_the_last_meta_test_stands_beside_that_of_the_random_initialisation(tmp_path, quick):
    flags = ["--protocol", "both", "--test-interval", "3"]
    start(tmp_path / "run", *flags)
    start(tmp_path / "scratch", *flags, "--method", "scratch")
    first, last = content(tmp_path / "run", "test.json")
    assert "scratch" not in first
    reference = content(tmp_path / "scratch", "test.json")[-1]
    assert "scratch" not in reference
    for one, two in zip(last["scratch"], (reference, *reference["also"]), strict=True):
        assert all(one[name] == two[name] for name in ("epochs", "support", "test"))
    row = content(tmp_path / "run", "summary.json")["table"].splitlines()[3].split()
    assert row[0] == "10"
    assert row[-3] == f"{reference['test']['mean'][-1]:.4f}"


def test_a_random_initialisation_that_cannot_be_adapted_ends_no_run(tmp_path, quick, monkeypatch):
    curves = Experiment._curves

    def diverging(experiment, protocol, theta, *rest):
        if theta is experiment.start and protocol == "inner":
            raise Diverged("too rough")
        return curves(experiment, protocol, theta, *rest)

    monkeypatch.setattr(Experiment, "_curves", diverging)
    assert start(tmp_path / "run", "--protocol", "both") == 0
    finetuned, inner = content(tmp_path / "run", "test.json")[-1]["scratch"]
    assert finetuned["epochs"] == [0, 10]
    assert inner is None
    _, _, first, _, _, *steps = content(tmp_path / "run", "summary.json")["table"].splitlines()[:-1]
    assert "diverged" not in first
    assert all(line.endswith("diverged") for line in steps)


def test_a_stop_while_the_random_initialisation_is_tested_loses_nothing(tmp_path, quick, monkeypatch, capsys):
    curves = Experiment._curves

    def stopped(experiment, protocol, theta, update, stop):
        if theta is experiment.start:
            stop.number = signal.SIGINT
        return curves(experiment, protocol, theta, update, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "_curves", stopped)
        assert start(tmp_path / "run") == 130
    assert "after update 6" in error_line(capsys)
    assert start(tmp_path / "run", "--resume") == 0
    start(tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_evaluate_draws_without_a_new_run(tmp_path, quick):
    start(tmp_path / "run")
    assert run.main(["--evaluate", str(tmp_path / "run"), "--draw", "1"]) == 0
    picture = tmp_path / "run" / "fits-CosMixture-4shot-finetune.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
