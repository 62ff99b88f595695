"""Places for guests on this node. A slot is a file named by the job's key and n; its index gives address, card and port.

The flock guards only the choosing. A slot is freed by removing its file, which the journal knows by name.
"""

import contextlib
import json
import socket
import time
from pathlib import Path

from vmbatch.config import Config
from vmbatch.errors import OfferError, SiteError
from vmbatch.journal import Journal
from vmbatch.model import Size, Slot
from vmbatch.process import locked

_WAIT_S = 0.1


class NoSlotError(OfferError):
    """The node is full. Nobody's fault, and no reason to take the node out of service."""


def take(config: Config, journal: Journal, size: Size) -> Slot:
    """Take a free slot, waiting until limits.slot_timeout_s. Raises NoSlotError with the numbers."""
    folder = config.paths.state / "slots"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    deadline = time.monotonic() + config.limits.slot_timeout_s
    journal.will("slot", journal.name)
    while True:
        with locked(folder):
            taken = _taken(folder)
            if _fits(config, taken, size):
                index = next(i for i in range(len(taken) + 1) if i not in taken)
                slot = Slot(index, _free_port(config, index))
                _write(folder / journal.name, {"index": index, "memory_mib": size.host_memory_mib})
                return slot
        if time.monotonic() >= deadline:
            raise NoSlotError(_full(config, taken, size), "try again later, or raise [limits] max_guests")
        journal.check()
        time.sleep(_WAIT_S)


def free(folder: Path, name: str) -> None:
    """Give a slot back; absent is fine."""
    (folder / name).unlink(missing_ok=True)


def _taken(folder: Path) -> dict[int, int]:
    """Return index -> memory of every slot in use."""
    found = {}
    for file in folder.iterdir():
        if file.name.startswith("."):
            continue
        with contextlib.suppress(ValueError, KeyError, OSError):
            record = json.loads(file.read_text())
            found[int(record["index"])] = int(record["memory_mib"])
    return found


def _fits(config: Config, taken: dict[int, int], size: Size) -> bool:
    limit = config.limits.max_guest_memory_mib
    return len(taken) < config.limits.max_guests and (not limit or sum(taken.values()) + size.host_memory_mib <= limit)


def _full(config: Config, taken: dict[int, int], size: Size) -> str:
    limits, used = config.limits, sum(taken.values())
    memory = f" and {used} of {limits.max_guest_memory_mib} MiB" if limits.max_guest_memory_mib else ""
    return (
        f"no place for this guest ({size.host_memory_mib} MiB) within {limits.slot_timeout_s} s: "
        f"{len(taken)} of {limits.max_guests} guests{memory} are in use"
    )


def _write(file: Path, record: dict[str, int]) -> None:
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(json.dumps(record))
    fresh.replace(file)


def _free_port(config: Config, index: int) -> int:
    """Return a loopback port that nothing listens on: ports of other users' guests on this host are passed over."""
    for port in range(config.network.port_base + index, 65536, max(config.limits.max_guests, 1)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise SiteError(f"no free port from {config.network.port_base} on", "set [network] port_base")
