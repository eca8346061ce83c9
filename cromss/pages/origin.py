"""Where the numbers come from: commands, stores, versions, configurations, and how to get one of them again."""

from collections import Counter
from typing import Any

from cromss import provenance
from cromss.pages.run import Run


def origin(run: Run) -> dict[str, Any]:
    import yaml

    trial = run.best.trials[0] if run.best else run.trials[0]
    one = trial.get("provenance") or {}
    facts = {
        "run folder": str(run.folder.resolve()),
        "command": run.sweep.get("command") or trial["command"],
        "repeat one trial": f"python -m cromss.report --reproduce {run.folder.resolve()}"
        + (f"/trials/{trial['key']}" if run.sweep else ""),
        "begun": run.sweep.get("created", ""),
        "budget": run.sweep.get("budget", ""),
        "spent": run.sweep.get("spent", ""),
        "pretraining store": run.sweep.get("store_digest") or one.get("store_digest", ""),
        "downstream store": run.sweep.get("downstream_digest") or one.get("downstream_digest", ""),
        "git revision": _said(run, lambda found: provenance.revision(found)),
        "versions": _said(run, _versions),
        "device": _said(run, lambda found: found.get("host", "")),
    }
    if (seen := run.sweep.get("overlap", {})).get("shared"):
        facts["test tiles on pretraining tiles"] = f"{seen['shared']} of {seen['tiles']}"
    lost = run.sweep.get("quarantined") or (trial.get("pretraining") or {}).get("quarantined") or []
    if lost:
        patches, names = sum(one["patches"] for one in lost), ", ".join(one["shard"] for one in lost)
        facts["quarantined"] = f"{patches:,} patches in {len(lost)} damaged shards were left out: {names}"
    title = f"{run.best.name if run.best else trial['arm']}, seed {trial['seed']}"
    config = yaml.safe_dump(trial["config"], sort_keys=False, width=100) if trial["config"] else ""
    return {"facts": {key: value for key, value in facts.items() if value}, "title": title, "config": config}


def _said(run: Run, about: Any) -> str:
    """What all trials say of themselves, with how many where they differ."""
    found = Counter(about(trial["provenance"]) for trial in run.trials if trial.get("provenance"))
    del found[""]
    if len(found) < 2:
        return "".join(found)
    return "; ".join(f"{what} ({count} trials)" for what, count in found.most_common()) + ": the trials differ"


def _versions(found: dict[str, Any]) -> str:
    packages = found.get("packages") or {}
    return ", ".join(
        [f"Python {found.get('python', '?')}", *(f"{name} {version}" for name, version in packages.items())]
    )
