"""Files for `ray up`: what they say, and what Ray would add where they are silent."""

import contextlib
import copy
import io
import logging
import re
from collections.abc import Iterator
from typing import Any

from cromss.clusterfiles.commands import check_image, check_keys, check_piece, check_starts
from cromss.clusterfiles.reading import Document, Finding

# key: what Ray does where it is missing, the way out
_SILENT = {
    "setup_commands": ("Ray installs a nightly wheel", "say how the project is installed, if only []"),
    "head_start_ray_commands": (
        "Ray starts a dashboard for every network, without a token",
        "write the ray start line",
    ),
    "worker_start_ray_commands": ("Ray starts workers without a token", "write the ray start line"),
}
_CLOUDS = ("aws", "gcp", "azure")


def is_ray_up(value: Any) -> bool:
    return isinstance(value, dict) and bool({"cluster_name", "provider", "available_node_types"} & set(value))


def check(document: Document) -> Iterator[Finding]:
    """Everything that is wrong with a file for `ray up`."""
    for _, piece in document.pieces():
        yield from check_piece(piece)
    yield from check_keys(document)
    yield from _schema(document)
    for where in ("head_start_ray_commands", "worker_start_ray_commands"):
        for _, piece in document.pieces(where):
            yield from check_starts(piece)
    cloud = document.get("provider", "type")
    if cloud in _CLOUDS:
        for key, (then, way) in _SILENT.items():
            if document.get(key) is None:
                yield Finding(document.line(), f"{key} is missing: {then}", way)
        if cloud in ("aws", "gcp") and document.get("head_setup_commands") is None:
            yield Finding(
                document.line(), "head_setup_commands is missing: Ray installs the cloud's client unpinned",
                "head_setup_commands: []",
            )  # fmt: skip
    for key in ("image", "head_image", "worker_image"):
        if image := document.get("docker", key):
            yield from check_image(image, document.line("docker", key))
    yield from _types(document)
    if cloud == "aws":
        yield from _aws(document)
    if cloud == "gcp":
        yield from _gcp(document)


def _schema(document: Document) -> Iterator[Finding]:
    """Ray's own opinion. It reads more leniently than it sounds: the contents of a node_config it passes on as they are."""
    try:
        import jsonschema
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError:
        raise ValueError("Ray is not installed here, and its schema is part of the check: pip install cromss") from None
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what it tells on the way
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(document.value)))
    except jsonschema.ValidationError as error:
        path = tuple(error.absolute_path)
        unknown = re.search(r"\('(\w+)' (?:was|were) unexpected", error.message)
        if unknown and (*path, unknown[1]) in document.lines:
            path = (*path, unknown[1])
        yield Finding(
            document.line(*path), f"Ray refuses it: {error.message[:200]}", "see Ray's cluster YAML reference"
        )
    except Exception as error:
        yield Finding(
            document.line(), f"Ray refuses it: {type(error).__name__}: {error}", "see Ray's cluster YAML reference"
        )
    finally:
        logging.disable(before)


def _types(document: Document) -> Iterator[Finding]:
    types = document.get("available_node_types") or {}
    most = document.get("max_workers")
    for name, kind in types.items() if isinstance(types, dict) else ():
        if not isinstance(kind, dict):
            continue
        least, highest = kind.get("min_workers", 0), kind.get("max_workers", most)
        if isinstance(least, int) and isinstance(highest, int) and least > highest:
            line = document.line("available_node_types", name, "min_workers")
            yield Finding(
                line,
                f"{name}: min_workers={least} is more than max_workers={highest}",
                "raise the one or lower the other",
            )
        if image := document.get("available_node_types", name, "docker", "worker_image"):
            yield from check_image(image, document.line("available_node_types", name, "docker", "worker_image"))


def _configs(document: Document) -> Iterator[tuple[str, tuple, dict]]:
    types = document.get("available_node_types") or {}
    for name in types if isinstance(types, dict) else ():
        config = document.get("available_node_types", name, "node_config")
        if isinstance(config, dict):
            yield name, ("available_node_types", name, "node_config"), config


def _aws(document: Document) -> Iterator[Finding]:
    if document.get("provider", "cache_stopped_nodes") is not False:
        line = document.line("provider", "cache_stopped_nodes")
        yield Finding(line, "stopped nodes are kept and their volumes paid for", "cache_stopped_nodes: false")
    for name, path, config in _configs(document):
        line, interfaces = document.line(*path), config.get("NetworkInterfaces") or [{}]
        if not config.get("SecurityGroupIds") and not all(one.get("Groups") for one in interfaces):
            yield Finding(line, f"{name} has no SecurityGroupIds: Ray makes a group with port 22 open to the world",
                          "SecurityGroupIds: [a group of your own]")  # fmt: skip
        profile = config.get("IamInstanceProfile") or {}
        if not (profile.get("Name") or profile.get("Arn")):
            yield Finding(line, f"{name} has no IamInstanceProfile: a head gets all of EC2 and S3, a worker no bucket",
                          "IamInstanceProfile: {Name: a role of its own}")  # fmt: skip
        if (config.get("MetadataOptions") or {}).get("HttpTokens") != "required":
            where = document.line(*path, "MetadataOptions")
            yield Finding(where, f"{name}: its credentials can be read by a forged request (IMDSv1)",
                          "MetadataOptions: {HttpTokens: required}")  # fmt: skip
        image = str(config.get("ImageId", ""))
        if not image.startswith(("ami-", "REPLACE_")):
            yield Finding(document.line(*path, "ImageId"), f"{name}: ImageId is not pinned: Ray boots an Ubuntu of 2018",
                          "ImageId: ami-...")  # fmt: skip


def _gcp(document: Document) -> Iterator[Finding]:
    for name, path, config in _configs(document):
        line = document.line(*path)
        if not config.get("serviceAccounts"):
            yield Finding(line, f"{name} has no serviceAccounts: Ray gives its head all machines and buckets of the project",
                          "serviceAccounts: [an account of its own]")  # fmt: skip
        interfaces = config.get("networkInterfaces") or []
        if not interfaces:
            yield Finding(line, f"{name} has no networkInterfaces: Ray takes the first network there is, with a public address",
                          "networkInterfaces: [{subnetwork: ...}]")  # fmt: skip
        for index, one in enumerate(interfaces):
            if isinstance(one, dict) and one.get("accessConfigs"):
                yield Finding(document.line(*path, "networkInterfaces", index, "accessConfigs"),
                              f"{name} has a public address", "leave accessConfigs out and go through IAP")  # fmt: skip
        for index, disk in enumerate(config.get("disks") or []):
            image = str((disk.get("initializeParams") or {}).get("sourceImage", ""))
            if "/family/" in image:
                where = document.line(*path, "disks", index, "initializeParams", "sourceImage")
                yield Finding(
                    where, f"{name}: {image} is whatever is newest that day", "projects/.../global/images/NAME"
                )
