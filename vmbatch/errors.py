"""What can go wrong, sorted by who must act.

Every message is a sentence: what is wrong and the value; the hint is something that can be typed or edited.
"""

import difflib
from collections.abc import Iterable


class VMBatchError(Exception):
    """Base of all errors that vmbatch explains itself. `hint` may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UserError(VMBatchError):
    """The job's owner must act: a wrong request, an unknown image, too little memory asked for."""


class GuestError(VMBatchError):
    """The image's author must act: the guest did not boot or did not take its context. `console` is its last words."""

    def __init__(self, message: str, hint: str = "", console: str = "") -> None:
        super().__init__(message, hint)
        self.console = console


class SiteError(VMBatchError):
    """The administrator must act: libvirtd is down, a file has the wrong owner, the disk is full."""


class OfferError(SiteError):
    """An administrator must act, but the node is fit: the job is refused and the node stays in service."""


class CancelledError(VMBatchError):
    """A stop was asked for while the start was under way; nobody needs to act."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return the known names that look most like `name`, joined for a message; all of them where none is like it."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:200], names, n=count, cutoff=0.5)
    return ", ".join(close or names[:20])
