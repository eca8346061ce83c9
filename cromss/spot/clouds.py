"""What a cloud says about the end of the machine that asks: one class a cloud, each asks its metadata service.

| cloud | asked | warns |
|---|---|---|
| AWS | `spot/instance-action` (a rebalance recommendation is told, or acted upon where asked for) | 120 s |
| Google | `instance/preempted`, `instance/maintenance-event` | 30 s; 60 s, with GPUs up to an hour |
| Azure | `scheduledevents` that name this machine | 30 s (Preempt), minutes (others) |

The services listen on a link-local address that only the machine itself reaches. `CROMSS_METADATA` names another one, for
tests.
"""

import contextlib
import datetime
import email.utils
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

ADDRESS = "CROMSS_METADATA"
_MOST = 1 << 16  # bytes of an answer that are read
_SECONDS = 2.0  # for an answer; the service sits in the hypervisor and takes milliseconds


class Silent(OSError):
    """The metadata service does not answer, or not as its cloud does."""


@dataclass(frozen=True)
class Notice:
    """What a cloud announced. `until` is when the machine goes, in seconds since 1970; None where nobody says.

    Two notices are the same event when they read the same. `drains`: the node is to be left, not only talked about.
    """

    message: str
    until: float | None = None
    drains: bool = True


@dataclass(frozen=True)
class Aws:
    """EC2. Tokens first (IMDSv2): machines of ours refuse questions without one."""

    kind: ClassVar[Literal["aws"]] = "aws"
    name: ClassVar[str] = "AWS"
    rebalance: bool = False

    def answers(self) -> bool:
        return bool(self._token())

    def notice(self, wait: float = 0) -> Notice | None:
        token = {"X-aws-ec2-metadata-token": self._token()}
        if said := _json("/latest/meta-data/spot/instance-action", token, "action"):
            until = _when(said.get("time")) or time.time() + 120
            return Notice(f"AWS takes this spot instance back ({said['action']}) at {said.get('time')}", until)
        if said := _json("/latest/meta-data/events/recommendations/rebalance", token, "noticeTime"):
            risk = f"AWS recommends to leave this spot instance since {said['noticeTime']}: it may be taken soon"
            return Notice(risk, drains=self.rebalance)
        return None

    def _token(self) -> str:
        life = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        return _ask("/latest/api/token", life, method="PUT", missing=False)


@dataclass(frozen=True)
class Gcp:
    """Compute Engine. `wait`: the question hangs until the answer changes, so that a notice is known at once."""

    kind: ClassVar[Literal["gcp"]] = "gcp"
    name: ClassVar[str] = "Google Cloud"

    def answers(self) -> bool:
        return bool(self._value("id"))

    def notice(self, wait: float = 0) -> Notice | None:
        hanging = f"?wait_for_change=true&timeout_sec={int(wait)}" if wait >= 1 else ""
        if self._value(f"preempted{hanging}", _SECONDS + wait) == "TRUE":
            return Notice("Google Cloud takes this spot machine back", time.time() + 30)
        if self._value("maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE":
            return Notice("Google Cloud stops this machine for host maintenance", time.time() + 60)
        return None

    def _value(self, what: str, seconds: float = _SECONDS) -> str:
        return _ask(f"/computeMetadata/v1/instance/{what}", {"Metadata-Flavor": "Google"}, seconds).strip()


@dataclass(frozen=True)
class Azure:
    """Azure. The list is that of a whole scale set; a machine looks for its own name in it."""

    kind: ClassVar[Literal["azure"]] = "azure"
    name: ClassVar[str] = "Azure"
    takes_away: ClassVar[tuple[str, ...]] = ("Preempt", "Terminate", "Redeploy", "Reboot")

    def answers(self) -> bool:
        return bool(self._name())

    def notice(self, wait: float = 0) -> Notice | None:
        said = _json("/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
        events = [event for event in _list(said.get("Events")) if isinstance(event, dict)]
        coming = [event for event in events if event.get("EventType") in self.takes_away]
        if not coming:
            return None
        name = self._name().lower()
        mine = [event for event in coming if name in map(str.lower, map(str, _list(event.get("Resources"))))]
        # NotBefore is empty once an event has begun.
        return min((self._read(event) for event in mine), key=lambda notice: notice.until or 0, default=None)

    def _read(self, event: Mapping[str, Any]) -> Notice:
        until = _when(event.get("NotBefore")) or time.time()
        return Notice(f"Azure announces {event.get('EventType')} for this machine ({event.get('EventId')})", until)

    def _name(self) -> str:
        asked = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        return _ask(asked, {"Metadata": "true"}, missing=False).strip()


Cloud = Aws | Gcp | Azure
CLOUDS: dict[str, type[Cloud]] = {cloud.kind: cloud for cloud in (Aws, Gcp, Azure)}


def detect(**options: Any) -> Cloud | None:
    """The cloud whose metadata service answers here, asked one after the other; None where none does."""
    for kind in CLOUDS:
        with contextlib.suppress(Silent):
            if (cloud := cloud_of(kind, **options)).answers():
                return cloud
    return None


def cloud_of(kind: str, *, rebalance: bool = False) -> Cloud:
    """The cloud of that name."""
    return Aws(rebalance) if kind == "aws" else CLOUDS[kind]()


# --- questions ----------------------------------------------------------------------------------------------------------


class _Still(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Stay: a metadata service sends nobody elsewhere."""


# Never through a proxy, whatever the environment says: it would answer for its own machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Still)


def _ask(
    path: str, headers: Mapping[str, str], seconds: float = _SECONDS, method: str = "GET", missing: bool = True
) -> str:
    """The answer's text; nothing where there is no such thing (404) and that is an answer. Raises Silent."""
    address = os.environ.get(ADDRESS, "http://169.254.169.254").rstrip("/")
    request = urllib.request.Request(address + path, headers=dict(headers), method=method)
    try:
        with _OPENER.open(request, timeout=seconds) as answer:
            return answer.read(_MOST).decode()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404 and missing:
            return ""
        raise Silent(f"{path.partition('?')[0]}: HTTP {error.code}") from None
    except (OSError, ValueError) as error:  # no route, refused, too slow, no text
        raise Silent(f"{path.partition('?')[0]}: {getattr(error, 'reason', error)}") from None


def _json(path: str, headers: Mapping[str, str], key: str = "") -> dict[str, Any]:
    """The object that is there, with that key in it; empty where there is none."""
    if not (text := _ask(path, headers)):
        return {}
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or (key and key not in said):
        raise Silent(f"{path.partition('?')[0]}: not the JSON that is expected, {text[:40]!r}")
    return said


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _when(text: Any) -> float | None:
    """Seconds since 1970 of `2026-09-18T08:22:00Z` or `Mon, 19 Sep 2026 18:29:47 GMT`; None for anything else."""
    if not isinstance(text, str):
        return None
    for read in (datetime.datetime.fromisoformat, email.utils.parsedate_to_datetime):
        with contextlib.suppress(ValueError, OverflowError):
            moment = read(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    return None
