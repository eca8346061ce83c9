"""KubeRay's manifests against its own schema, unknown keys refused; everything else against that of Kubernetes."""

import copy
import functools
import json

import jsonschema
import pytest
from shipped import CLUSTER, manifests

RAY = {"kuberay/raycluster.yaml": "rayclusters.v1.json", "kuberay/rayjob.yaml": "rayjobs.v1.json"}
PLAIN = ["kuberay/namespace.yaml", "mlflow/mlflow.yaml"]


def strict(schema: dict) -> dict:
    """A custom resource's OpenAPI schema as a JSON schema that refuses what it does not name."""
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes") and key != "format"}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    if "properties" in schema:
        made["properties"] = {name: strict(below) for name, below in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if isinstance(schema.get("items"), dict):
        made["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    return made


@functools.cache
def validator(folder: str, name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(strict(json.loads(open(f"{folder}/{name}").read())))


@pytest.fixture
def crds(shared):
    folder = shared / "data/kuberay-crds"
    if not folder.exists():
        pytest.skip("KubeRay's schemas are not beside this checkout")
    return str(folder)


def cluster_of(manifest: dict) -> dict:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


@pytest.mark.parametrize("name", RAY)
def test_kuberay_accepts_every_key(name, crds):
    [manifest] = manifests(name)
    assert [f"{error.json_path}: {error.message}" for error in validator(crds, RAY[name]).iter_errors(manifest)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("headGroupSpec", "serviceTyp"), "ClusterIP"),
        (("autoscalerOptions", "version"), "v3"),
        (("authOptions", "mode"), "tokens"),
        (("headGroupSpec", "template", "spec", "securityContext", "runAsNonroot"), True),
        (("rayVersion",), 2.6),
    ],
)
def test_kuberays_schema_sees_mistakes_however_deep(path, value, crds):
    for name, schema in RAY.items():
        [manifest] = manifests(name)
        place = cluster_of(manifest)
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert list(validator(crds, schema).iter_errors(manifest)), name


def pods(manifest: dict) -> dict[str, dict]:
    """Every pod's spec that a manifest leads to."""
    if manifest["kind"] == "Deployment":
        return {"deployment": manifest["spec"]["template"]["spec"]}
    cluster = cluster_of(manifest)
    found = {"head": cluster["headGroupSpec"]["template"]["spec"]}
    found |= {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    if "submitterPodTemplate" in manifest["spec"]:
        found["submitter"] = manifest["spec"]["submitterPodTemplate"]["spec"]
    return found


def accepted(manifest: dict) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("name", PLAIN)
def test_kubernetes_accepts_every_key(name):
    for manifest in manifests(name):
        accepted(manifest)


@pytest.mark.parametrize("name", RAY)
def test_kubernetes_accepts_the_pods_in_kuberays_manifests(name):
    for group, spec in pods(manifests(name)[0]).items():
        accepted({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": group}, "spec": spec})


def test_kubernetes_schema_sees_a_typo():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    [manifest] = [one for one in manifests("mlflow/mlflow.yaml") if one["kind"] == "NetworkPolicy"]
    manifest["spec"]["ingres"] = manifest["spec"].pop("ingress")
    with pytest.raises(validate.ValidationError):
        validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("name", [*RAY, "mlflow/mlflow.yaml"])
def test_every_pod_is_one_that_a_restricted_namespace_takes(name):
    [namespace] = [one for one in manifests("kuberay/namespace.yaml") if one["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for manifest in manifests(name):
        for spec in pods(manifest).values() if manifest["kind"] in ("RayCluster", "RayJob", "Deployment") else ():
            own = spec["securityContext"]
            assert own["runAsNonRoot"] is True
            assert own["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in spec["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["limits"]


@pytest.mark.parametrize("name", RAY)
def test_a_head_that_trains_nothing_and_4_gpus_from_none_spot_first(name):
    [manifest] = manifests(name)
    cluster = cluster_of(manifest)
    assert cluster["rayVersion"] == "2.60.0"
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    spot, fallback = cluster["workerGroupSpecs"]
    assert spot["priority"] > fallback["priority"]
    for group, market in ((spot, "spot"), (fallback, "on-demand")):
        assert group["labels"] == {"ray.io/market-type": market}
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        [container] = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert group["template"]["spec"]["restartPolicy"] == "Never"  # autoscaler v2 asks for it
    [told] = [
        one["value"]
        for one in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
        if one["name"] == "CROMSS_MAX_RESOURCES"
    ]
    most = spot["maxReplicas"] + fallback["maxReplicas"]
    assert json.loads(told) == {"CPU": 40 * most, "GPU": 4 * most}  # what a sweep may count on, from an empty cluster
    same = copy.deepcopy([spot["template"]["spec"]["containers"], fallback["template"]["spec"]["containers"]])
    assert same[0] == same[1]


def test_both_clusters_are_one():
    """The RayJob's cluster is the RayCluster's, word for word."""
    [cluster], [job] = (manifests(name) for name in RAY)
    assert cluster_of(job) == cluster_of(cluster)


def test_a_jobs_cluster_goes_when_it_is_done():
    job = manifests("kuberay/rayjob.yaml")[0]["spec"]
    rules = job["deletionStrategy"]["deletionRules"]
    assert {rule["condition"]["jobStatus"] for rule in rules} == {"SUCCEEDED", "FAILED"}
    # The operator refuses DeleteWorkers beside its autoscaler, and these rules beside the older switch.
    assert {rule["policy"] for rule in rules} == {"DeleteCluster"}
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & set(job)
    assert job["activeDeadlineSeconds"] <= 7 * 24 * 3600


def test_only_named_pods_may_call_in():
    policies = [one["spec"] for name in PLAIN for one in manifests(name) if one["kind"] == "NetworkPolicy"]
    assert len(policies) == 2
    for policy in policies:
        assert policy["policyTypes"] == ["Ingress"]
        for rule in policy["ingress"]:
            assert all(peer["podSelector"]["matchLabels"] for peer in rule["from"])
            assert all("ipBlock" not in peer for peer in rule["from"])
    nodes, _ = policies
    inside, outside = nodes["ingress"]
    assert inside["from"] == [{"podSelector": nodes["podSelector"]}]
    assert [port["port"] for port in outside["ports"]] == [8265]


def test_what_manifests_name_is_made_or_said_to_be_made_by_hand():
    made = {(one["kind"], one["metadata"]["name"]) for name in PLAIN for one in manifests(name)}
    for name in [*RAY, "mlflow/mlflow.yaml"]:
        for manifest in manifests(name):
            for spec in pods(manifest).values() if manifest["kind"] in ("RayCluster", "RayJob", "Deployment") else ():
                if account := spec.get("serviceAccountName"):
                    assert ("ServiceAccount", account) in made
                for volume in spec.get("volumes", ()):
                    if claim := volume.get("persistentVolumeClaim"):
                        assert ("PersistentVolumeClaim", claim["claimName"]) in made
    readme = (CLUSTER / "README.md").read_text() + (CLUSTER / "mlflow/mlflow.yaml").read_text()
    for secret in ("cromss-mlflow", "cromss-mlflow-user"):
        assert f"secret generic {secret} " in readme
