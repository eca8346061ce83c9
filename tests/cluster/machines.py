"""What a lab's hosts need to be machines that `ray up` can work with: a way in by ssh, and a disk image with Python on it."""

import hashlib
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from netlab import Lab

REPOSITORY = Path(__file__).parents[2]
PATH = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def lacking() -> str | None:
    """What this machine has to have and has not; None: nothing."""
    missing = [tool for tool in ("ssh", "sshd", "ssh-keygen", "rsync") if not shutil.which(tool, path=PATH)]
    return f"not installed: {', '.join(missing)}" if missing else None


def home(lab: Lab, number: int) -> Path:
    """The home folder of a host, as this process sees it."""
    return lab.host(number).folder / "home"


def private(path: Path, text: str) -> Path:
    """A file for its owner's eyes alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def open_to(lab: Lab, number: int, key: Path) -> None:
    """Start sshd on a host; it lets the owner of `key` in, and nobody else."""
    folder = lab.host(number).folder
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it gives up its privileges; Debian makes it at boot
    _keygen(folder / "host_key")
    config = f"""
        ListenAddress {lab.host(number).ip}
        HostKey {folder}/host_key
        AuthorizedKeysFile {key}.pub
        PidFile none
        StrictModes no
        UsePAM no
        UseDNS no
        PasswordAuthentication no
        PermitRootLogin prohibit-password
        SetEnv RAY_raylet_start_wait_time_s=180 RAY_worker_niceness=0
    """
    (folder / "sshd_config").write_text(textwrap.dedent(config))
    sshd = shutil.which("sshd", path=PATH)
    log = (folder / "sshd.log").open("wb")
    lab.run(number, [sshd, "-D", "-e", "-f", folder / "sshd_config"], stdout=log, stderr=log, env={"PATH": PATH})


def new_key(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _keygen(path)
    return path


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def image(lab: Lab, number: int) -> None:
    """A home as an image would bring it: its distribution's .bashrc, and ~/venv: this environment, marked as what
    cluster/node/setup.sh would have installed."""
    shutil.copy("/etc/skel/.bashrc", home(lab, number))
    venv = home(lab, number) / "venv"
    venv.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".installed":
            (venv / entry.name).symlink_to(entry)
    wanted = b"".join(
        (REPOSITORY / part).read_bytes() for part in ("cluster/image/requirements.lock", "pyproject.toml")
    )
    (venv / ".installed").write_text(f"{hashlib.sha256(wanted).hexdigest()}  -\n")
