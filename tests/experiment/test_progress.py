"""What a run shows while it goes on where there is no terminal."""

from experiment import progress
from experiment.progress import Progress


def entry(update: int) -> dict:
    points = {"mean": [1.2, 0.9], "ci95": [0.1, 0.1]}
    part = {"update": update, "metric": "nRMSE", "unit": "epoch", "epochs": [0, 10], "test": points, "support": points}
    return part | {"also": []}


def test_there_is_a_line_at_every_meta_test_and_about_every_minute(capsys, monkeypatch):
    with Progress(500, 100) as shown:
        shown.trained([{"update": 101, "query_loss": 0.5}], None)
        assert capsys.readouterr().err == ""
        shown.trained([{"update": n, "query_loss": 0.25} for n in range(102, 201)], 0.125)
        shown.tested(entry(200))
        line = "update 200/500, query loss 0.2500, 8 updates/s, 0:00:38 left"
        assert capsys.readouterr().err == f"{line}, meta-test after update 200: nRMSE 0.9000 after 10 epochs\n"
        monkeypatch.setattr(progress, "EVERY", 0.0)
        shown.trained([{"update": 201, "query_loss": 0.5}], 0.1)
        assert capsys.readouterr().err == "update 201/500, query loss 0.5000, 10 updates/s, 0:00:30 left\n"


def test_other_processes_of_a_run_show_nothing(capsys):
    with Progress(500, 0, shown=False) as shown:
        shown.trained([{"update": 1, "query_loss": 0.5}], None)
        shown.tested(entry(1))
    assert capsys.readouterr().err == ""
