"""A host that serves MLflow to a team: cluster/mlflow/serve.sh before PostgreSQL and a bucket whose server checks keys."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from machines import PATH, REPOSITORY, private
from netlab import Lab

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))
DATABASE, BUCKET = "a-password-of-the-database", "a-secret-of-the-bucket"
MODULES = ("psycopg2", "flask_wtf", "boto3")


def lacking() -> str | None:
    """What this machine has to have and has not; None: nothing."""
    missing = [] if POSTGRES else ["postgresql"]
    missing += [tool for tool in ("runuser", "rclone") if not shutil.which(tool, path=PATH)]
    for module in MODULES:
        try:
            __import__(module)
        except ImportError:
            missing.append(module)
    return f"not installed: {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Service:
    """MLflow at `address`; its artifacts are the files in `bucket`."""

    lab: Lab
    number: int
    address: str
    bucket: Path

    def sql(self, command: str, database: str = "mlflow", patience: float = 0) -> str:
        """What PostgreSQL answers; asked again for `patience` seconds while it refuses."""
        psql = [POSTGRES / "psql", "-h", "127.0.0.1", "-U", "mlflow", "-d", database, "-Atc", command]
        until = time.monotonic() + patience
        while True:
            try:
                return self.lab.call(self.number, psql, env={"PATH": PATH, "PGPASSWORD": DATABASE}).strip()
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.3)


@contextmanager
def mlflow(lab: Lab, number: int, admin: str) -> Iterator[Service]:
    """Start everything; MLflow may need a minute until it answers. `admin` is its administrator's password."""
    me = lab.host(number)
    service = Service(lab, number, f"http://{me.ip}:5000", me.folder / "buckets" / "team")
    with tempfile.TemporaryDirectory(prefix="netlab-pg-", ignore_cleanup_errors=True) as folder:
        _postgres(lab, number, Path(folder))
        service.sql("CREATE DATABASE mlflow", database="postgres", patience=60)
        service.bucket.mkdir(parents=True)
        keys = ["--auth-key", f"team,{BUCKET}"]
        _start(
            lab, number, "rclone", ["rclone", "serve", "s3", service.bucket.parent, "--addr", "127.0.0.1:9000", *keys]
        )
        _start(lab, number, "mlflow", ["bash", REPOSITORY / "cluster/mlflow/serve.sh"], _settings(lab, number, admin))
        yield service


def _postgres(lab: Lab, number: int, folder: Path) -> None:
    shutil.chown(folder, "postgres")
    password = folder / "password"
    password.write_text(DATABASE)
    password.chmod(0o644)
    data, user = folder / "data", ["runuser", "-u", "postgres", "--"]
    login = ["-U", "mlflow", "--auth=scram-sha-256", f"--pwfile={password}"]
    lab.call(number, [*user, POSTGRES / "initdb", "-D", data, "--no-sync", *login], env={"PATH": PATH}, cwd="/")
    flags = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    _start(lab, number, "postgres", [*user, POSTGRES / "postgres", "-D", data, *flags])


def _settings(lab: Lab, number: int, admin: str) -> dict[str, str]:
    me = lab.host(number)
    database = private(me.folder / "database-url", f"postgresql+psycopg2://mlflow:{DATABASE}@127.0.0.1/mlflow")
    return {
        "LISTEN": me.ip, "ALLOWED_HOSTS": f"{me.ip}:5000", "WORKERS": "1", "STATE": str(me.folder / "mlflow"),
        "DATABASE_URL_FILE": str(database), "ADMIN_PASSWORD_FILE": str(private(me.folder / "admin", admin)),
        "FLASK_SECRET_FILE": str(private(me.folder / "flask", os.urandom(16).hex())), "ARTIFACTS": "s3://team/mlflow",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": BUCKET,
        # rclone's server takes a plain upload alone
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }  # fmt: skip


def _start(lab: Lab, number: int, name: str, command: list, settings: dict[str, str] | None = None) -> None:
    """A server in the background, until its host ends; what it says is in `<name>.log` of the host's folder."""
    environment = {"PATH": PATH, "HOME": str(Path.home())} | (settings or {})
    with (lab.host(number).folder / f"{name}.log").open("wb") as log:
        lab.run(number, command, stdout=log, stderr=log, cwd="/", env=environment)
