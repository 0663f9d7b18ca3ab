"""Many kernels on many hosts, in simulation: what one server can have, and what each kernel and host costs it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._numbers import line_through
from benchmarks._report import TIMES, Report, Row
from benchmarks._scale_server import AT_ONCE, CONNECTED, SPEC, Found
from benchmarks._world import OURS, USER, World, stanza

TITLE = "up to 1,000 kernels on 100 hosts, with stub kernels and hosts within one process"
NEEDS_HOSTS = False
SIZES = ((100, 10), (200, 20), (300, 30), (500, 50), (700, 70), (1000, 100))
QUICK_SIZES = ((30, 3), (60, 6), (120, 12))
LINEAR = 1.25
"""What a kernel may cost at the largest size, as a multiple of what it costs at the smallest."""
CHOICE = 100.0
"""Microseconds in which a host is chosen."""
PATIENCE = 1200.0


async def measure(world: World | None, scale: Scale, report: Report) -> None:
    sizes = QUICK_SIZES if scale.quick else SIZES
    found = []
    for kernels, hosts in sizes:
        found.append(one_size(kernels, hosts, scale.pick(15, 3)))
        print(f"  {told(found[-1])}", flush=True)
    report.series = [point(each) for each in found]
    report.rows += rows(found)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    report.notes += [
        *(told(each) + "." for each in found),
        f"The limit of open files was {soft}. A host's SSH server, listener, relays and kernels are stubs in a process of their own.",
    ]


def one_size(kernels: int, hosts: int, idle: float) -> Found:
    """Measure it in processes of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="dpb-", dir=memory()) as name,
        stub_hosts(hosts, Path(name) / "home") as ports,
    ):
        environment = environment_in(Path(name), ports)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._scale_server", str(kernels), json.dumps(ports), str(idle)],
            env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, timeout=PATIENCE, check=True,
        )  # fmt: skip
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def memory() -> str | None:
    """A file system in memory, if there is one: on a disk, what earlier sizes have removed makes ext4 slow to create files."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextmanager
def stub_hosts(count: int, home: Path) -> Iterator[list[int]]:
    """Hosts in a process of their own; gives their ports. `home` is made, with what a client needs."""
    command = [sys.executable, "-m", "benchmarks._stub_hosts", str(count), str(home)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            ports: list[int] = json.loads(process.stdout.readline())["ports"]
            yield ports
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
            process.kill()


def environment_in(directory: Path, ports: Sequence[int]) -> dict[str, str]:
    """A clean environment with a HOME and Jupyter's directories below `directory`, and the kernelspec in it."""
    clutter = tuple(name for name in OURS if name != "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(clutter)}
    environment |= {"HOME": str(directory / "home"), "KERNEL_USERNAME": USER}
    environment["TMPDIR"] = str(directory)
    for name in ("CONFIG", "DATA", "RUNTIME"):
        (directory / name.lower()).mkdir(mode=0o700)
        environment[f"JUPYTER_{name}_DIR"] = str(directory / name.lower())
    spec = directory / "data" / "kernels" / SPEC
    spec.mkdir(parents=True)
    (spec / "stub.py").write_text("# Nobody runs this: the hosts are stubs.\n")
    hosts = [f"127.0.0.1:{port}" for port in ports]
    argv = ["python", str(spec / "stub.py"), "{connection_file}"]
    kernel = {"argv": argv, "display_name": SPEC, "language": "python", "interrupt_mode": "signal"}
    metadata = stanza(hosts, kernel_transport="ipc", connect_timeout=120)
    (spec / "kernel.json").write_text(json.dumps({**kernel, "metadata": metadata}))
    return environment


def point(found: Found) -> dict[str, float]:
    """One size as figures for the plot and the fit."""
    return {
        "kernels": found.kernels,
        "hosts": found.hosts,
        "launches per second": found.kernels / found.launch,
        "CPU per launch, ms": found.launch_cpu / found.kernels * 1e3,
        "CPU per host connected, ms": found.connect_cpu / found.hosts * 1e3,
        "memory, MB": found.memory["launched"] / 1e6,
        "memory per kernel, kB": (found.memory["launched"] - found.memory["connected"]) / found.kernels / 1e3,
        "memory per host, kB": (found.memory["connected"] - found.memory["nothing"]) / found.hosts / 1e3,
        "launching, s": found.launch,
        "launching, s of CPU": found.launch_cpu,
        "ending, s of CPU": found.end_cpu,
        "idle, % of a core": found.idle_share,
        "stall of the caller's loop, ms": found.stall * 1e3,
        "stall of the I/O loop, ms": found.io_stall * 1e3,
        "round-robin, µs": found.reserve["round-robin"] * 1e6,
        "least-connection, µs": found.reserve["least-connection"] * 1e6,
        "open files": found.handles["launched"],
    }


def rows(found: Sequence[Found]) -> list[Row]:
    """Slopes over all sizes, and the largest one's own figures."""
    points, first, last = [point(each) for each in found], found[0], found[-1]
    size = f"{last.kernels} on {last.hosts}"

    def ratio(what: str, name: str, budget: float | None = LINEAR) -> Row:
        small, large = points[0][name], points[-1][name]
        detail = f"{large:.3g} against {small:.3g} with {first.kernels} on {first.hosts}"
        return Row(
            f"{what}, {size} / {first.kernels} on {first.hosts}", large / small, TIMES, budget, detail=detail
        )

    def slope(what: str, x: str, y: Sequence[float], unit: str, scale: float) -> Row:
        fit = line_through([each[x] for each in points], y)
        return Row(
            what, fit.slope * scale, unit, n=len(points), detail=f"slope over all sizes, R² {fit.r2:.4f}"
        )

    def memory(stage: str, before: str) -> list[float]:
        return [each.memory[stage] - each.memory[before] for each in found]

    def handles(stage: str, before: str) -> list[float]:
        return [each.handles[stage] - each.handles[before] for each in found]

    notebooks = handles("notebooks", "launched")[-1] / min(CONNECTED, last.kernels)
    idle = [each["idle, % of a core"] for each in points]
    caller, io = "longest stall of the caller's loop", "longest stall of the I/O loop"
    left = (last.memory["ended"] - last.memory["connected"]) / last.kernels / 1e3
    return [
        Row(
            "failures",
            sum(len(each.failures) for each in found),
            "",
            0,
            n=sum(each.kernels for each in found),
            detail="; ".join(sorted({text[:120] for each in found for text in each.failures})[:3]),
        ),
        Row(
            f"launches per second, {size}",
            points[-1]["launches per second"],
            "/s",
            detail=f"{last.launch:.1f} s; the server's CPU {last.launch_cpu:.1f} s",
        ),
        slope("CPU for each launch", "kernels", [each.launch_cpu for each in found], "ms", 1e3),
        ratio("CPU for a launch", "CPU per launch, ms"),
        slope("CPU for each shutdown", "kernels", [each.end_cpu for each in found], "ms", 1e3),
        slope("CPU for each host connected", "hosts", [each.connect_cpu for each in found], "ms", 1e3),
        ratio("CPU for connecting a host", "CPU per host connected, ms", None),
        slope("memory for each kernel", "kernels", memory("launched", "connected"), "kB", 1e-3),
        slope("memory for each host", "hosts", memory("connected", "nothing"), "kB", 1e-3),
        Row("memory in all", points[-1]["memory, MB"], "MB", detail=f"{last.memory['nothing'] / 1e6:.0f} MB without"),
        slope("idle, for 100 kernels on 10 hosts", "kernels", idle, "% of a core", 100),
        *(Row(f"choosing a host, {policy}", points[-1][f"{policy}, µs"], "µs", CHOICE, detail=f"of {last.hosts}")
          for policy in last.reserve),
        Row(caller, last.stall * 1e3, "ms", detail=f"{size}; {AT_ONCE} launches, or shutdowns, under way at once"),
        Row(io, last.io_stall * 1e3, "ms", detail=f"of which Python's longest collection of garbage {last.collection * 1e3:.0f} ms"),
        slope("open files for each kernel", "kernels", handles("launched", "connected"), "", 1),
        slope("open files for each host", "hosts", handles("connected", "nothing"), "", 1),
        Row("open files for each open notebook", notebooks, "", detail="four sockets, both ends of each"),
        Row("threads", last.threads, "", detail=size),
        Row("memory that is left when all have ended", left, "kB a kernel", detail=f"{size}; Python keeps it for the next ones"),
        Row("open files that are left", last.handles["ended"] - last.handles["connected"], "", detail=size),
    ]  # fmt: skip


def told(found: Found) -> str:
    """A size in a line."""
    p: dict[str, Any] = point(found)
    return (
        f"{found.kernels} kernels on {found.hosts} hosts: {found.launch:.1f} s to launch ({p['launches per second']:.0f}/s, "
        f"{p['CPU per launch, ms']:.1f} ms of CPU each), {p['memory, MB']:.0f} MB, {found.answers:.1f} s for an answer of each, "
        f"{found.end:.1f} s to end, idle {found.idle_share:.1f} % of a core, {p['open files']:.0f} open files"
        + (f"; {len(found.failures)} failures" if found.failures else "")
    )


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
