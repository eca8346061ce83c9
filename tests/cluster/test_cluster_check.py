"""The linter: shipped files pass, and each thing that it refuses is refused in a shipped file that says it, by line."""

from pathlib import Path

import pytest
from shipped import CLUSTER, FILES, found

from cromss.cluster_check import findings, main

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize("name", FILES)
def test_every_shipped_file_is_clean_but_for_its_placeholders(name, tmp_path):
    assert found(tmp_path, name)[0] == []


def test_placeholders_are_named_and_a_template_may_have_them(capsys):
    assert main([str(CLUSTER / "aws.yaml")]) == 1
    assert "aws.yaml:30: REPLACE_AMI waits for its value; fill it in" in capsys.readouterr().out
    assert main(["--template", str(CLUSTER / "aws.yaml")]) == 0
    assert "placeholder(s) wait for their values" in capsys.readouterr().err


# file, what stands there, what somebody writes instead, what the linter says; the finding's line is the change's
SINS = [
    # open to the world
    ("aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "listens to every network"),
    ("gcp.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=::", "listens to every network"),
    ("local.sh", "--dashboard-host=127.0.0.1", "--dashboard-host 0.0.0.0", "listens to every network"),
    ("aws.yaml", "use_internal_ips: false",
     "security_group: {IpPermissions: [{FromPort: 8265, ToPort: 8265, IpProtocol: tcp, IpRanges: [{CidrIp: 0.0.0.0/0}]}]}",
     "0.0.0.0/0 is open to the whole internet"),
    ("gcp/prepare.sh", '--source-ranges="$iap"', "--source-ranges=0.0.0.0/0", "open to the whole internet"),
    ("kuberay/raycluster.yaml", "serviceType: ClusterIP", "serviceType: LoadBalancer", "publishes the dashboard"),
    ("kuberay/rayjob.yaml", "serviceType: ClusterIP", "serviceType: NodePort", "publishes the dashboard"),
    ("kuberay/rayjob.yaml", "serviceType: ClusterIP", "enableIngress: true", "publishes the dashboard"),
    ("kuberay/raycluster.yaml", 'rayStartParams: {num-cpus: "0"}', 'rayStartParams: {dashboard-host: "0.0.0.0"}',
     "listens to every network"),
    ("mlflow/mlflow.yaml", "type: ClusterIP", "type: LoadBalancer", "publishes the service"),
    ("mlflow/mlflow.yaml", "kind: Service\n", "kind: Ingress\n", "publishes what lies behind it"),
    ("mlflow/serve.sh", '--host "$listen"', "--host 0.0.0.0", "listens to every network"),
    ("mlflow/serve.sh", "--app-name basic-auth", "", "mlflow server without --app-name"),
    ("skypilot.yaml", "use_spot: true", "ports: [8265]", "opened to the internet"),
    ("gcp.yaml", "- subnetwork: projects", "- accessConfigs: [{type: ONE_TO_ONE_NAT}]\n          subnetwork: projects",
     "has a public address"),
    # tokens
    ("gcp.yaml", "RAY_AUTH_MODE=token RAY", "RAY_AUTH_MODE=disabled RAY", "switches Ray's token off"),
    ("kuberay/raycluster.yaml", "authOptions: {mode: token}", "authOptions: {mode: disabled}", "no token"),
    ("skypilot.yaml", "RAY_AUTH_MODE: token", "RAY_AUTH_MODE: none", "switches Ray's token off"),
    ("aws.yaml", "RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token", "RAY_AUTH_TOKEN=0123456789abcdef", "secret in plain text"),
    ("mlflow/mlflow.yaml", "{name: FLASK_SECRET_FILE, value: /secrets/flask-secret}",
     "{name: FLASK_SECRET, value: correcthorse}", "FLASK_SECRET holds a secret in plain text"),
    ("skypilot.yaml", "MLFLOW_TRACKING_PASSWORD: null", "MLFLOW_TRACKING_PASSWORD: hunter22", "secret in plain text"),
    ("mlflow/mlflow.service", "Environment=LISTEN=127.0.0.1", "Environment=ADMIN_PASSWORD=hunter22", "secret in plain text"),
    ("mlflow/mlflow.yaml", "/secrets/database-url", "postgresql://mlflow:hunter22@db/mlflow", "password in an address"),
    ("node/setup.sh", "set -euo pipefail", "export AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE", "holds a key"),
    # whatever is newest that day
    ("aws.yaml", "bash ~/cromss/cluster/node/setup.sh",
     "pip install https://s3.example.org/ray-wheels/latest/ray-3.0.0.dev0-cp311.whl", "installs a nightly build"),
    ("node/setup.sh", "--require-hashes --no-deps -r", "-r", "without hashes"),
    ("image/Dockerfile", "--require-hashes -r", "-r", "without hashes"),
    ("gcp.yaml", "bash ~/cromss/cluster/node/setup.sh", "pip install -U ray[default]", "ray[default] is not pinned"),
    ("image/Dockerfile", "REPLACE_PYTHON_IMAGE AS", "python:3.11-slim AS", "image python:3.11-slim is not pinned"),
    ("image/Dockerfile", "REPLACE_PYTHON_IMAGE AS", "python:latest AS", "whatever is newest that day"),
    ("kuberay/raycluster.yaml", "REPLACE_IMAGE", "rayproject/ray:2.60.0", "image rayproject/ray:2.60.0 is not pinned"),
    ("mlflow/mlflow.yaml", "REPLACE_IMAGE", "mlflow", "image mlflow is not pinned"),
    ("gcp.yaml", "sourceImage: REPLACE_IMAGE", "sourceImage: projects/x/global/images/family/common", "whatever is newest"),
    ("aws.yaml", "ImageId: REPLACE_AMI", "ImageId: latest_dlami", "ImageId is not pinned"),
    ("node/setup.sh", "touch", "curl -sSf https://example.org/install | sh; touch", "runs what a server sends"),
    # policies
    ("aws/head-policy.json", '"s3:GetObject", "s3:PutObject"', '"s3:*"', "Action s3:* is a wildcard"),
    ("aws/head-policy.json", '["iam:PassRole"]', '"*"', "Action * is a wildcard"),
    ("aws/head-policy.json", '"arn:aws:iam::REPLACE_ACCOUNT:role/cromss-worker"', '"*"', "everything in the account"),
    ("aws/worker-policy.json", "arn:aws:s3:::REPLACE_BUCKET/cromss/*", "arn:aws:s3:::bucket*", "a whole bucket, or more"),
    ("aws/worker-policy.json", '"Action": ["s3:ListBucket"]', '"NotAction": ["s3:ListBucket"]', "allows everything else"),
    ("gcp/head-role.yaml", "compute.disks.create", "compute.*", "grants far more than is needed"),
    ("gcp/prepare.sh", "roles/storage.objectUser", "roles/storage.admin", "grants far more than is needed"),
    # what Ray adds where a file is silent
    ("aws.yaml", "cache_stopped_nodes: false", "cache_stopped_nodes: true", "their volumes paid for"),
    ("aws.yaml", "HttpTokens: required", "HttpTokens: optional", "can be read by a forged request"),
    # per type, and Ray's schema
    ("aws.yaml", "min_workers: 0\n    max_workers: 4", "min_workers: 5\n    max_workers: 4", "min_workers=5 is more than"),
    ("kuberay/raycluster.yaml", "minReplicas: 0", "minReplicas: 5", "minReplicas=5 is more than maxReplicas=4"),
    ("aws.yaml", "upscaling_speed: 1.0", "upscaling_sped: 1.0", "Ray refuses it"),
    ("gcp.yaml", 'resources: {"CPU": 48, "GPU": 4}', 'resources: {"CPU": 48, "GPU": 0.5}', "Ray refuses it"),
    # pods
    ("kuberay/raycluster.yaml", "networkPolicy: {mode: DenyAllIngress}", "networkPolicy: {mode: DenyAllEgress}",
     "every pod of the Kubernetes cluster may call in"),
    ("mlflow/mlflow.yaml", "automountServiceAccountToken: false\n      securityContext",
     "hostNetwork: true\n      securityContext", "the pod leaves its box"),
    ("mlflow/mlflow.yaml", "{name: http, containerPort: 5000}", "{name: http, containerPort: 5000, hostPort: 5000}",
     "opens a port of its node"),
    ("kuberay/namespace.yaml", "- namespaceSelector:\n            matchLabels: {kubernetes.io/metadata.name: kuberay-operator}",
     "- namespaceSelector: {}\n          ipBlock: {cidr: 10.0.0.0/8}\n        -", "every pod of every namespace"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "said"), SINS, ids=[f"{sin[0]}: {sin[3]}" for sin in SINS])
def test_each_sin_is_named_with_its_line(name, old, new, said, tmp_path):
    findings_of, line = found(tmp_path, name, old, new)
    assert any(said in one.what and one.line == line for one in findings_of), (line, findings_of)


# What a pod or a file may not leave out: the finding stands at what is nearest to the gap.
GAPS = [
    ("aws.yaml", "      SecurityGroupIds: [REPLACE_SG_NODES]\n", "has no SecurityGroupIds"),
    ("aws.yaml", "      SecurityGroupIds: [REPLACE_SG_NODES, REPLACE_SG_ADMIN]  # ADMIN: port 22 from one address\n",
     "head has no SecurityGroupIds"),
    ("aws.yaml", "      IamInstanceProfile: {Name: cromss-head}\n", "head has no IamInstanceProfile"),
    ("aws.yaml", "      IamInstanceProfile: {Name: cromss-worker}\n", "a100x8-spot has no IamInstanceProfile"),
    ("aws.yaml", "  cache_stopped_nodes: false  # Ray's default stops on-demand nodes and goes on paying for their volumes\n",
     "stopped nodes are kept"),
    ("aws.yaml", "head_setup_commands: []\n", "Ray installs the cloud's client unpinned"),
    ("aws.yaml", "--dashboard-host=127.0.0.1 ", "does not say where its dashboard listens"),
    ("aws.yaml", "RAY_AUTH_MODE=token ", "ray start without a token"),
    ("mlflow/serve.sh", '--allowed-hosts "$hosts" ', "mlflow server without --allowed-hosts"),
    ("gcp.yaml", "      serviceAccounts: *worker\n", "has no serviceAccounts"),
    ("gcp.yaml", "      networkInterfaces: *network\n", "has no networkInterfaces"),
    ("kuberay/rayjob.yaml", "    authOptions: {mode: token}  # the operator makes the token and hands it to the pods\n",
     "no token"),
    ("kuberay/rayjob.yaml", "        runAsNonRoot: true\n", "submitter may run as root"),
    ("kuberay/rayjob.yaml", "            allowPrivilegeEscalation: false\n", "submitter may gain privileges"),
    ("mlflow/mlflow.yaml",
     '    - from:\n        - podSelector:\n            matchLabels: {ray.io/is-ray-node: "yes"}\n      ports',
     "lets everybody in"),
    ("image/Dockerfile", "USER 1000\n", "the image runs as root"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "gone", "said"), GAPS, ids=[f"{gap[0]}: {gap[2]}" for gap in GAPS])
def test_each_gap_is_named(name, gone, said, tmp_path):
    new = "    - ports" if said == "lets everybody in" else ""
    assert any(said in one.what for one in found(tmp_path, name, gone, new)[0])


@pytest.mark.parametrize("key", ["setup_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_what_ray_would_fill_in_must_be_said(key, tmp_path):
    text = (CLUSTER / "aws.yaml").read_text()
    file = tmp_path / "silent.yaml"
    file.write_text(text.replace(f"\n{key}:", f"\nmetadata:\n  {key}:", 1))
    assert any(one.what.startswith(f"{key} is missing") for one in findings(file))


@pytest.mark.parametrize(
    ("cloud", "sins"),
    [
        ("aws", ["listens to every network", "without a token", "nightly", "is not pinned", "SecurityGroupIds", "volumes",
                 "IamInstanceProfile", "IMDSv1", "ImageId"]),
        ("gcp", ["listens to every network", "without a token", "nightly", "is not pinned", "serviceAccounts",
                 "whatever is newest", "networkInterfaces"]),
    ],
)  # fmt: skip
def test_rays_own_defaults_are_refused_for_every_reason_there_is(cloud, sins, capfd):
    import ray.autoscaler

    file = Path(ray.autoscaler.__file__).parent / cloud / "defaults.yaml"
    said = "\n".join(one.what for one in findings(file))
    assert [sin for sin in sins if sin not in said] == []
    assert capfd.readouterr() == ("", "")  # Ray keeps quiet meanwhile


def test_a_digest_is_a_pin_and_a_full_file_is_clean(tmp_path):
    text = (CLUSTER / "kuberay/raycluster.yaml").read_text()
    file = tmp_path / "full.yaml"
    file.write_text(text.replace("REPLACE_IMAGE", f"registry.example.org/cromss@{DIGEST}"))
    assert main([str(file)]) == 0


@pytest.mark.parametrize("option", ["-f", "--cache-dir", "--some-url", "--some-links"])
def test_the_value_of_an_option_is_no_package_and_what_follows_it_is(tmp_path, option):
    file = tmp_path / "install.sh"
    file.write_text(f"pip install {option} mirror ray\n")
    assert [finding.what for finding in findings(file)] == ["pip install ray is not pinned"]


def test_a_secret_is_never_repeated(tmp_path, capsys):
    file = tmp_path / "leaky.sh"
    file.write_text("export DB=postgresql://me:hunter2222@db/x API_TOKEN=hunter3333\nexport K=AKIAIOSFODNN7EXAMPLE\n")
    assert main([str(file)]) == 1
    said = capsys.readouterr().out
    assert said.count("leaky.sh:1:") == 2
    assert "hunter" not in said
    assert "IOSFODNN" not in said


def test_comments_are_no_sins(tmp_path):
    file = tmp_path / "quiet.sh"
    file.write_text("# never --dashboard-host=0.0.0.0\necho 'a # b'  # pip install ray\n")
    assert findings(file) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "a: [1, 2", "is not YAML"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "is not YAML"),
        ("a.yaml", "just: something", "of no kind that is checked"),
        ("a.txt", "hello", "of no kind that is checked"),
        ("a.yaml", "a: &a [*a]", "cannot be read"),
        ("a.yaml", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)), "cannot be read"),
    ],
    ids=["torn", "an object", "another YAML", "a text", "a snake that eats itself", "a bomb"],
)  # fmt: skip
def test_what_cannot_be_read_is_said_and_ends_with_2(name, content, said, tmp_path, capsys):
    file = tmp_path / name
    file.write_text(content)
    assert main([str(file)]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_ends_with_2(capsys):
    assert main([str(Path("no") / "such.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err
