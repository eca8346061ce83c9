"""What the files of cluster/ promise, beyond what the linter refuses: the machines, the pins, the mounts, the scripts."""

import copy
import os
import re
import shutil
import subprocess
import time
import tomllib

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from shipped import CLUSTER, FILES, read

ROOT = CLUSTER.parent
LOCK = CLUSTER / "image/requirements.lock"
UP = ["aws.yaml", "gcp.yaml"]


def prepared(name: str) -> dict:
    """A file for `ray up` as Ray completes and accepts it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(read(name)))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", UP)
def test_ray_accepts_the_file_and_adds_no_command_to_it(name):
    ours, whole = read(name), prepared(name)
    both = ours["setup_commands"]
    assert whole["head_setup_commands"] == both + ours["head_setup_commands"]
    assert whole["worker_setup_commands"] == both + ours["worker_setup_commands"]
    assert set(whole) - set(ours) == {"docker"}
    assert whole["docker"] == {}


@pytest.mark.parametrize("name", UP)
def test_the_head_trains_nothing_and_workers_start_from_none(name):
    config = read(name)
    head, *workers = (config["available_node_types"][kind] for kind in config["available_node_types"])
    assert config["head_node_type"] == next(iter(config["available_node_types"])) == "head"
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert all(worker["min_workers"] == 0 < worker["max_workers"] <= config["max_workers"] for worker in workers)
    assert all(worker["resources"]["GPU"] % 4 == 0 for worker in workers)
    assert 0 < config["idle_timeout_minutes"] <= 15


@pytest.mark.parametrize("name", UP)
def test_spot_comes_first_and_on_demand_is_the_same_machine(name):
    types = read(name)["available_node_types"]
    spot, fallback = (types[kind] for kind in types if kind != "head")
    assert spot["labels"] == {"ray.io/market-type": "spot"}
    assert fallback["labels"] == types["head"]["labels"] == {"ray.io/market-type": "on-demand"}
    assert spot["priority"] > fallback["priority"]
    assert spot["resources"] == fallback["resources"]
    market = {"InstanceMarketOptions", "scheduling"}
    strip = [{k: v for k, v in kind["node_config"].items() if k not in market} for kind in (spot, fallback)]
    assert strip[0] == strip[1]
    assert "SPOT" in str(spot["node_config"]).upper()
    assert "SPOT" not in str(fallback["node_config"]).upper()


@pytest.mark.parametrize("name", UP)
def test_what_is_mounted_is_there_and_is_what_the_setup_needs(name):
    config = read(name)
    mounts = config["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all((ROOT / local).exists() for local in mounts.values())
    assert all(remote == f"~/cromss/{local}" for remote, local in mounts.items())
    commands = "\n".join(command for key in config if key.endswith("_commands") for command in config[key])
    scripts = set(re.findall(r"~/cromss/(cluster/\S+\.sh)", commands))
    assert scripts == {f"cluster/node/{script}.sh" for script in ("setup", "share", "watch")}
    assert all((ROOT / script).exists() for script in scripts)


@pytest.mark.parametrize("name", UP)
def test_every_node_watches_for_its_clouds_notice(name):
    config = read(name)
    for kind in ("head", "worker"):
        assert (
            config[f"{kind}_start_ray_commands"][-1]
            == f"bash ~/cromss/cluster/node/watch.sh {config['provider']['type']}"
        )
    assert "cromss.spot_watch" in (CLUSTER / "node/watch.sh").read_text()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed (Debian: shellcheck)")
def test_every_script_passes_shellcheck():
    scripts = [str(CLUSTER / name) for name in FILES if name.endswith(".sh")]
    assert len(scripts) >= 6
    done = subprocess.run(["shellcheck", "--enable=quote-safe-variables", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def locked() -> dict[str, str]:
    return dict(re.findall(r"^([\w.\-\[\]]+)==(\S+)", LOCK.read_text(), re.M))


def test_the_lock_holds_every_dependency_at_the_constraints_version():
    pins, constraints = locked(), {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if named := re.match(r"([\w.\-]+)==([^\s;#]+)", line):
            constraints[canonicalize_name(named[1])] = named[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["formats"]]:
        needed = Requirement(text)
        assert needed.specifier.contains(pins[canonicalize_name(needed.name)]), text
    assert {name: pins[name] for name in pins if name in constraints} == {
        n: constraints[n] for n in pins if n in constraints
    }
    assert pins["ray"] == "2.60.0"
    assert pins["torch"] == "2.13.0"
    assert any(name.startswith("nvidia-") for name in pins), "torch must be the CUDA build"


@pytest.mark.parametrize("name", ["image/requirements.lock", "node/uv.lock"])
def test_every_package_of_a_lock_is_named_by_hash_and_no_host(name):
    text = (CLUSTER / name).read_text()
    for entry in re.split(r"\n(?=[a-zA-Z])", "\n" + text)[1:]:
        assert re.match(r"[\w.\-\[\]]+==[\w.]+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+$", entry), entry[:80]
    assert "://" not in text


def test_the_same_driver_command_goes_on_in_a_new_cluster():
    """RayJob's backoff starts the same entrypoint again: it must say where its results and checkpoints lie."""
    job = read("kuberay/rayjob.yaml")["spec"]
    words = job["entrypoint"].split()
    assert words[:3] == ["python", "-m", "cromss.sweep"]
    assert {"--out", "--checkpoints", "--data", "--downstream"} <= set(words)
    assert words[words.index("--out") + 1].startswith("/mnt/cromss/")
    assert job["backoffLimit"] > 0


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "10.0.0.0", "10.0.0.0/4"])
def test_a_folder_is_shared_with_a_subnet_and_never_with_the_world(network):
    done = subprocess.run(
        ["bash", CLUSTER / "node/share.sh", "serve", "/dev/null", network], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "must be the cluster's own subnet" in done.stderr


def test_a_node_has_one_watcher_and_ends_nobody_elses_process(tmp_path):
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/bash\nenv > "$HOME/seen.$$"\nmv "$HOME/seen.$$" "$HOME/seen"\nsleep 300 & trap "kill $!" TERM\nwait\n'
    )
    python.chmod(0o755)
    pid = tmp_path / ".cromss/watch.pid"

    def watch() -> psutil.Process:
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        subprocess.run(["bash", CLUSTER / "node/watch.sh", "gcp"], env=env, check=True, timeout=20)
        process = psutil.Process(int(pid.read_text()))
        for _ in range(100):
            if "cromss.spot_watch" in process.cmdline():
                break
            time.sleep(0.05)
        return process

    started = [watch()]
    try:
        first = started[0]
        assert first.cmdline()[-2:] == ["--cloud", "gcp"]
        started.append(second := watch())
        gone, _ = psutil.wait_procs([first], timeout=10)
        assert gone
        assert second.is_running()
        pid.write_text(f"{os.getpid()}\n")  # its id, reused: this very test
        started.append(watch())
        assert second.is_running()
        assert "RAY_AUTH_MODE=token" in (tmp_path / "seen").read_text()
    finally:
        for process in [one for one in started if one.is_running()]:
            process.terminate()
