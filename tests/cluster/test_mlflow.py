"""MLflow's start asks for its secrets by name; its backup comes back whole, or not at all."""

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from s3 import free_port
from shipped import CLUSTER

SERVE, BACKUP = CLUSTER / "mlflow/serve.sh", CLUSTER / "mlflow/backup.py"
SECRETS = {
    "DATABASE_URL": "postgresql+psycopg2://mlflow:correct-horse@127.0.0.1/mlflow",
    "ARTIFACTS": "s3://bucket/mlflow",
    "FLASK_SECRET": "0123456789abcdef" * 4,
    "ADMIN_PASSWORD": "battery-staple",
    "ALLOWED_HOSTS": "mlflow.internal:5000,mlflow:5000",
}
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))


@pytest.fixture
def serve(tmp_path):
    """`serve.sh` with these variables, before an mlflow that only writes down how it was called."""
    fake = tmp_path / "mlflow"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$SEEN/arguments"\nenv > "$SEEN/environment"\n')
    fake.chmod(0o755)

    def run(**variables: str) -> subprocess.CompletedProcess:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "SEEN": str(tmp_path),
            "MLFLOW": str(fake),
            **variables,
        }
        return subprocess.run(["bash", SERVE], env=env, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_secret_stops_it_by_name(name, serve, tmp_path):
    done = serve(**{key: value for key, value in SECRETS.items() if key != name})
    assert done.returncode != 0
    assert f"{name} is missing: set it, or {name}_FILE to a file that holds it" in done.stderr
    assert not (tmp_path / "arguments").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ADMIN_PASSWORD", "password1", "too short"),
        ("FLASK_SECRET", "guess", "too short"),
        ("DATABASE_URL", "sqlite:///mlflow.db", "must be a postgresql"),
    ],
)
def test_a_weak_secret_stops_it(name, value, said, serve, tmp_path):
    done = serve(**SECRETS | {name: value})
    assert done.returncode != 0
    assert said in done.stderr
    assert value not in done.stderr
    assert not (tmp_path / "arguments").exists()


def test_no_secret_is_on_the_command_line_and_files_serve_as_well(serve, tmp_path):
    inside = ("DATABASE_URL", "FLASK_SECRET", "ADMIN_PASSWORD")
    files = {}
    for name in inside:
        (tmp_path / name).write_text(SECRETS[name] + "\n")
        files[f"{name}_FILE"] = str(tmp_path / name)
    done = serve(**{name: SECRETS[name] for name in ("ARTIFACTS", "ALLOWED_HOSTS")}, **files)
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "arguments").read_text().split("\n")
    assert not [word for word in arguments if any(SECRETS[name] in word for name in inside)]
    given = dict(itertools.pairwise(arguments))
    assert given["--host"] == "127.0.0.1"
    assert given["--app-name"] == "basic-auth"
    assert given["--allowed-hosts"] == SECRETS["ALLOWED_HOSTS"]
    assert given["--artifacts-destination"] == SECRETS["ARTIFACTS"]
    told = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line)
    assert told["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert told["MLFLOW_BACKEND_STORE_URI"] == SECRETS["DATABASE_URL"]
    config = Path(told["MLFLOW_AUTH_CONFIG_PATH"])
    assert config.stat().st_mode & 0o777 == 0o600
    assert config.parent.stat().st_mode & 0o777 == 0o700
    assert "admin_password" not in config.read_text()


def test_mlflow_understands_the_configuration_that_it_is_given(serve, tmp_path, monkeypatch):
    where = (
        Path(importlib.util.find_spec("mlflow").origin).parent / "server/auth/config.py"
    )  # alone: its package is Flask
    spec = importlib.util.spec_from_file_location("auth_config", where)
    config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config)
    url = "postgresql+psycopg2://mlflow:a%2Fb@127.0.0.1/mlflow"  # a password with a slash: % is special there
    assert serve(**SECRETS | {"DATABASE_URL": url}).returncode == 0
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / ".mlflow-server/auth.ini"))
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", SECRETS["ADMIN_PASSWORD"])
    read = config.read_auth_config()
    assert (read.database_uri, read.admin_username) == (url, "admin")
    assert read.admin_password == SECRETS["ADMIN_PASSWORD"]


# --- the backup -------------------------------------------------------------------------------------------------------


class Database:
    """A PostgreSQL of its own on loopback."""

    def __init__(self, folder: Path):
        self.port, self.folder = free_port(), folder
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        password = folder / "password"
        password.write_text("correct-horse")
        password.chmod(0o644)
        self._call(
            "initdb", "-D", folder / "data", "-U", "mlflow", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"
        )
        flags = [
            "-p",
            self.port,
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=off",
        ]
        command = [*self.user, POSTGRES / "postgres", "-D", folder / "data", *flags]
        with (folder / "log").open("wb") as log:
            self.server = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, cwd="/")
        for _ in range(100):
            if not self.sql("select 1", "postgres", check=False).returncode:
                return
            time.sleep(0.1)
        raise RuntimeError((folder / "log").read_text())

    def _call(self, program: str, *arguments: object) -> None:
        command = [str(word) for word in (*self.user, POSTGRES / program, *arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    def sql(self, command: str, database: str, check: bool = True) -> subprocess.CompletedProcess:
        words = [
            POSTGRES / "psql",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "mlflow",
            "-d",
            database,
            "-Atc",
            command,
        ]
        env = os.environ | {"PGPASSWORD": "correct-horse"}
        return subprocess.run(words, check=check, capture_output=True, text=True, env=env)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg2://mlflow:correct-horse@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="module")
def postgres():
    if POSTGRES is None or (os.geteuid() == 0 and not shutil.which("runuser")):
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        database = Database(Path(folder))
        yield database
        database.server.terminate()
        database.server.wait(20)


def backup(url: str, *arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {"DATABASE_URL": url, "PATH": f"{POSTGRES}:{os.environ['PATH']}"}
    return subprocess.run([sys.executable, BACKUP, *arguments], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_database_comes_back_from_its_backup(where, postgres, tmp_path, request):
    folder = str(tmp_path / "backups") if where == "folder" else f"{request.getfixturevalue('bucket')}/mlflow-backup"
    for name in (f"first_{where}", f"second_{where}"):
        postgres.sql(f"create database {name}", "postgres")
    postgres.sql("create table runs (id text primary key); insert into runs values ('abc'), ('def')", f"first_{where}")
    saved = backup(postgres.url(f"first_{where}"), "save", folder)
    assert saved.returncode == 0, saved.stderr
    restored = backup(postgres.url(f"second_{where}"), "restore", saved.stdout.strip())
    assert restored.returncode == 0, restored.stderr
    assert (
        postgres.sql("select string_agg(id, ' ' order by id) from runs", f"second_{where}").stdout.strip() == "abc def"
    )
    again = backup(postgres.url(f"second_{where}"), "restore", saved.stdout.strip())
    assert again.returncode == 1, "a database that holds something is not written over"


def test_a_damaged_backup_is_refused_and_old_ones_go(postgres, tmp_path):
    postgres.sql("create database third", "postgres")
    postgres.sql("create database fourth", "postgres")
    saved = [backup(postgres.url("third"), "save", str(tmp_path), "--keep", "2").stdout.strip() for _ in range(3)]
    assert sorted(path.name for path in tmp_path.glob("*.dump")) == [Path(one).name for one in saved[1:]]
    newest = Path(saved[-1])
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = backup(postgres.url("fourth"), "restore", str(newest))
    assert done.returncode == 1
    assert "is damaged" in done.stderr


def test_a_backup_without_a_database_says_so_and_no_password(postgres, tmp_path):
    done = backup("sqlite:///x.db", "save", str(tmp_path))
    assert (done.returncode, "DATABASE_URL: is missing" in done.stderr) == (1, True)
    done = backup(postgres.url("nowhere"), "save", str(tmp_path))
    assert done.returncode == 1
    assert "correct-horse" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
