"""Kubernetes manifests, KubeRay's among them."""

from collections.abc import Iterator
from typing import Any

from cromss.clusterfiles.commands import check_image, check_keys, check_piece, check_starts
from cromss.clusterfiles.reading import Document, Finding

_PUBLIC = ("LoadBalancer", "NodePort", "ExternalName")
_PODS = {  # kind: where its pod's spec lies
    "Pod": ("spec",),
    "Deployment": ("spec", "template", "spec"),
    "StatefulSet": ("spec", "template", "spec"),
    "DaemonSet": ("spec", "template", "spec"),
    "Job": ("spec", "template", "spec"),
    "CronJob": ("spec", "jobTemplate", "spec", "template", "spec"),
}


def is_manifest(value: Any) -> bool:
    return isinstance(value, dict) and "apiVersion" in value and "kind" in value


def check(document: Document) -> Iterator[Finding]:
    """Everything that is wrong with one manifest."""
    for path, piece in document.pieces():
        if not {"egress", "egressRules"} & set(path):  # whom a pod may call is another matter than who may call it
            yield from check_piece(piece)
        yield from check_starts(piece, authenticated=True)  # the operator hands the token out
    yield from check_keys(document)
    kind = document.value["kind"]
    if kind in ("RayCluster", "RayJob", "RayService"):
        yield from _ray(document, ("spec", *(() if kind == "RayCluster" else (_within(kind),))))
    if kind in _PODS:
        yield from _pod(document, _PODS[kind])
    if kind == "Service" and document.get("spec", "type") in _PUBLIC:
        yield Finding(document.line("spec", "type"), f"type {document.get('spec', 'type')} publishes the service",
                      "ClusterIP, and kubectl port-forward")  # fmt: skip
    if kind == "Ingress":
        yield Finding(document.line("kind"), "an Ingress publishes what lies behind it", "kubectl port-forward")
    if kind == "Secret" and (document.get("data") or document.get("stringData")):
        yield Finding(document.line("kind"), "a Secret with its contents in the file", "kubectl create secret, by hand")
    if kind == "NetworkPolicy":
        yield from _network(document)
    if kind in ("Role", "ClusterRole"):
        for path, value in document.leaves("rules"):
            if value == "*":
                yield Finding(document.line(*path), f"{path[2]}: * grants everything", "list them")


def _within(kind: str) -> str:
    return "rayClusterSpec" if kind == "RayJob" else "rayClusterConfig"


def _ray(document: Document, path: tuple) -> Iterator[Finding]:
    if document.get(*path, "authOptions", "mode") != "token":
        yield Finding(document.line(*path, "authOptions", "mode"), "no token: whoever reaches a port runs code",
                      "authOptions: {mode: token}")  # fmt: skip
    if document.get(*path, "networkPolicy", "mode") not in ("DenyAll", "DenyAllIngress"):
        yield Finding(document.line(*path, "networkPolicy", "mode"), "every pod of the Kubernetes cluster may call in",
                      "networkPolicy: {mode: DenyAllIngress}")  # fmt: skip
    head = (*path, "headGroupSpec")
    for where in ((*head, "serviceType"), (*head, "headService", "spec", "type")):
        if document.get(*where) in _PUBLIC:
            yield Finding(document.line(*where), f"serviceType {document.get(*where)} publishes the dashboard",
                          "ClusterIP, and kubectl port-forward")  # fmt: skip
    if document.get(*head, "enableIngress"):
        yield Finding(document.line(*head, "enableIngress"), "enableIngress publishes the dashboard", "leave it out")
    if "template" in (document.get(*head) or {}):
        yield from _pod(document, (*head, "template", "spec"))
    for index, group in enumerate(document.get(*path, "workerGroupSpecs") or []):
        where = (*path, "workerGroupSpecs", index)
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        if least > most:
            yield Finding(document.line(*where, "minReplicas"), f"minReplicas={least} is more than maxReplicas={most}",
                          "raise the one or lower the other")  # fmt: skip
        yield from _pod(document, (*where, "template", "spec"))
    for where in ((*path, "autoscalerOptions", "image"),):
        if image := document.get(*where):
            yield from check_image(image, document.line(*where))
    submitter = ("spec", "submitterPodTemplate", "spec")
    if document.get(*submitter):
        yield from _pod(document, submitter)


def _pod(document: Document, path: tuple) -> Iterator[Finding]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if document.get(*path, key):
            yield Finding(document.line(*path, key), f"{key}: the pod leaves its box", "leave it out")
    root = document.get(*path, "securityContext", "runAsNonRoot")
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(document.get(*path, kind) or []):
            where, name = (*path, kind, index), container.get("name", kind)
            yield from check_image(str(container.get("image", "")), document.line(*where, "image"))
            context = container.get("securityContext") or {}
            line = document.line(*where, "securityContext")
            if not context.get("runAsNonRoot", root):
                yield Finding(line, f"{name} may run as root", "securityContext: {runAsNonRoot: true}")
            if context.get("allowPrivilegeEscalation", True) or context.get("privileged"):
                yield Finding(line, f"{name} may gain privileges", "securityContext: {allowPrivilegeEscalation: false}")
            for number, port in enumerate(container.get("ports") or []):
                if port.get("hostPort"):
                    yield Finding(document.line(*where, "ports", number, "hostPort"), f"{name} opens a port of its node",
                                  "leave hostPort out")  # fmt: skip


def _network(document: Document) -> Iterator[Finding]:
    for index, rule in enumerate(document.get("spec", "ingress") or []):
        where = ("spec", "ingress", index)
        if not (rule or {}).get("from"):
            yield Finding(
                document.line(*where), "an ingress rule without `from` lets everybody in", "from: [a podSelector]"
            )
        for number, peer in enumerate((rule or {}).get("from") or []):
            if peer.get("namespaceSelector") == {} and not peer.get("podSelector"):
                yield Finding(document.line(*where, "from", number), "every pod of every namespace may call in",
                              "name the namespace")  # fmt: skip
