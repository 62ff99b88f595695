"""Places where a test may stop the real process: `name:action` from the `[testing]` section of the configuration.

Names are `will:KIND` (written down, not yet made), `gone:KIND` (removed, not yet written down), `step:NAME` and
`stop:NAME`. Actions: kill, hang, raise.
"""

import os
import signal

_armed: tuple[str, str] | None = None


def arm(text: str) -> None:
    """Arm one failpoint, `step:boot:kill` for example; the empty text disarms."""
    global _armed
    name, _, action = text.rpartition(":")
    _armed = (name, action) if name else None


def reach(name: str) -> None:
    """Do what the test asked for at this place; nothing in production."""
    if _armed is None or _armed[0] != name:
        return
    if _armed[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if _armed[1] == "hang":
        signal.pause()
    raise RuntimeError(f"failpoint {name}")
