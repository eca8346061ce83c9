"""IAM policies of AWS, custom roles of Google Cloud."""

from collections.abc import Iterator
from typing import Any

from cromss.clusterfiles.commands import check_piece
from cromss.clusterfiles.reading import Document, Finding

# Actions that AWS grants on "*" only; a condition narrows them all the same.
_READS_ONLY = ("ec2:Describe",)


def is_policy(value: Any) -> bool:
    return isinstance(value, dict) and ("Statement" in value or "includedPermissions" in value)


def check(document: Document) -> Iterator[Finding]:
    """Wildcards, and placeholders."""
    for _, piece in document.pieces():
        yield from check_piece(piece)
    for index, permission in enumerate(document.get("includedPermissions") or []):
        if "*" in str(permission) or "setIamPolicy" in str(permission):
            yield Finding(document.line("includedPermissions", index), f"{permission} grants far more than is needed",
                          "list the permissions used")  # fmt: skip
    statements = document.get("Statement") or []
    for index, statement in enumerate(statements if isinstance(statements, list) else [statements]):
        path = ("Statement", index) if isinstance(statements, list) else ("Statement",)
        if statement.get("Effect") == "Allow":
            yield from _statement(document, path, statement)


def _statement(document: Document, path: tuple, statement: dict[str, Any]) -> Iterator[Finding]:
    actions, resources = _listed(statement.get("Action")), _listed(statement.get("Resource"))
    for inverse in ("NotAction", "NotResource", "NotPrincipal"):
        if inverse in statement:
            yield Finding(document.line(*path, inverse), f"{inverse} allows everything else", "list what is allowed")
    for action in actions:
        if "*" in action:
            yield Finding(
                _place(document, (*path, "Action"), action), f"Action {action} is a wildcard", "list the actions used"
            )
    conditions = statement.get("Condition")
    for resource in resources:
        if resource == "*" and not (conditions and all(action.startswith(_READS_ONLY) for action in actions)):
            yield Finding(_place(document, (*path, "Resource"), resource), "Resource * is everything in the account",
                          "name the resource by its ARN; only ec2:Describe... may say *, under a Condition")  # fmt: skip
        elif resource.endswith(":instance/*") and not conditions:
            yield Finding(_place(document, (*path, "Resource"), resource), "any machine of the account, without a Condition",
                          "a Condition on its tag")  # fmt: skip
        elif resource.startswith("arn:aws:s3:::") and (resource.count("/") < 2 and resource.endswith("*")):
            yield Finding(_place(document, (*path, "Resource"), resource), "a whole bucket, or more", "BUCKET/PREFIX/*")
    if statement.get("Principal") in ("*", {"AWS": "*"}):
        yield Finding(document.line(*path, "Principal"), "Principal * is anybody", "name who may")


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [] if value is None else [str(value)]


def _place(document: Document, path: tuple, item: str) -> int:
    value = document.get(*path)
    return document.line(*path, value.index(item)) if isinstance(value, list) else document.line(*path)
