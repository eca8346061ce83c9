"""Turn a cloud's notice that it takes this machine back into a drained node of Ray.

Runs beside a node's raylet, on every spot machine: `python -m cromss.spot_watch`. Ray itself reads no notice. A drained
node gets no new work, and Ray Train tells its workers (`ray.train.get_preemption_info()`), which write a checkpoint and
leave before the machine does.

It lives as long as the machine: a metadata service or a GCS that is silent is waited for, SIGTERM ends it with status 0.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from cromss.cli import verb
from cromss.spot import node
from cromss.spot.clouds import ADDRESS, CLOUDS, Cloud, Notice, Silent, cloud_of, detect

_ATTEMPT = 15.0  # seconds for one attempt to reach the GCS; then the cloud is asked again
_ROUNDS = 3  # of questions to all clouds, at a boot that is quicker than its network
_STAYS = "; Ray takes no drain back: restart it on this machine, or let the autoscaler replace it"

Drain = Callable[[Notice, float], list[str]]


class Watch:
    """What is known of the event at hand. `look` asks the cloud once, and does what there is to be done."""

    def __init__(self, cloud: Cloud, drain: Drain, say: Callable[[str], None], does: str = "draining") -> None:
        self.cloud, self.drain, self.say, self.does = cloud, drain, say, does
        self.event: Notice | None = None
        self.pending = False  # the event drains, and the GCS has not heard of it yet
        self._complaint = self._failure = ""

    def look(self, wait: float = 0) -> None:
        """One question; `wait`: it may hang so many seconds where the cloud lets it."""
        self._update(self._asked(0 if self.pending else wait))
        if self.pending:
            self._attempt(self.event)

    def _asked(self, wait: float) -> Notice | None:
        try:
            notice = self.cloud.notice(wait)
        except Silent as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                self.say(f"{self.cloud.name}'s metadata service: {error}; asking on")
            return self.event  # no answer withdraws nothing
        if self._complaint:
            self._complaint = ""
            self.say(f"{self.cloud.name}'s metadata service answers again")
        return notice

    def _update(self, notice: Notice | None) -> None:
        if notice is None:
            if self.event is not None:
                drained = self.event.drains and not self.pending
                self.say(f"withdrawn: {self.event.message}{_STAYS if drained else ''}")
            self.event, self.pending = None, False
        elif self.event is None or notice.message != self.event.message:
            self.event, self.pending, self._failure = notice, notice.drains, ""
            self.say(f"{notice.message}{_left(notice)}{'' if notice.drains else '; told, not drained'}")

    def _attempt(self, event: Notice) -> None:
        left = _ATTEMPT if event.until is None else event.until - time.time()
        try:
            nodes = self.drain(event, min(_ATTEMPT, max(left, 5)))
        except ValueError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                self.say(f"not drained yet{_left(event)}: {error}; trying on")
            if event.until is not None and time.time() >= event.until:
                self.pending = False
                self.say(f"given up at the deadline: {error}")
            return
        self.pending = False
        self.say(f"{self.does} node {', '.join(name[:12] for name in nodes)}{_left(event)}")


def _left(notice: Notice) -> str:
    return "" if notice.until is None else f", {max(notice.until - time.time(), 0):.0f} s left"


def say(line: str) -> None:
    """One line of the log, with its time."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} spot_watch: {' '.join(line.split())}", flush=True)


def _found(kind: str, every: float, rounds: int, **options: Any) -> Cloud:
    if kind != "auto":
        return cloud_of(kind, **options)
    for last in range(rounds):
        if cloud := detect(**options):
            return cloud
        if last < rounds - 1:
            time.sleep(every)
    names = ", ".join(cloud.name for cloud in CLOUDS.values())
    raise ValueError(
        f"no cloud's metadata service answers here (asked: {names}); a machine of your own gets no notice; "
        f"otherwise name it: --cloud {'|'.join(CLOUDS)}"
    )


@verb
def main(argv: list[str] | None = None) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="cromss spot_watch",
        description=__doc__.splitlines()[0],
        epilog=f"{ADDRESS}=http://HOST:PORT asks a metadata service at another address than the clouds'.",
    )
    parser.add_argument("--cloud", choices=("auto", *CLOUDS), default="auto", help="whose notices (auto: who answers)")
    parser.add_argument("--every", type=float, default=5, metavar="S", help="seconds between two questions (5)")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="the GCS (default: what the raylet on this machine says)"
    )
    parser.add_argument("--node-id", metavar="HEX", help="one node (default: every raylet on this machine)")
    parser.add_argument("--rebalance", action="store_true", help="AWS: drain on a rebalance recommendation, too")
    parser.add_argument("--once", action="store_true", help="ask once; status 1 if the node could not be drained")
    parser.add_argument("--dry-run", action="store_true", help="say what would be drained, drain nothing")
    args = parser.parse_args(argv)
    if not args.every >= 0.1:
        raise ValueError(f"--every {args.every:g}: seconds, at least 0.1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    here = {"address": args.address, "node": args.node_id}

    def drain(notice: Notice, seconds: float) -> list[str]:
        if args.dry_run:
            return node.look(**here, seconds=seconds)
        return node.drain(notice.message, notice.until, **here, seconds=seconds)

    cloud = _found(args.cloud, args.every, 1 if args.once else _ROUNDS, rebalance=args.rebalance)
    watch = Watch(cloud, drain, say, "dry run, would drain" if args.dry_run else "draining")
    watch.look()
    if args.once:
        return int(watch.pending)
    if watch.event is None:
        _introduce(cloud, args.every, here)
    while True:
        began = time.monotonic()
        watch.look(wait=args.every)
        time.sleep(max(min(args.every, 2) if watch.pending else args.every - (time.monotonic() - began), 0.05))


def _introduce(cloud: Cloud, every: float, here: dict[str, Any]) -> None:
    """Better a wrong token is known now than in the last two minutes."""
    try:
        nodes = ", ".join(one[:12] for one in node.look(**here, seconds=_ATTEMPT))
        say(f"asking {cloud.name} every {every:g} s for node {nodes}")
    except ValueError as error:
        say(f"asking {cloud.name} every {every:g} s; a notice now would reach nobody: {error}")


if __name__ == "__main__":
    sys.exit(main())
