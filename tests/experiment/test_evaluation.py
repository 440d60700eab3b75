"""Meta-tests: what is adapted and recorded, how it is summed up; both protocols; chunks; --evaluate."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import checkpoint, content, files, refused, start

import run
from amaml import Diverged, rmse
from data.synthetic import CosMixture
from experiment.build import Experiment, build
from experiment.distributed import Group
from experiment.evaluation import Curves, fine_tune, inner_loop, measured, test_entry
from experiment.settings import merged
from experiment.summary import at_epochs, table

test_entry.__test__ = False  # it is no test


@pytest.fixture
def problem():
    """A small experiment, the parameters of its network, and three tasks with test points."""
    sizes = {"shots": 6, "queries": 4, "inner_steps": 3, "inner_lr": 0.1, "width": 5, "activation": "tanh"}
    settings = merged(sizes | {"domain": "Sinusoid", "method": "fomaml", "dtype": "float64"})
    experiment = build(settings, Group())
    return experiment, experiment.meta.function.theta().detach(), experiment.domain.meta_test(3)


def by_hand(phi, apply, tasks, task, optimizer, steps):
    """The errors of one task on both sets after every step of plain autograd, and the last parameters."""
    rows = []
    for step in range(steps + 1):
        sets = ((tasks.support_x, tasks.support_y), (tasks.test_x, tasks.test_y))
        rows.append([(apply(phi, x[task]) - y[task]).square().mean().sqrt().item() for x, y in sets])
        if step < steps:
            optimizer.zero_grad()
            (0.5 * (apply(phi, tasks.support_x[task]) - tasks.support_y[task]).square().mean()).backward()
            optimizer.step()
    return np.array(rows), phi.detach()


ADAM = lambda phi: torch.optim.Adam([phi], lr=1e-3, weight_decay=1e-6)  # noqa: E731
DESCENT = lambda phi: torch.optim.SGD([phi], lr=0.1)  # noqa: E731


@pytest.mark.parametrize(
    ("protocol", "optimizer", "steps", "records"),
    [
        (fine_tune, ADAM, 25, [0, 10, 20, 25]),
        (fine_tune, ADAM, 20, [0, 10, 20]),
        (fine_tune, ADAM, 0, [0]),
        (inner_loop, DESCENT, 6, [0, 1, 5, 6]),
        (inner_loop, DESCENT, None, [0, 1, 3]),
        (inner_loop, DESCENT, 1, [0, 1]),
    ],
)
def test_all_tasks_at_once_are_what_each_would_be_alone(problem, protocol, optimizer, steps, records):
    experiment, theta, tasks = problem
    curves, last = measured(protocol(experiment, tasks, steps), tasks, rmse, "a unit")
    assert (curves.epochs, curves.unit) == (records, "a unit")
    assert torch.equal(experiment.meta.function.theta(), theta)
    assert last.phi.shape == (3, len(theta))
    for task in range(3):
        phi = theta.clone().requires_grad_()
        rows, alone = by_hand(phi, experiment.meta.function, tasks, task, optimizer(phi), 3 if steps is None else steps)
        np.testing.assert_allclose(curves.support[:, task], rows[records, 0], rtol=1e-12)
        np.testing.assert_allclose(curves.test[:, task], rows[records, 1], rtol=1e-12)
        torch.testing.assert_close(last.phi[task], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("of", [torch.sum, torch.any], ids=["a count", "a flag"])
def test_a_metric_may_be_no_real_number(problem, of):
    experiment, theta, tasks = problem
    domain = experiment.domain
    domain.objective = domain.objective._replace(metric=lambda p, y: of((p - y).abs() < 0.3))
    found = experiment.adapt(tasks, "inner")[0].test[0]
    right = experiment.meta.function(theta, tasks.test_x.flatten(0, 1)).view_as(tasks.test_y) - tasks.test_y
    assert found.tolist() == [of(row.abs() < 0.3).item() for row in right]


@pytest.mark.parametrize("part", ["support_y", "test_y"])
def test_errors_that_are_not_finite_are_reported(problem, part):
    experiment, theta, tasks = problem
    getattr(tasks, part)[1, 0] = torch.inf
    with pytest.raises(Diverged, match="not finite"):
        measured(fine_tune(experiment, tasks, epochs=0), tasks, rmse, "epoch")


def test_an_entry_and_its_table_average_over_tasks_and_not_over_epochs():
    curves = Curves("inner step", [0, 3], np.array([[1.0, 3.0], [0.5, 0.5]]), np.array([[2.0, 4.0], [1.0, 2.0]]))
    entry = test_entry(7, curves, {"user mean": np.array([1.0, 2.0])}, "nRMSE")
    assert (entry["update"], entry["tasks"], entry["epochs"]) == (7, 2, [0, 3])
    assert (entry["support"]["mean"], entry["test"]["mean"]) == ([2.0, 0.5], [3.0, 1.5])
    assert entry["predictors"]["user mean"] == pytest.approx((1.5, 6.353102368))
    assert entry["test"]["ci95"] == pytest.approx([12.706204736, 6.353102368])  # t(0.975, 1) = 12.706
    title, *lines = table("what ran", entry | {"also": []}).splitlines()
    assert title == "what ran"
    assert len({len(line) for line in lines[:3]}) == 1
    words = ["inner step nRMSE on support nRMSE on test points", "0 2.0000 +- 12.7062 3.0000 +- 12.7062"]
    words += ["3 0.5000 +- 0.0000 1.5000 +- 6.3531", "user mean 1.5000 +- 6.3531"]
    assert [" ".join(line.split()) for line in lines] == words


def test_the_summary_shows_the_papers_epochs_and_the_last():
    papers = [0, 10, 100, 500, 1000]
    for last, expected in {1000: papers, 120: [0, 10, 100, 120], 2000: [*papers, 2000], 0: [0]}.items():
        epochs = sorted({*range(0, last + 1, 10), last})
        curve = {"mean": [float(e) for e in epochs], "ci95": [e / 2 for e in epochs]}
        rows = at_epochs({"unit": "epoch", "epochs": epochs, "support": curve, "test": curve})
        assert [row["epoch"] for row in rows] == expected
        assert all(row["test"] == row["epoch"] and row["support_ci95"] == row["epoch"] / 2 for row in rows)


def test_every_task_of_every_meta_test_is_kept_in_a_csv(tmp_path, quick):
    """Their means are those of test.json, also where a run goes on with another test."""
    both = ["--protocol", "both", "--test-interval", "3"]
    start(tmp_path / "run", *both)
    start(tmp_path / "run", *both, "--test-tasks", "3", "--resume")
    frame, tests = pd.read_csv(tmp_path / "run" / "tasks.csv"), content(tmp_path / "run", "test.json")
    assert list(frame) == ["update", "unit", "epoch", "task", "support", "test"]
    for entry in (tests[0], tests[-1]):  # the one before the last is of two tasks, and was made again
        for part in (entry, *entry["also"]):
            own = frame[(frame["update"] == entry["update"]) & (frame["unit"] == part["unit"])].groupby("epoch")
            assert [*own.size()] == [entry["tasks"]] * len(part["epochs"])
            for points in ("support", "test"):
                np.testing.assert_allclose(own[points].mean(), part[points]["mean"], rtol=1e-6)


def test_the_chunk_of_tasks_holds_at_meta_test_too(tmp_path, quick, monkeypatch):
    """The numbers are the same to rounding; no more tasks are drawn at once, and none before the training."""
    drawn, draw = [], CosMixture.meta_test
    monkeypatch.setattr(CosMixture, "meta_test", lambda d, *span: (drawn.append(span), draw(d, *span))[1])
    start(tmp_path / "run", "--protocol", "inner", "--test-tasks", "5", "--task-chunk", "2")
    assert drawn == [(2, 0), (2, 2), (1, 4)] * 2  # theta's meta-test and the random initialisation's
    start(tmp_path / "whole", "--protocol", "inner", "--test-tasks", "5")
    assert drawn[6:] == [(5, 0)] * 2
    one, two = (content(tmp_path / name, "test.json")[-1]["test"]["mean"] for name in ("run", "whole"))
    assert one == pytest.approx(two, rel=1e-9)


def test_both_protocols_and_the_random_initialisation_are_reported_in_one_table(tmp_path, quick):
    for protocol in ("both", "finetune", "inner"):
        start(tmp_path / protocol, "--protocol", protocol, "--test-interval", "3")
    start(tmp_path / "scratch", "--protocol", "both", "--method", "scratch")
    names = "both", "finetune", "inner", "scratch"
    both, finetune, inner, random = (content(tmp_path / name, "test.json")[-1] for name in names)
    pairs = [(both, finetune), (*both["also"], inner), *zip(both["scratch"], (random, *random["also"]), strict=True)]
    for one, two in pairs:
        assert all(one[name] == two[name] for name in ("unit", "epochs", "support", "test"))
    assert "scratch" not in random | content(tmp_path / "both", "test.json")[0]
    rows = {p: content(tmp_path / p, "summary.json")["table"].splitlines()[1:-1] for p in ("both", "finetune", "inner")}
    assert rows["both"] == rows["finetune"] + rows["inner"]
    assert rows["both"][2].split()[::7] == ["10", f"{random['test']['mean'][-1]:.4f}"]
    assert content(tmp_path / "both", "summary.json")["also"][0]["unit"] == "inner step"
    assert run.main(["--evaluate", str(tmp_path / "finetune"), "--protocol", "both", "--test-steps", "3"]) == 0
    evaluation = content(tmp_path / "finetune", "evaluation-CosMixture-4shot-both-test_steps3.json")
    assert evaluation["also"][0]["epochs"] == [0, 1, 3]


def test_a_random_initialisation_that_cannot_be_adapted_ends_no_run(tmp_path, quick, monkeypatch):
    curves, calls = Experiment._curves, []

    def diverge(experiment, protocol):
        calls.append(protocol)
        if calls == ["finetune", "inner"] * 2:  # of theta, then of the random initialisation
            raise Diverged("too rough")
        return curves(experiment, protocol)

    monkeypatch.setattr(Experiment, "_curves", diverge)
    assert start(tmp_path, "--protocol", "both") == 0
    finetuned, inner = content(tmp_path, "test.json")[-1]["scratch"]
    assert (finetuned["epochs"], inner) == ([0, 10], None)
    _, _, first, _, _, *steps = content(tmp_path, "summary.json")["table"].splitlines()[:-1]
    assert "diverged" not in first
    assert all(line.endswith("diverged") for line in steps)


def test_evaluate_takes_a_folder_or_a_checkpoint(finished, tmp_path, capsys):
    before, final = files(finished), content(finished, "test.json")[-1]
    copy, name = tmp_path / "elsewhere" / "theta.pt", "evaluation-CosMixture-4shot-finetune.json"
    copy.parent.mkdir()
    copy.write_bytes((finished / "checkpoint.pt").read_bytes())
    for given, folder in ((finished, finished), (copy, copy.parent)):
        assert run.main(["--evaluate", str(given)]) == 0
        assert content(folder, name).items() >= {name: final[name] for name in final if name != "scratch"}.items()
        shown = capsys.readouterr().out
        assert f"{final['test']['mean'][-1]:.4f}" in shown
        assert shown.endswith(f"{folder / name}\n")
    assert {name: b for name, b in files(finished).items() if not name.startswith("evaluation")} == before


def test_evaluations_have_names_of_their_own_and_replace_their_like_alone(finished, capsys):
    expected = {}
    for name, flags in {
        "CosMixture-4shot-finetune": [],
        "CosMixture-9shot-finetune": ["--shots", "9"],
        "Sinusoid-4shot-inner": ["--domain", "Sinusoid", "--protocol", "inner"],
        "CosMixture-4shot-finetune-test_epochs20-test_tasks3": ["--test-tasks", "3", "--test-epochs", "20"],
    }.items():
        path = finished / f"evaluation-{name}.json"
        for _ in range(2):  # the same again takes the same file
            assert run.main(["--evaluate", str(finished), "--draw", "1", *flags]) == 0
            assert capsys.readouterr().out.splitlines()[-1] == str(path)
            assert (finished / f"fits-{name}.png").read_bytes().startswith(b"\x89PNG")
            assert expected.setdefault(path, path.read_bytes()) == path.read_bytes()
    tasks = [path.with_suffix(".csv") for path in expected]
    assert {p for p in finished.iterdir() if p.name.startswith("evaluation")} == {*expected, *tasks}
    assert all(path.read_bytes() == held for path, held in expected.items())
    last = content(finished, path.name)
    assert (last["settings"]["width"], last["tasks"], last["epochs"]) == (4, 3, [0, 10, 20])


def test_evaluate_refuses_what_would_have_made_another_theta(finished, capsys):
    settings = checkpoint(finished)["settings"]

    def line(*flags) -> str:
        return refused(capsys, finished, "--evaluate", str(finished), *flags, keeps=finished)

    other = {"meta-updates": "7", "clip": "7", "width": "5", "method": "maml", "norm": "batch", "start-from": "x"}
    for flag, value in other.items():
        assert f"was made with --{flag} {settings[flag.replace('-', '_')]}, not {value}" in line(f"--{flag}", value)
    assert "holds 33 parameters, the network has 37" in line("--domain", "CosMixture2D")


def test_evaluate_on_another_device_than_the_runs_own(finished, monkeypatch):
    saved = checkpoint(finished)
    saved["settings"]["device"] = "cuda:99"
    torch.save(saved, finished / "checkpoint.pt")
    assert run.main(["--evaluate", str(finished)]) == 2
    assert run.main(["--evaluate", str(finished), "--device", "cpu"]) == 0
