"""How a run is asked to leave, and what its process says then."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from cromss.cli import verb
from cromss.leaving import Left, ask, asked, on_sigterm, overtaken, take_over, withdraw


def test_the_first_to_ask_is_told_and_a_withdrawn_word_is_forgotten(tmp_path):
    assert asked([tmp_path]) == ""
    ask(tmp_path, "SIGTERM")
    ask(tmp_path, "something else")
    assert asked([tmp_path / "absent", tmp_path]) == "SIGTERM"
    withdraw(tmp_path)
    assert asked([tmp_path]) == ""


def test_sigterm_asks_and_gives_the_handler_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with on_sigterm(tmp_path):
        signal.raise_signal(signal.SIGTERM)
        assert asked([tmp_path]) == "SIGTERM"
        with pytest.raises(SystemExit, match="143"):  # who cannot wait says it twice
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_word_that_an_earlier_run_left_behind_is_not_heard(tmp_path):
    ask(tmp_path, "SIGTERM")
    with on_sigterm(tmp_path):
        assert asked([tmp_path]) == ""


def test_a_run_that_does_not_listen_ends_after_the_grace(tmp_path):
    program = """
        import os, signal, sys, time
        from pathlib import Path
        from cromss import leaving
        leaving.GRACE = 0.5
        with leaving.on_sigterm(Path(sys.argv[1])):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
    """
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], timeout=60, check=False)
    assert ended.returncode == 143
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("step", "said"), [(None, "SIGTERM: left;"), (7, "SIGTERM: left at step 7, with its")])
def test_a_verb_that_left_says_how_to_go_on_and_exits_143(capsys, step, said):
    def main(argv=None):
        raise Left("SIGTERM", step)

    assert verb(main)() == 143
    error = capsys.readouterr().err
    assert said in error
    assert "the same command goes on" in error


def test_a_run_is_the_last_ones_who_took_it_over(tmp_path):
    first = take_over(tmp_path)
    assert not overtaken(tmp_path, first)
    second = take_over(tmp_path)
    assert (overtaken(tmp_path, first), overtaken(tmp_path, second)) == (True, False)
    (tmp_path / ".holder").write_text("")  # a full disk says nothing about who holds it
    assert not overtaken(tmp_path, first)


def test_sigterm_is_heard_whatever_was_asked_before(tmp_path):
    with on_sigterm(tmp_path):
        ask(tmp_path, "there is room for more workers")
        signal.raise_signal(signal.SIGTERM)
        assert asked([tmp_path]) == "SIGTERM"
