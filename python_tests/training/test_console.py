import io
import sys

from stratcore.training.console import Console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(console):
    for step in range(1, 4):
        console.advance(step)
        console.report(step, "train", {"loss": 1 / step})
    console.report(3, "validation", {"error": 0.125})
    console.close()


def test_lines_where_there_is_no_terminal(capsys):
    show(Console("tune", 3, active=True))
    assert capsys.readouterr().err.splitlines() == [
        "tune 1/3 train  loss 1",
        "tune 2/3 train  loss 0.5",
        "tune 3/3 train  loss 0.3333",
        "tune 3/3 validation  error 0.125",
    ]


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    show(Console("tune", 3, active=True))
    text = sys.stderr.getvalue()
    assert "3/3" in text and "loss 0.3333" in text and "tune 3/3 validation  error 0.125" in text


def test_other_ranks_are_silent(capsys):
    show(Console("tune", 3, active=False))
    assert capsys.readouterr() == ("", "")
