"""Secrets of the environment and of the command line are used, and end nowhere: not in files, not in MLflow, not in output."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cromss.cli import command_line
from cromss.ingest import main as ingest
from cromss.masking import masked
from cromss.pretrain import main as pretrain
from cromss.tracking import Sink, find_run, open_ui_command

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+Leak1",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzLeak2",
    "RAY_AUTH_TOKEN": "5eaf00d3" * 8,
    "MLFLOW_TRACKING_PASSWORD": "hunter2-Leak4",
    "MLFLOW_TRACKING_TOKEN": "eyJhbGciOi-Leak5",
}
PASSWORD = "pa55/w0rd-Leak6"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql+psycopg2://ada:{PASSWORD}@db:5432/m", "postgresql+psycopg2://***@db:5432/m"),
        (f"see s3://AKIA:{PASSWORD}@b/x, then 'gs://k:v@w/'", "see s3://***@b/x, then 'gs://***@w/'"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        (f"s3://b/x?region=eu&secret_key={PASSWORD}&scheme=http", "s3://b/x?region=eu&secret_key=***&scheme=http"),
        (f"mysql://h/d?user=a&password={PASSWORD}", "mysql://h/d?user=a&password=***"),
        ("https://h/o?X-Amz-Credential=AK&X-Amz-Signature=ab12&x=1",
         "https://h/o?X-Amz-Credential=***&X-Amz-Signature=***&x=1"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("ada@example.com", "ada@example.com"),
    ],
)  # fmt: skip
def test_what_is_masked_and_what_is_not(text, shown):
    assert masked(text) == shown


def test_the_recorded_command_holds_no_password(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cromss", "report", "--tracking-uri", f"postgresql://ada:{PASSWORD}@db/m", "a b"])
    assert "Leak6" not in command_line()
    assert command_line().endswith("'postgresql://***@db/m' 'a b'")


@pytest.mark.parametrize("uri", ["postgresql://ada:{}@db/m", "mysql://db/m?user=ada&password={}", "https://ada:{}@h/x"])
def test_the_command_for_the_ui_names_no_password_and_loopback_alone(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(PASSWORD))
    command = open_ui_command(tmp_path)
    assert "Leak6" not in command
    if not uri.startswith("http"):  # whose server is somebody else's
        assert '--backend-store-uri "$MLFLOW_TRACKING_URI" --host 127.0.0.1' in command


@pytest.mark.parametrize("uri", ["http://ada:{}@127.0.0.1:9", "odd://ada:{}@x/y",
                                 "mysql+pymysql://127.0.0.1:9/m?user=ada&password={}"])  # fmt: skip
def test_a_server_that_fails_is_told_without_its_password(tmp_path, caplog, uri):
    (tmp_path / "trials").mkdir()
    sink = Sink(tmp_path, uri=uri.format(PASSWORD))
    with caplog.at_level("DEBUG", "cromss"):
        assert not sink.sync(final=True)
    with pytest.raises(ValueError) as caught:
        find_run(uri.format(PASSWORD), "x")
    said = caplog.text + str(caught.value) + "".join(file.read_text() for file in tmp_path.glob("mlflow-sent*"))
    assert "Leak6" not in said


@pytest.mark.parametrize("address", ["s3://AKIA:{}@bucket/x", "s3://bucket/x?secret_key={}", "https://ada:{}@h/x",
                                     "gs://bucket/x?token={}"])  # fmt: skip
def test_an_address_with_a_secret_is_refused_without_repeating_it(tmp_path, capsys, address):
    where = address.format(PASSWORD)
    assert pretrain(["--data", where, "--out", str(tmp_path / "out")]) == 2
    assert ingest(["--describe", where]) == 2
    said = capsys.readouterr()
    assert "Leak6" not in said.out + said.err
    assert not any(PASSWORD in str(path) for path in tmp_path.rglob("*"))


# --- a whole sweep --------------------------------------------------------------------------------------------------------

FLOW = """
    import logging, os, sys
    from pathlib import Path

    logging.basicConfig(level=logging.INFO)
    sys.path.insert(0, {tests!r})
    from tiny import TINY

    from cromss.pages.reproduction import reproduce
    from cromss.report import main as report
    from cromss.settings import overlay
    from cromss.sweep import sweep
    from cromss.ray_session import connect
    from cromss.tracking import open_ui_command
    from cromss.trials.space import Space, grid

    data, downstream, out = sys.argv[1:4]
    sys.argv = ["sweep", "leaky", "--data", data, "--tracking-uri", "postgresql://ada:{password}@db/m"]
    connect(num_cpus=2)
    base = overlay(TINY, {{"optim": {{"epochs": 1}}, "scaling": {{"num_workers": 0}}, "transfer": {{"epochs": 1}}}})
    space = Space("rates", "Which?", {{}}, {{"optim": {{"lr": grid(2e-3, 1e30)}}, "arm": "CromSS-midF"}}, "", 1)
    outcome = sweep(space, base, data, downstream, Path(out))
    print("STATES", sorted(trial["status"] for trial in outcome["trials"]))
    print(open_ui_command(out))
    del os.environ["MLFLOW_TRACKING_URI"]  # what the server did not take goes into a file of the run's own
    report([out, "--track"])
    for trial in outcome["trials"]:
        print(reproduce(str(trial["folder"])))
    print(reproduce(out))
"""


@pytest.mark.timeout(280)
def test_a_sweep_with_secrets_around_it_leaves_none(worlds, tmp_path, short, listener):
    """Good and failing trials, MLflow behind a password, Ray behind a token: journals, records, tables, page, MLflow's own
    file, Ray's logs, output and the script that repeats it are searched."""
    (script := tmp_path / "flow.py").write_text(
        textwrap.dedent(FLOW.format(tests=str(Path(__file__).parents[1]), password=PASSWORD))
    )
    out = tmp_path / "out"
    server = listener.url.replace("http://", "http://ada:hunter2-Leak7@")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_", "NCCL_"))}
    environment = clean | SECRETS | {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "RAY_AUTH_MODE": "token", "MLFLOW_TRACKING_URI": server,
        "RAY_TMPDIR": str(short), "RAY_worker_niceness": "0", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    command = [sys.executable, str(script), *map(str, worlds), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=260, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "STATES ['done', 'failed']" in done.stdout
    assert listener.calls  # the server was asked, so the password was in use
    secrets = [text.encode() for text in (*SECRETS.values(), PASSWORD, "Leak7")]
    leaks = {"output": [text for text in secrets if text in (done.stdout + done.stderr).encode()]}
    searched = [file for folder in (out, short) for file in folder.rglob("*") if file.is_file()]
    for file in searched:
        content = file.read_bytes()
        leaks[str(file)] = [text for text in secrets if text in content]
    assert {place: found for place, found in leaks.items() if found} == {}
    names = {file.name for file in searched}
    assert names >= {"sweep.json", "trial.json", "report.html", "mlflow.db", "error.txt"}
    assert any(file.suffix in (".log", ".out", ".err") and short in file.parents for file in searched)
    assert (
        b"***@db/m" in (out / "sweep.json").read_bytes()
        or b"***@db/m" in next(out.glob("trials/*/trial.json")).read_bytes()
    )
