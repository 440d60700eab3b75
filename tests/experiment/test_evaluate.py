"""--evaluate: a run's theta under its own tests or others, in files of their own."""

import torch
from helpers.commands import checkpoint, content, files, refused

import run


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
    before, settings = files(finished), checkpoint(finished)["settings"]
    other = {"meta-updates": "7", "clip": "7", "width": "5", "method": "maml", "norm": "batch", "start-from": "x"}
    for flag, value in other.items():
        line = refused(capsys, finished, "--evaluate", str(finished), f"--{flag}", value)
        assert f"was made with --{flag} {settings[flag.replace('-', '_')]}, not {value.rstrip('0.')}" in line
    line = refused(capsys, finished, "--evaluate", str(finished), "--domain", "CosMixture2D")
    assert "holds 33 parameters, the network has 37" in line
    assert files(finished) == before


def test_evaluate_on_another_device_than_the_runs_own(finished, monkeypatch):
    saved = checkpoint(finished)
    saved["settings"]["device"] = "cuda:99"
    torch.save(saved, finished / "checkpoint.pt")
    assert run.main(["--evaluate", str(finished)]) == 2
    assert run.main(["--evaluate", str(finished), "--device", "cpu"]) == 0
