"""`python -m cromss.cluster_check FILE... [--template]`: what a file that starts a cluster may not say, by line.

Reads files for `ray up`, Kubernetes and KubeRay manifests, IAM policies and roles, SkyPilot tasks, Dockerfiles, shell
scripts and systemd units, and starts nothing. Refused: ports open to the world, dashboards for every network, missing or
literal tokens, nightly wheels, images and packages without a pin, wildcards in policies, what Ray would add where a file
is silent. Exit status 0: clean; 1: something was found; 2: a file could not be read.
"""

import argparse
import sys
from pathlib import Path

from cromss.cli import verb
from cromss.clusterfiles import kubernetes, other, policies, ray_up
from cromss.clusterfiles.reading import Finding, documents, script

KINDS = "ray up, Kubernetes, IAM policy, SkyPilot, Dockerfile, shell script, systemd unit"


@verb
def main(argv: list[str] | None = None) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(prog="cromss cluster_check", description=__doc__.splitlines()[0].split(": ", 1)[1])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--template", action="store_true", help="placeholders (REPLACE_...) may wait for their values")
    args = parser.parse_args(argv)
    found, waiting = 0, 0
    for file in args.files:
        for finding in findings(file):
            if finding.fill_in and args.template:
                waiting += 1
                continue
            found += 1
            print(f"{file}:{finding.line}: {finding.what}; {finding.way_out}")
    if waiting:
        print(f"{waiting} placeholder(s) wait for their values", file=sys.stderr)
    return 1 if found else 0


def findings(file: Path) -> list[Finding]:
    """What is wrong with a file, by line. Raises ValueError for what cannot be read, or is of no kind that is known."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None
    try:
        return sorted(set(_findings(file, text)))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _findings(file: Path, text: str) -> list[Finding]:
    if file.name.startswith("Dockerfile") or file.suffix == ".dockerfile":
        return list(other.check_dockerfile(script(text)))
    if file.suffix in (".sh", ".service") or text.startswith("#!"):
        return list(other.check_script(script(text)))
    if file.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"of no kind that is checked: {KINDS}")
    found: list[Finding] = []
    for document in documents(text):
        for known, check in (
            (ray_up.is_ray_up, ray_up.check),
            (kubernetes.is_manifest, kubernetes.check),
            (policies.is_policy, policies.check),
            (other.is_skypilot, other.check_skypilot),
        ):
            if known(document.value):
                found += check(document)
                break
        else:
            raise ValueError(f"line {document.line()}: of no kind that is checked: {KINDS}")
    return found


if __name__ == "__main__":
    sys.exit(main())
