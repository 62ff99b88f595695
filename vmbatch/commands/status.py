"""vmbatch status: the guests on this node."""

import argparse
import json

from vmbatch.config import load
from vmbatch.status import rows

NAME = "status"
HELP = "show the guests on this node"
EXAMPLES = """\
vmbatch status
vmbatch status --json"""
_COLUMNS = (("JOB", "job"), ("USER", "user"), ("IMAGE", "image"), ("PHASE", "phase"), ("ON", "hypervisor"))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="a list of records, one a guest, with seconds per phase")


def main(options: argparse.Namespace) -> int:
    found = rows(load(options.config))
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    if not found:
        print("no guests on this node")
        return 0
    table = [[title for title, _ in _COLUMNS] + ["CPUS", "MIB", "START"]]
    for row in found:
        seconds = sum((row["phases_s"] or {}).values())
        numbers = [str(row["cpus"] or "-"), str(row["memory_mib"] or "-"), f"{seconds:.1f} s"]
        table.append([str(row[word] or "-") for _, word in _COLUMNS] + numbers)
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in found:
        if row["reason"]:
            print(f"job {row['job']}: {row['reason']}")
        elif row["phases_s"]:
            print(f"job {row['job']}: " + ", ".join(f"{name} {took:.2f} s" for name, took in row["phases_s"].items()))
    return 0
