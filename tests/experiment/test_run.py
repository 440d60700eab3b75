"""run.py from its flags to its results, of every method and domain; learned rates."""

import io
import math
import os
import re
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock
from helpers.commands import SIZES, TINY, assert_same_run, checkpoint, content, files, metrics, refused, start, theta
from helpers.problems import relative_error
from tqdm import tqdm

import run
from amaml import AMAML, mlp
from data import DOMAINS
from experiment import summary
from experiment.build import build
from experiment.distributed import Group
from experiment.machine import ROOT
from experiment.methods import METHODS, NETWORKS, PROTOCOLS, protocols
from experiment.networks import seeded
from experiment.settings import FIELDS, merged, parse_flags, read_toml

FOLDER = {"config.json", "metrics.jsonl", "test.json", "tasks.csv", "checkpoint.pt", "summary.json", "curves.png"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_from_flags_to_results(tmp_path, quick, capsys, method):
    out = tmp_path / method
    assert start(out, "--method", method) == 0
    captured = capsys.readouterr()
    assert set(files(out)) == FOLDER
    assert [m["update"] for m in metrics(out)] == [1, 2, 3, 4, 5, 6]
    trained = method != "scratch"
    assert all(m["query_loss"] > 0 for m in metrics(out))
    assert all((m["gradient_norm"] > 0) == (m["gradients"] > 0) == trained for m in metrics(out))
    (line,) = captured.err.splitlines()  # no bar where the output is no terminal
    said = r"update 6/6, query loss [\d.]+, .* updates/s, 0:00:00 left, meta-test after update 6: .*"
    assert re.fullmatch(said, line)
    assert captured.out == content(out, "summary.json")["table"] + f"\n{out}\n"
    saved = checkpoint(out)
    assert (saved["settings"]["method"], saved["update"]) == (method, 6)
    initial = seeded(lambda: mlp(1, 1, 4), 0).double().parameters()  # of the network of TINY, seed 0
    moved = (theta(out) - torch.nn.utils.parameters_to_vector(initial).detach()).abs()
    assert moved.min() > 1e-4 if trained else moved.max() == 0  # Adam moves every parameter by about 6e-3


def sizes(domain: str) -> list[str]:
    """The flags of SIZES that the domain, its network or its protocol uses."""
    s = merged({"domain": domain})
    uses = [PROTOCOLS[name].uses for name in protocols(s.protocol)] + [NETWORKS[s.network].uses]
    small = SIZES | {"meta-updates": 2, "shots": 1 if DOMAINS[domain].images else 2, "queries": 2}
    used = {name: n for name, n in small.items() if name not in ("width", "test-epochs")}
    used |= {name: n for name, n in small.items() if name.replace("-", "_") in set().union(*uses)}
    used |= {"ways": 2} if DOMAINS[domain].images else {}
    return [x for name, n in used.items() for x in (f"--{name}", str(n))]


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_runs_from_flags_to_a_table(tmp_path, data_sets, quick, domain):
    flags = ["--domain", domain, "--method", "fomaml", "--data-root", data_sets, "--test-interval", "0"]
    assert run.main([*sizes(domain), *flags, "--out", str(tmp_path / "run")]) == 0
    assert content(tmp_path / "run", "summary.json")["table"].startswith(f"{domain}, ")


def learner(*flags):
    """What --method gives to the Adaptation, in the end."""
    s = merged(parse_flags(["--domain", "CosMixture", "--inner-steps", "7", "--inner-lr", "0.5", *flags]))
    meta = build(s, Group()).meta
    return meta._at(meta.function.theta())


def test_each_name_stands_for_its_method_with_its_settings():
    for name, chosen in METHODS.items():
        assert type(learner("--method", name)) is chosen.make
    flow = learner(*["--solver", "dopri5", "--adjoint", "continuous", "--rtol", "0.01", "--prox", "0.25"])
    assert isinstance(flow, AMAML)
    assert (flow.solver, flow.adjoint, flow.rtol, flow.prox) == ("dopri5", "continuous", 0.01, 0.25)
    assert (flow.inner_lr, flow.inner_steps) == (0.5, 7)
    assert learner().robust == "length"  # synthetic.toml's
    options = {"checkpoint-every": 2, "inner-batch": 3, "inner-optimizer": "adam"}
    unrolled = learner("--method", "maml", *(x for name, v in options.items() for x in (f"--{name}", str(v))))
    assert (unrolled.solver, unrolled.checkpoints, unrolled.inner_batch) == ("euler", 3, 3)
    assert unrolled.inner_optimizer.rule == "adam"
    assert [learner("--method", name).inner_steps for name in ("maml1", "fomaml")] == [1, 7]
    weights = "--query-weights", "0.25", "0.5", "0.25"
    for name in ("amaml", "maml", "fomaml"):  # of 7 inner steps
        along = learner("--method", name, "--query-steps", "1", "50%", "4", *weights)
        assert (list(along.query_steps), list(along.query_weights)) == ([1, 4], [0.25, 0.75])
    assert list(learner("--method", "amaml").query_steps) == [1, 3, 7]  # synthetic.toml's
    assert learner("--inner-steps", "1000", "--query-steps", "64.4%").query_steps == [644]  # not 645 by rounding
    alone = learner("--method", "amaml", "--query-steps", "3", "100%")
    assert (list(alone.query_steps), list(alone.query_weights)) == ([3, 7], [0.5, 0.5])
    implicit = learner(*["--method", "imaml", "--cg-steps", "3", "--cg-damping", "0.125"])
    assert (implicit.cg_steps, implicit.damping, implicit.prox) == (3, 0.125, 2.0)


def test_the_files_tell_what_ran_and_all_that_a_number_needs(tmp_path, monkeypatch, quick, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main([*TINY, "--seed", "3", "--test-interval", "4", "--test-epochs", "15", "--meta-lr", "0.5"]) == 0
    expected = "results/CosMixture/4shot-4query/2steps/fomaml/seed3"
    assert capsys.readouterr().out.splitlines()[-1] == expected
    assert set(files(tmp_path)) == {f"{expected}/{name}" for name in FOLDER}
    config, tests, summary = (content(tmp_path / expected, f"{name}.json") for name in ("config", "test", "summary"))
    assert set(config["settings"]) == set(FIELDS)
    assert config["settings"]["meta_lr"] == 0.5
    assert all(config["versions"][name] for name in ("python", "torchdiffeq", "numpy", "scipy"))
    assert (config["versions"]["torch"], config["threads"], config["device"] != "") == (torch.__version__, 1, True)
    git = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert config["commit"] == (git.stdout.strip() if git.returncode == 0 else None)
    assert [(t["update"], t["epochs"], t["tasks"]) for t in tests] == [(n, [0, 10, 15], 2) for n in (4, 6)]
    assert [row["epoch"] for row in summary["at_epochs"]] == [0, 10, 15]
    for i, row in enumerate(summary["at_epochs"]):
        for points in ("support", "test"):
            assert row[points] == tests[-1][points]["mean"][i] != tests[0][points]["mean"][i]
            assert row[f"{points}_ci95"] == tests[-1][points]["ci95"][i] > 0
            assert f"{row[points]:.4f} +- {row[f'{points}_ci95']:.4f}" in summary["table"]
    assert (summary["metric"], summary["updates"]) == ("nRMSE", 6)
    assert 0 < summary["seconds_per_update"] < 5
    assert 50 < summary["peak_memory_mib"] < 50_000


def test_one_test_task_has_no_interval_and_the_files_stay_json(tmp_path, quick, monkeypatch, capsys):
    """And a line is printed about every minute, or always."""
    monkeypatch.setattr(summary, "EVERY", 0.0)
    assert start(tmp_path / "run", "--test-tasks", "1", "--domain", "Sinusoid") == 0
    for name in ("test.json", "summary.json"):
        assert not re.search(r"\b(NaN|Infinity)\b", (tmp_path / "run" / name).read_text())
    said = content(tmp_path / "run", "summary.json")
    assert said["at_epochs"][0]["test_ci95"] is None
    assert "+-" not in said["table"]
    assert said["metric"] == "MSE"  # in the units of the targets
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"update 1/6, query loss [\d.]+", first)
    assert re.fullmatch(r"update 6/6, query loss .* left, meta-test after update 6: MSE [\d.]+ after 10 epochs", last)


def test_a_finished_run_is_shown_and_not_run_again(finished, capsys, monkeypatch):
    before, table = files(finished), content(finished, "summary.json")["table"].splitlines()
    monkeypatch.setattr(run, "build", None)
    denied = Mock(side_effect=PermissionError(13, "Permission denied"))
    for flags in ((), ("--resume",), ()):
        assert start(finished, *flags) == 0
        monkeypatch.setattr(FileLock, "acquire", denied)  # of a folder of which nothing may be written
        *shown, how = capsys.readouterr().out.splitlines()
        assert (shown, "--overwrite" in how) == (table, True)
    assert files(finished) == before


def test_overwrite_runs_again_and_leaves_nothing_of_the_old_run_and_of_its_evaluations(tmp_path, quick, capsys):
    out = tmp_path / "run"
    start(out, "--method", "reptile", "--draw", "1")
    assert run.main(["--evaluate", str(out), "--draw", "1"]) == 0
    (out / "notes.txt").touch()
    assert "also holds notes.txt; move that away" in refused(capsys, out, "--overwrite", keeps=out)
    (out / "notes.txt").rename(out / "checkpoint.pt.tmp")
    assert start(out, "--overwrite") == start(tmp_path / "fresh") == 0
    assert set(files(out)) == FOLDER
    assert_same_run(out, tmp_path / "fresh")


def test_a_terminal_gets_a_bar_with_loss_rate_and_time_left(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := io.StringIO())
    terminal.isatty = lambda: True
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    start(tmp_path / "run")
    last = terminal.getvalue().replace("\n", "\r").split("\r")
    assert any("6/6" in shown and "query_loss=" in shown and "update" in shown and "<" in shown for shown in last)


def test_help_documents_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        run.main(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, value in read_toml(ROOT / "configs" / "defaults.toml").items():
        about = FIELDS[name].metadata["help"]
        assert f"--{name.replace('_', '-')} X {about} (default {value})" in text
    for name in FIELDS:
        assert f"--{name.replace('_', '-')} " in text


@pytest.mark.parametrize("command", ["run.py --help", "-m experiment.reproduce methods --dry-run"])
def test_a_closed_pipe_ends_quietly(command):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # otherwise some versions of argparse look away
    command = [sys.executable, *command.split()]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_runs_of_a_seed_are_the_same_and_deterministic_where_they_ask_for_it(tmp_path, quick, monkeypatch):
    seen, build = [], run.build
    asked = torch.are_deterministic_algorithms_enabled
    monkeypatch.setattr(run, "build", lambda *given: (seen.append(asked()), build(*given))[1])
    start(tmp_path / "run")
    start(tmp_path / "same", "--deterministic")
    assert (seen, asked()) == ([False, True], False)
    assert_same_run(tmp_path / "run", tmp_path / "same")
    start(tmp_path / "other", "--seed", "6")
    assert not torch.equal(theta(tmp_path / "run"), theta(tmp_path / "other"))


MEMORY = MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no memory")
OTHERS = [RuntimeError("add does not have a deterministic implementation, but you set ... You")]


@pytest.mark.parametrize("fault", [*MEMORY, *OTHERS])
def test_faults_of_the_machine_get_one_line_and_those_of_the_program_are_raised(tmp_path, monkeypatch, capsys, fault):
    monkeypatch.setattr(run, "build", Mock(side_effect=fault))
    said = "out of memory" if fault in MEMORY else "add does not have a"
    assert refused(capsys, tmp_path / "run").startswith(f"run.py: {said}")
    monkeypatch.setattr(run, "build", Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        start(tmp_path / "run")


SMALL = {"domain": "Sinusoid", "shots": 5, "queries": 5, "meta_batch": 3, "inner_steps": 4, "inner_lr": 0.1, "width": 4}
SMALL |= {"activation": "tanh", "solver": "euler", "dtype": "float64", "test_tasks": 2, "test_epochs": 0}


def experiment(**settings):
    return build(merged(SMALL | settings), Group())


@pytest.mark.parametrize("method", ["amaml", "anil"])
def test_learned_rates_are_factors_of_the_runs_own(method):
    """Of one for all, and of one for each parameter that adapts; they begin at one."""
    plain, scalar, each = (experiment(method=method, learn_rates=kind) for kind in ("none", "scalar", "parameter"))
    tasks, adapting = plain.domain.meta_test(2), slice(-2 if method == "anil" else None, None)
    shapes = [p.shape for p in plain.meta.module.parameters()][adapting]
    assert [log.shape for log in each.model["log_rates"]] == shapes
    for rate in (0.1, 0.3):
        expected = plain.meta.adapt(tasks, inner_lr=rate)
        for e in (scalar, each):
            assert relative_error(e.adapt(tasks, "inner")[1].phi, expected) < 1e-14
            for log in e.model["log_rates"]:
                log.data += math.log(3)


@pytest.mark.parametrize(("domain", "kind"), [("Sinusoid", "scalar"), ("Glyphs", "parameter")])
def test_learned_rates_run_from_flags_to_results(tmp_path, quick, domain, kind):
    images = ["--ways", "2", "--network", "mlp"] if domain == "Glyphs" else []
    flags = ["--domain", domain, "--method", "anil", "--learn-rates", kind, "--protocol", "inner", *images]
    assert start(tmp_path / "run", *flags) == 0
    assert "inner step" in content(tmp_path / "run", "summary.json")["table"]
    assert checkpoint(tmp_path / "run")["model"]["log_rates.0"].abs().max() > 0
    assert start(tmp_path / "chunks", *flags, "--task-chunk", "1") == 0
    assert relative_error(theta(tmp_path / "chunks"), theta(tmp_path / "run")) < 1e-5


def test_a_run_of_which_the_last_layer_adapts_may_begin_with_reptile_of_all_of_them(tmp_path, quick):
    start(tmp_path / "anil", "--method", "anil", "--reptile-first", "4")
    start(tmp_path / "reptile", "--method", "reptile", "--meta-updates", "4")
    assert metrics(tmp_path / "anil")[:4] == metrics(tmp_path / "reptile")
