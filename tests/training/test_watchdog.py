"""A loop that stands still is ended with its stacks written down; one that moves is not."""

import subprocess
import sys
import textwrap

from cromss.training.watchdog import Watchdog, moving

PROGRAM = """
    import sys, time
    from pathlib import Path
    from cromss.training.watchdog import Watchdog, moving

    def stuck_in_the_second_step():
        time.sleep(60)

    with Watchdog(1 / 60, Path(sys.argv[1]), 3):
        for number in moving(range(6)):
            time.sleep(0.4)  # 2.4 seconds in all, more than the second that a step may take
            if number == 1 and sys.argv[2] == "stuck":
                stuck_in_the_second_step()
    print("done")
"""


def run(folder, how):
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), how]
    return subprocess.run(program, capture_output=True, text=True, timeout=50, check=False)


def test_a_step_that_never_ends_ends_its_process_and_the_stack_says_where(tmp_path):
    ended = run(tmp_path, "stuck")
    assert ended.returncode == 1
    assert ended.stdout == ""
    (path,) = tmp_path.glob("stalled-3-*.txt")
    assert "stuck_in_the_second_step" in path.read_text()


def test_steps_that_end_in_time_leave_nothing_behind(tmp_path):
    ended = run(tmp_path, "moving")
    assert (ended.returncode, ended.stdout) == (0, "done\n")
    assert list(tmp_path.iterdir()) == []


def test_whoever_walks_on_keeps_the_watchdog_of_the_process_quiet_and_without_one_nothing_happens(
    tmp_path, monkeypatch
):
    beats = []
    assert list(moving("ab")) == ["a", "b"]
    with Watchdog(1.0, tmp_path) as dog:
        monkeypatch.setattr(dog, "beat", lambda: beats.append(1))
        assert list(moving("ab")) == ["a", "b"]
        assert len(beats) == 2
    assert list(moving("ab")) == ["a", "b"]
    assert len(beats) == 2
