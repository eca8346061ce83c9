"""What a sweep costs by itself: overhead a trial beyond Ray's own, time and memory of the driver, idle devices."""

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

EACH = 8  # trials of a sweep are a multiple of it
PARTS = ("instant", "real")
RUN, SECONDS = "run", ("plan", "announce", "run", "rank, report, track")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench sweep`."""
    parser.add_argument("--trials", type=int, default=1000, help="instant trials of the largest sweep (default: 1000)")
    parser.add_argument("--skip", choices=PARTS, help="leave out the instant trials, or the real ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw time and memory against trials there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    counts = sizes(options.trials)
    from cromss.ray_session import connect

    connect()
    with tempfile.TemporaryDirectory(prefix="cromss-bench-") as folder:
        found = measure(counts, Path(folder), set(PARTS) - {options.skip})
    print(report(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.png and "instant" in found:
        draw(found, options.png)
    return 0


def sizes(trials: int) -> list[int]:
    """A tenth, three tenths and all of `trials`, as multiples of EACH. Raises ValueError for too few or an odd count."""
    if trials < EACH or trials % EACH:
        raise ValueError(
            f"--trials {trials}: must be a multiple of {EACH}: two arms, four seeds, so many learning rates"
        )
    return sorted({max(EACH, round(trials * share / EACH) * EACH) for share in (0.1, 0.3, 1)})


def measure(counts: list[int], folder: Path, parts: set[str]) -> dict[str, Any]:
    """All numbers, as plain values. Ray must be connected; each sweep has a driver, that is a process, of its own."""
    import ray

    total = ray.cluster_resources()
    found: dict[str, Any] = {"cpus": total.get("CPU", 0), "gpus": total.get("GPU", 0), "load": os.getloadavg()[0]}
    address = ray.get_runtime_context().gcs_address
    if "instant" in parts:
        found["instant"] = {"trials": counts, "ours": [], "bare": []}
        for trials in counts:
            for kind in ("bare", "ours"):
                print(f"{trials} {'trials of bare Tune' if kind == 'bare' else 'instant trials'} ...", flush=True)
                found["instant"][kind].append(_in_a_process(kind, address, folder, trials))
    if "real" in parts:
        print("a small real sweep ...", flush=True)
        found["real"] = _in_a_process("real", address, folder, 0)
    return found


def _in_a_process(kind: str, address: str, folder: Path, trials: int) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_driver, kind, address, folder, trials).result()


def _driver(kind: str, address: str, folder: Path, trials: int) -> dict[str, Any]:
    """One sweep in a fresh process; what it prints about its trials is not shown."""
    os.environ["RAY_ADDRESS"] = address
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # nobody's server is for measuring
    from cromss.benchmarks import idle, instant
    from cromss.data.synthetic import SyntheticEarth
    from cromss.ray_session import connect
    from cromss.trials.worlds import synthetic_stores

    out = folder / f"{kind}-{trials}"
    out.mkdir()
    with contextlib.redirect_stdout(Path(os.devnull).open("w")):
        connect()
        logging.getLogger("ray").setLevel(logging.WARNING)
        if kind == "bare":
            return instant.bare(trials, out)
        if kind == "real":
            data, downstream = synthetic_stores(folder / "worlds", idle.EARTH)
            return idle.real(str(data), str(downstream), out)
        earth = SyntheticEarth(places=28, size=32, train=16, test=8)
        data, downstream = synthetic_stores(folder / "small worlds", earth)
        return instant.ours(trials, str(data), str(downstream), out)


def beyond(found: dict[str, Any], place: int) -> tuple[float, float]:
    """Seconds a trial of ours beyond Ray's own in the run itself, and with all that is before and after it."""
    instant = found["instant"]
    ours, bare, trials = instant["ours"][place], instant["bare"][place]["run"], instant["trials"][place]
    return (ours["run"] - bare) / trials, (sum(ours[part] for part in SECONDS) - bare) / trials


def growth(found: dict[str, Any]) -> dict[str, float]:
    """Exponents: cost ~ trials ** exponent, by the straight line through the logarithms. Empty for one size."""
    from cromss.benchmarks.scaling_law import power

    instant = found["instant"]
    if len(trials := instant["trials"]) < 2:
        return {}
    ours, bare = instant["ours"], instant["bare"]
    series = {part: [one[part] for one in ours] for part in ("plan", "run", "rank, report, track")}
    series["driver's memory"] = [max(one["peak MiB"] - one["before MiB"], 1.0) for one in ours]
    series["bare Tune's run"] = [one["run"] for one in bare]
    return {name: power(trials, values).exponent for name, values in series.items()}


def margin(found: dict[str, Any]) -> dict[str, float]:
    """What each trial adds between the two largest sweeps: milliseconds, and KiB of memory. Empty for one size."""
    instant = found["instant"]
    if len(trials := instant["trials"]) < 2:
        return {}
    (small, large), added = instant["ours"][-2:], trials[-1] - trials[-2]
    cost = {part: 1e3 * (large[part] - small[part]) / added for part in ("plan", "run", "rank, report, track")}
    cost["bare Tune's run"] = 1e3 * (instant["bare"][-1]["run"] - instant["bare"][-2]["run"]) / added
    return cost | {"memory": 1024 * (large["peak MiB"] - small["peak MiB"]) / added}


def report(found: dict[str, Any]) -> str:
    """The numbers as lines for people."""
    lines = [f"{found['cpus']:g} CPUs, {found['gpus']:g} GPUs, load at the start {found['load']:.1f}"]
    if instant := found.get("instant"):
        lines += [
            "",
            f"{'instant trials':>14} {'plan':>8} {'announce':>9} {'run':>9} {'rank, report, track':>20} {'bare Tune':>10} "
            f"{'beyond it, a trial':>19} {'with all':>9} {'memory':>8} {'above start':>12} {'(bare)':>9}",
        ]
        for place, trials in enumerate(instant["trials"]):
            ours, bare = instant["ours"][place], instant["bare"][place]
            own, whole = beyond(found, place)
            lines.append(
                f"{trials:14,} {ours['plan']:6.1f} s {ours['announce']:7.1f} s {ours['run']:7.1f} s "
                f"{ours['rank, report, track']:18.1f} s {bare['run']:8.1f} s {own:17.3f} s {whole:7.3f} s "
                f"{ours['peak MiB']:4.0f} MiB {ours['peak MiB'] - ours['before MiB']:8.0f} MiB "
                f"{bare['peak MiB'] - bare['before MiB']:5.0f} MiB"
            )
        if exponents := growth(found):
            said = ", ".join(f"{name} ~ trials^{exponent:.2f}" for name, exponent in exponents.items())
            lines += ["", f"growth: {said}"]
            each = [f"{name} {cost:.1f} {'KiB' if name == 'memory' else 'ms'}" for name, cost in margin(found).items()]
            lines.append(f"one more trial: {', '.join(each)}")
        lines.append(
            "memory: highest resident memory of the driver; announce: stores drawn, once; with all: every column"
        )
    if real := found.get("real"):
        from cromss.benchmarks.idle import PARTS as MEANINGS
        from cromss.benchmarks.idle import WORK

        whole = sum(real["parts"].values())
        lines += ["", f"{real['trials']} real trials, {real['concurrent']} at a time, {real['devices']:g} device(s) each; "
                      f"{real['wall']:.0f} s from the first to the last, load {real['load']:.1f}"]  # fmt: skip
        for name, seconds in real["parts"].items():
            mark = "" if name in WORK else "  idle"
            lines.append(f"{name:>31} {seconds:7.2f} s {seconds / whole:6.1%}{mark:6}  {MEANINGS[name]}")
        lines.append(
            f"devices idle: {real['idle of held']:.1%} of the time that trials held them, {real['idle of cluster']:.1%} of "
            f"all that could have been held"
        )
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Time and memory against the number of trials."""
    import matplotlib
    from matplotlib.figure import Figure

    from cromss.plot import FAINT, PALETTE, STYLE

    instant = found["instant"]
    x, ours, bare = instant["trials"], instant["ours"], instant["bare"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        time, memory = figure.subplots(1, 2)
        for colour, part in zip(PALETTE, ("run", "rank, report, track", "plan"), strict=False):
            time.plot(x, [one[part] for one in ours], "o-", color=colour, label=part)
        time.plot(x, [one["run"] for one in bare], "o--", color=FAINT, label="bare Ray Tune, run")
        time.set(xscale="log", yscale="log", xlabel="instant trials", ylabel="seconds", title="Time of the driver")
        time.legend()
        for colour, series, label in ((PALETTE[0], ours, "a sweep"), (FAINT, bare, "bare Ray Tune")):
            memory.plot(x, [one["peak MiB"] for one in series], "o-", color=colour, label=label)
        memory.set(xscale="log", xlabel="instant trials", ylabel="MiB, at the highest", title="Memory of the driver")
        memory.set_ylim(bottom=0)
        memory.legend()
        for axes in (time, memory):
            axes.set_xticks(x, [f"{trials:,}" for trials in x])
            axes.minorticks_off()
            axes.grid(True)
        figure.savefig(path, dpi=130)
