"""`make bench`: how fast, as ratios of two things measured in turn in one run. Writes build/bench.json.

`make bench BENCH=P2,P5` runs some. Each ratio is taken of a pair measured one after the other; the table shows the
median and the extremes of at least seven pairs.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.extend((str(HERE.parent), str(HERE.parent / "functional"), str(HERE)))

import daemons
import devsite
import transfers
from bases import base_of
from people import user
from slurmsite import slurm_site
from stage import Bare, Bench, Ended, Held, peak_mib

PAIRS = int(os.environ.get("PAIRS", "7"))
TARGETS = {
    "P1": (1.15, "prologue to the job's first line / bare create of the same XML to its first ssh answer"),
    "P1-debian12": (1.15, "the same with debian12"),
    "P2": (0.3, "hook of a job without VM / python3 -I -S -c pass"),
    "P5-first": (1.2, "remoteshell running `true`, first call / plain ssh, connection not shared"),
    "P5-later": (0.4, "the same, later calls"),
    "P6": (1.3, "4 prologues at once over 1 / 4 bare guests at once over 1"),
    "P7": (1.05, "prologue with a base of 100 GiB / of 1 GiB"),
    "P8": (1.2, "epilogue / virsh destroy"),
    "P8-stopped": (0.3, "the same where QEMU is stopped (SIGSTOP)"),
    "P10": (48.0, "peak memory of the hungriest hook process, MiB"),
    "P9": (0.8, "at least: speed of an import (loopback HTTP, hash, store, fsync) / of sha512sum alone"),
    "P9-memory": (1.05, "peak memory of an import of 10 GiB / of 10 MiB"),
    "P11": (1.0, "16 jobs wait for one image: seconds from its being there to the last one's start"),
    "P11-gets": (1, "what the server was asked meanwhile"),
}
Rows = dict[str, list[float]]


def first_line(held: Held, request: str) -> float:
    """Seconds from the prologue's start to the job's first line."""
    began = time.monotonic()
    Ended(held.hook("prolog", request), began)
    shell = held.remoteshell("/bin/sh", "-c", "echo line")
    assert shell.stdout is not None and shell.stdout.readline() == b"line\n"
    seconds = time.monotonic() - began
    shell.wait()
    return seconds


def p1(bench: Bench, rows: Rows, name: str = "P1", request: str = "tiny:in=none") -> None:
    held, bare = bench.job(), Bare(bench.job(), request)
    for _ in range(PAIRS):
        ours = first_line(held, request)
        epilogue = held.timed("epilog").seconds
        theirs = bare.start()
        destroy = bare.destroy()
        rows.setdefault(name, []).append(ours / theirs)
        rows.setdefault(f"{name}-seconds", []).append(ours)
        if name == "P1":
            rows.setdefault("P8", []).append(epilogue / destroy)
            rows.setdefault("P8-overhead-ms", []).append(1000 * (epilogue - destroy))


def p1_debian(bench: Bench, rows: Rows) -> None:
    devsite.image("debian12")
    bench_memory = "debian12:in=none"
    held, bare = bench.job(1400), Bare(bench.job(1400), bench_memory)
    for _ in range(PAIRS):
        ours = first_line(held, bench_memory)
        held.timed("epilog")
        theirs = bare.start()
        bare.destroy()
        rows.setdefault("P1-debian12", []).append(ours / theirs)
        rows.setdefault("P1-debian12-seconds", []).append(ours)


def p2(bench: Bench, rows: Rows) -> None:
    held = bench.job()
    python = [sys.executable, "-I", "-S", "-c", "pass"]
    for _ in range(40 * PAIRS):
        ours = held.timed("prolog", "").seconds
        began = time.monotonic()
        theirs = Ended(subprocess.Popen(python), began).seconds
        rows.setdefault("P2", []).append(ours / theirs)


def p5(bench: Bench, rows: Rows) -> None:
    held = bench.job()
    held.timed("prolog")
    guest = held.guest()
    ids = {"user": bench.owner.pw_uid, "group": bench.owner.pw_gid, "extra_groups": []}
    ssh = ["ssh", "-F", str(guest.run_dir / "ssh_config")]
    alone = [*ssh, "-o", "ControlMaster=no", "-o", "ControlPath=none", "guest", "true"]

    def shell() -> float:
        began = time.monotonic()
        return Ended(held.remoteshell("true"), began).seconds

    for _ in range(3 * PAIRS):
        for name in ("staged", "collected"):
            (guest.run_dir / "mux" / name).unlink(missing_ok=True)
        subprocess.run([*ssh, "-O", "exit", "guest"], stderr=subprocess.DEVNULL, check=False, **ids)  # type: ignore[call-overload]
        first, later = shell(), shell()
        began = time.monotonic()
        plain = Ended(subprocess.Popen(alone, **ids), began).seconds  # type: ignore[call-overload]
        rows.setdefault("P5-first", []).append(first / plain)
        rows.setdefault("P5-later", []).append(later / plain)
        for name, seconds in (("first", first), ("later", later), ("plain-ssh", plain)):
            rows.setdefault(f"P5-{name}-ms", []).append(1000 * seconds)
    held.timed("epilog")


def p6(bench: Bench, rows: Rows) -> None:
    held = [bench.job() for _ in range(4)]
    bare = [Bare(bench.job()) for _ in range(4)]

    def prologues(some: list[Held]) -> float:
        began = time.monotonic()
        children = [one.hook("prolog") for one in some]
        seconds = max(Ended(child, began).seconds for child in children)
        for one in some:
            one.timed("epilog")
        return seconds

    def guests(some: list[Bare]) -> float:
        for one in some:
            one.lay_out()
        began = time.monotonic()
        for one in some:
            one.create()
        for one in some:
            one.answer()
        seconds = time.monotonic() - began
        for one in some:
            one.destroy()
        return seconds

    for _ in range(PAIRS):
        ours = prologues(held) / prologues(held[:1])
        theirs = guests(bare) / guests(bare[:1])
        rows.setdefault("P6", []).append(ours / theirs)


def p7(bench: Bench, rows: Rows) -> None:
    large, small = (base_of(gib, bench.slurm.site.folder / "bases") for gib in (100, 1))
    bench.slurm.site.sections["paths"] = {"catalogue": large.parent}
    bench.slurm.site.configure()
    held = bench.job()
    for _ in range(PAIRS):
        times = []
        for entry in (large, small):
            times.append(held.timed("prolog", f"{entry.stem}:in=none").seconds)
            held.timed("epilog")
        rows.setdefault("P7", []).append(times[0] / times[1])


def p8_stopped(bench: Bench, rows: Rows) -> None:
    held, bare = bench.job(), Bare(bench.job())
    for _ in range(PAIRS):
        held.timed("prolog")
        held.pause()
        ours = held.timed("epilog").seconds
        bare.start()
        bare.pause()
        rows.setdefault("P8-stopped", []).append(ours / bare.destroy())
        rows.setdefault("P8-stopped-seconds", []).append(ours)


def p10(bench: Bench, rows: Rows) -> None:
    held = bench.job()
    for _ in range(PAIRS):
        prologue = peak_mib(str(bench.hooks / "prolog"), env=held.asked())
        shell = peak_mib(str(bench.shell), "true", **held.as_job())
        epilogue = peak_mib(str(bench.hooks / "epilog"), env=held.asked())
        rows.setdefault("P10", []).append(max(prologue, shell, epilogue))
        for name, value in (("prologue", prologue), ("remoteshell", shell), ("epilogue", epilogue)):
            rows.setdefault(f"P10-{name}-mib", []).append(value)


PARTS: dict[str, Callable[[Bench, Rows], None]] = {
    "P1": p1,
    "P2": p2,
    "P5": p5,
    "P6": p6,
    "P7": p7,
    "P8": p8_stopped,
    "P10": p10,
    "P1-debian12": p1_debian,
    "P9": lambda bench, rows: transfers.p9(bench, rows, PAIRS),
    "P9-memory": lambda bench, rows: transfers.p9_memory(bench, rows, 3),
    "P11": lambda bench, rows: transfers.p11(bench, rows, PAIRS),
}


def report(rows: Rows) -> None:
    result = {}
    print(f"\n{'':18}{'median':>9}{'low':>9}{'high':>9}{'target':>9}{'pairs':>7}")
    for name, values in rows.items():
        target, what = TARGETS.get(name, (None, ""))
        row = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        shown = "".join(f"{value:9.3f}" for value in row.values())
        print(f"{name:18}{shown}{target if target is not None else '':>9}{len(values):7}  {what}")
        result[name] = {**{word: round(value, 4) for word, value in row.items()}, "target": target, "pairs": len(values)}
    file = HERE.parent.parent / "build" / "bench.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**kept, **result}, indent=1) + "\n")
    print(f"\nwritten to {file}")


def main() -> int:
    names = [one for part in sys.argv[1:] for one in part.split(",") if one] or list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"bench: there is no {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    running = daemons.Daemons()
    rows: Rows = {}
    try:
        daemons.libvirt(running)
        devsite.image("tiny")
        with user("vmbalice") as owner:
            for name in names:
                print(f"bench: {name}", flush=True)
                with slurm_site(running, extra="SlurmdParameters=config_overrides", cpus=8) as slurm:
                    PARTS[name](Bench(slurm, owner), rows)
                    slurm.site.call("reap")
    finally:
        running.stop()
        if rows:
            report(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
