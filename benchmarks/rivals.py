"""gateway-provisioners and sshpyk, each in an environment of its own, with the measurements that we ask of ourselves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import _rival_environments as environments
from benchmarks._command import Scale, main
from benchmarks._numbers import Spread, ms, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import World

TITLE = "other provisioners, each against a local kernel of its own environment"
NAMES = ("distributed-provisioner", *environments.RIVALS)
PATIENCE = 900
"""Seconds for all measurements of one tool. Some of them block the event loop, so a time limit inside would not help."""


def prepare() -> None:
    """Install them, while there is a network."""
    for name in environments.RIVALS:
        environments.install(name)


async def measure(world: World, scale: Scale, report: Report) -> None:
    """Each in a process of its own, that makes hosts of its own: `world` only tells here whether hosts can be made."""
    rounds = scale.rounds(20, 3)
    asked, bursts, count = (int(scale.pick(*each)) for each in ((200, 20), (3, 1), (30, 6)))
    for name in NAMES:
        python = Path(sys.executable) if name not in environments.RIVALS else environments.python(name)
        if python is None:
            report.notes.append(f"{name}: not measured: {environments.why_not(name)}")
            continue
        print(f"  {name} …", flush=True)
        found = await asyncio.to_thread(run, python, name, rounds, asked, bursts, count)
        report.rows += rows(name, count, found)
        if "error" in found:
            report.notes.append(f"{name}: not measured to the end: {found['error']}")
        report.notes += [f"{name}: {note}" for note in found.get("notes", [])]


def run(python: Path, name: str, *amounts: int) -> dict[str, Any]:
    """What the worker found, or `error`."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "found.json")
        argv = [str(python), str(Path(__file__).with_name("_rival_worker.py")), name, str(out)]
        argv += map(str, amounts)
        # The environment's own programs first, as after `activate`; no options of whoever runs this.
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("GP_", "KERNEL_", "JUPYTER_"))
        }
        kept["PATH"] = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
        with subprocess.Popen(argv, env=kept, start_new_session=True) as worker:
            try:
                code = worker.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                return {"error": f"not done within {PATIENCE} s"}
            finally:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
        if not out.exists():
            return {"error": f"its process ended with status {code}; it says why above"}
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def rows(name: str, count: int, found: dict[str, Any]) -> list[Row]:
    result = []
    if found.get("launch"):
        ours, theirs = found["launch"], found["local"]
        detail = f"{ms(Spread.of(ours).median)}; local {ms(Spread.of(theirs).median)}"
        result.append(Row.spread(f"{name}: launch / local", paired_ratios(ours, theirs), TIMES, None, detail))
    pairs = found.get("bursts") or []
    if pairs:
        failures = [failure for pair in pairs for failure in pair["tool"]["failures"]]
        what, n = f"{name}: {count} at once", count * len(pairs)
        result.append(
            Row(f"{what}, failures", len(failures), "", n=n, detail="; ".join(sorted(set(failures))[:2]))
        )
        for kind, words in {"wall": "wall time", "stall": "longest stall"}.items():
            mine, theirs = ([pair[who][kind] for pair in pairs] for who in ("tool", "local"))
            detail = f"{ms(Spread.of(mine).median)}; local {ms(Spread.of(theirs).median)}"
            result.append(
                Row.spread(f"{what}, {words} / local", paired_ratios(mine, theirs), TIMES, None, detail)
            )
    if "left" in found:
        result.append(Row(f"{name}: processes left behind", found["left"], "", n=count * len(pairs)))
    for way, poll in (found.get("poll") or {}).items():
        spread = Spread.of(poll["seconds"])
        result += [
            Row.spread(f"{name}: poll(), {way}", spread, "µs", None, scale=1e6),
            Row(f"{name}: a living kernel called dead, {way}", poll["dead"], "", n=spread.n),
        ]
    return result


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
