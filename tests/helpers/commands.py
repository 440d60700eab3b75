"""The program as its users start it, on a problem small enough for tests, what it leaves behind, and how it is hurt."""

import json
import subprocess
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

import run
from experiment import folder
from experiment.grid import Cell, Grid, Step

ROOT = Path(run.__file__).parent
SIZES = {"shots": 4, "queries": 4, "inner-steps": 2, "meta-updates": 6, "meta-batch": 2, "test-tasks": 2}
SIZES |= {"test-epochs": 10, "width": 4}
OURS = {"method": "fomaml", "protocol": "finetune", "meta-schedule": "constant", "meta-lr": 0.001, "dtype": "float64"}
TINY = ["--domain", "CosMixture"] + [x for k, v in (OURS | SIZES).items() for x in (f"--{k}", str(v))]
EPOCHS = TINY.index("--test-epochs")
WITHOUT_EPOCHS = TINY[:EPOCHS] + TINY[EPOCHS + 2 :]  # for --protocol inner, which has no use for them
GRID = 'domain = "CosMixture"\ntest_interval = 0\ncompile = "off"\n'
GRID += "".join(f"{name.replace('-', '_')} = {n}\n" for name, n in SIZES.items() if name != "meta-updates")
OFTEN = ["--checkpoint-interval", "2", "--test-interval", "3"]


def start(out: Path, *flags: str) -> int:
    """run.py in this process, with the sizes of TINY; later flags win. Returns the exit status."""
    return run.main([*(WITHOUT_EPOCHS if "inner" in flags else TINY), "--out", str(out), *flags])


def wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen | None = None) -> None:
    """Until a condition holds, as long as a process lives."""
    deadline = time.monotonic() + 180  # of a busy machine
    while not condition():
        assert process is None or process.poll() is None, f"ended before {what}: {process.communicate()}"
        assert time.monotonic() < deadline, f"no {what} in 180 s"
        time.sleep(0.01)


def has_checkpoint(out: Path, update: int = 1) -> Callable[[], bool]:
    """Whether a run has saved so many updates."""
    return lambda: (out / "checkpoint.pt").exists() and checkpoint(out)["update"] >= update


class Killed(BaseException):
    """SIGKILL as the folder sees it: nothing after this happens."""


def killed(monkeypatch, moment: int, out: Path, *flags: str) -> bool:
    """start, with a process that dies in the middle of its moment-th write of a file; whether it came to that."""
    write, append, clock = folder.write_atomically, folder.RunFolder.append_metrics, count()

    def dying_write(path, content):
        if next(clock) == moment:
            path.with_name(path.name + ".tmp").write_bytes(content[: len(content) // 2])
            raise Killed
        write(path, content)

    def dying_append(run, records):
        append(run, records)
        if next(clock) == moment:
            path = run.path / "metrics.jsonl"
            path.write_bytes(path.read_bytes()[:-20])
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_atomically", dying_write)
        patch.setattr(folder.RunFolder, "append_metrics", dying_append)
        try:
            start(out, *flags)
        except Killed:
            return True
    return False


def checkpoint(out: Path) -> dict:
    return torch.load(out / "checkpoint.pt", weights_only=True)


def theta(out: Path) -> torch.Tensor:
    """All trained parameters of a run's checkpoint, learned rates last."""
    model = checkpoint(out)["model"]
    return torch.cat([value.reshape(-1) for value in model.values() if isinstance(value, torch.Tensor)])


def content(out: Path, name: str):
    return json.loads((out / name).read_text())


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but locks, to see that nothing changed."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def assert_same_run(out: Path, other: Path) -> None:
    """Two folders hold the same theta, learner's memory, optimiser, metrics and tests, to the bit."""
    one, two = checkpoint(out), checkpoint(other)
    assert one["update"] == two["update"]
    assert torch.equal(theta(out), theta(other))
    assert str(one["model"]["meta._extra_state"]) == str(two["model"]["meta._extra_state"])
    states = [[v for s in c["optimizer"]["state"].values() for v in s.values()] for c in (one, two)]
    assert len(states[0]) == len(states[1])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    for name in ("metrics.jsonl", "test.json", "tasks.csv"):
        assert (out / name).read_bytes() == (other / name).read_bytes(), name
    assert content(out, "summary.json")["at_epochs"] == content(other, "summary.json")["at_epochs"]


def error_line(capsys, program: str = "run.py") -> str:
    """The one line on stderr that a mistake gets, after those of the meta-tests, and nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    *log, line = captured.err.splitlines(keepends=True)
    assert all(shown.startswith("update ") for shown in log), captured.err
    assert line.startswith(f"{program}: ")
    assert line.endswith("\n")
    return line


def refused(capsys, out: Path, *flags: str, status: int = 2, keeps: Path | None = None) -> str:
    """The one line that start ends with, where the flags are a mistake; --evaluate RUN stands alone.

    keeps: a folder in which everything is as before.
    """
    before, _ = keeps and files(keeps), capsys.readouterr()
    assert (run.main([*flags]) if "--evaluate" in flags else start(out, *flags)) == status
    assert not keeps or files(keeps) == before
    return error_line(capsys)


def write_grid(folder: Path, text: str, name: str = "grid") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def scripts(folder: Path, **texts: str) -> Grid:
    """A grid whose cells are shell scripts; {made} in them is the file that they are to make."""
    cells = []
    for name, text in texts.items():
        step = Step(["bash", "-c", text.format(made=folder / name)], folder / name)
        cells.append(Cell(name, {"cell": name}, {}, folder, (step,)))
    return Grid("scripts", cells, folder / ".cells" / "scripts", folder / "scripts.csv")
