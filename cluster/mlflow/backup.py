"""`python cluster/mlflow/backup.py save FOLDER` and `... restore FOLDER/FILE`: MLflow's Postgres to a bucket and back.

DATABASE_URL (or DATABASE_URL_FILE) names the database; FOLDER is s3://, gs:// or a local path. A dump appears whole, beside
its sha256, or not at all; the newest `--keep` stay. `restore` compares the sha256 first and wants an empty database.
Artifacts need no backup of their own: switch the bucket's versioning on.
"""

import argparse
import datetime
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyarrow import fs

STEM = "mlflow-"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["save", "restore"])
    parser.add_argument("where", help="save: a folder; restore: a dump in it")
    parser.add_argument("--keep", type=int, default=30, metavar="N", help="dumps that stay (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        print(save(args.where, args.keep) if args.what == "save" else restore(args.where))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"backup: {error}", file=sys.stderr)
        return 1
    return 0


def save(folder: str, keep: int) -> str:
    """Dump, store, thin out; the dump's address."""
    system, path = _filesystem(folder)
    with tempfile.TemporaryDirectory() as aside:
        dump = Path(aside) / "dump"
        _run("pg_dump", "--format=custom", "--no-owner", "--file", str(dump))
        digest = hashlib.sha256(dump.read_bytes()).hexdigest()
        name = f"{STEM}{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}.dump"
        if isinstance(system, fs.LocalFileSystem):
            Path(path).mkdir(parents=True, exist_ok=True)
        with system.open_output_stream(f"{path}/{name}.part") as out:
            out.write(dump.read_bytes())
        system.move(f"{path}/{name}.part", f"{path}/{name}")
    with system.open_output_stream(f"{path}/{name}.sha256") as out:  # last: without it, there is no dump
        out.write(digest.encode())
    whole = sorted(one.path for one in system.get_file_info(fs.FileSelector(path)) if one.path.endswith(".sha256"))
    for old in whole[: max(0, len(whole) - max(keep, 1))]:
        system.delete_file(old)
        system.delete_file(old.removesuffix(".sha256"))
    return f"{folder.rstrip('/')}/{name}"


def restore(address: str) -> str:
    """Fill the (empty) database from a dump whose sha256 is right."""
    system, path = _filesystem(address)
    with system.open_input_stream(f"{path}.sha256") as file:
        digest = file.read().decode()
    with system.open_input_stream(path) as file, tempfile.NamedTemporaryFile() as aside:
        content = file.read()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{address}: is damaged (its sha256 is another); take an older one")
        Path(aside.name).write_bytes(content)
        name = _environment()["PGDATABASE"]
        _run("pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", "--dbname", name, aside.name)
    return f"restored {address}"


def _filesystem(address: str) -> tuple[fs.FileSystem, str]:
    if "://" not in address:
        return fs.LocalFileSystem(), str(Path(address).absolute())
    if address.startswith("s3://") and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
        parts = urlsplit(endpoint)
        return fs.S3FileSystem(endpoint_override=parts.netloc, scheme=parts.scheme), address.removeprefix("s3://")
    return fs.FileSystem.from_uri(address)


def _run(*command: str) -> None:
    """pg_dump and pg_restore get the password by environment: a command line is for every eye."""
    subprocess.run(command, check=True, env=os.environ | _environment())


def _environment() -> dict[str, str]:
    url = os.environ.get("DATABASE_URL") or ""
    if not url and (file := os.environ.get("DATABASE_URL_FILE")):
        url = Path(file).read_text().strip()
    parts = urlsplit(url)
    if not parts.scheme.startswith("postgresql") or not parts.path.strip("/"):
        raise ValueError("DATABASE_URL: is missing, or no postgresql://USER:...@HOST/DATABASE address")
    found = {"PGHOST": parts.hostname, "PGPORT": parts.port and str(parts.port), "PGDATABASE": parts.path.strip("/"),
             "PGUSER": parts.username, "PGPASSWORD": parts.password}  # fmt: skip
    return {name: unquote(value) for name, value in found.items() if value}


if __name__ == "__main__":
    sys.exit(main())
