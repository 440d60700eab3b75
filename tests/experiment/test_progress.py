"""What a run shows while it goes on where there is no terminal."""

from experiment import progress
from experiment.progress import Progress


def test_the_first_process_prints_a_line_at_every_meta_test_and_about_every_minute(capsys, monkeypatch):
    last = {"metric": "nRMSE", "unit": "epoch", "epochs": [0, 10], "test": {"mean": [1.2, 0.9]}, "also": []}
    line = "update 200/500, query loss 0.2500, 8 updates/s, 0:00:38 left"
    for first in (False, True):
        with Progress(500, 100, first) as shown:
            monkeypatch.setattr(progress, "EVERY", 60.0)
            shown.trained([{"update": 101, "query_loss": 0.5}], None)
            assert capsys.readouterr().err == ""
            shown.trained([{"update": n, "query_loss": 0.25} for n in range(102, 201)], 0.125)
            shown.tested(last | {"update": 200})
            expected = f"{line}, meta-test after update 200: nRMSE 0.9000 after 10 epochs\n"
            assert capsys.readouterr().err == (expected if first else "")
            monkeypatch.setattr(progress, "EVERY", 0.0)
            shown.trained([{"update": 201, "query_loss": 0.5}], 0.1)
            expected = "update 201/500, query loss 0.5000, 10 updates/s, 0:00:30 left\n"
            assert capsys.readouterr().err == (expected if first else "")
