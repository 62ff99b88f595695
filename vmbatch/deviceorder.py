"""The order in which libvirt and a guest sort the same disks by their target names.

For paravirtual Xen guests libvirt ignores boot tags and boots from the first disk of its own order: by bus, then by the
index that the letters count (xvdb, xvdc, xvdaa: libvirt's virDomainDiskInsert and virDiskNameToIndex). CernVM3 takes as
its persistent cache the first disk in the order of the text (xvdaa, xvdb, xvdc). Names are chosen so that both find theirs.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from string import ascii_lowercase

from vmbatch.errors import SiteError

_NAME = re.compile(r"(fd|hd|vd|sd|xvd|ubd)([a-z]{1,6})[0-9]*")  # libvirt counts the letters in a C int


def split(target: str) -> tuple[str, int]:
    """Return a target's prefix and index: xvdb is ('xvd', 1), vdaa ('vd', 26). A partition's number is ignored.

    Raises SiteError where libvirt would not take the name.
    """
    match = _NAME.fullmatch(target)
    if match is None:
        raise SiteError(f"target dev='{target}' is no disk name", "use names such as xvda, xvdb, vda or hda")
    index = 0
    for letter in match[2]:
        index = index * 26 + ord(letter) - ord("a") + 1
    return match[1], index - 1


def libvirt_order(targets: Sequence[str]) -> tuple[str, ...]:
    """Sort as libvirt does: disks of a bus by index, the buses as they come. `targets` are in the order of the file.

    The bus is read off the name's prefix, as libvirt does where <target> names none. Raises SiteError.
    """
    order: list[str] = []
    for target in targets:
        prefix, index = split(target)
        of_bus = [(place, split(other)[1]) for place, other in enumerate(order) if split(other)[0] == prefix]
        after = [place + 1 for place, other in of_bus if other <= index]
        before = [place for place, other in of_bus if other > index]
        order.insert(after[-1] if after else before[0] if before else len(order), target)
    return tuple(order)


def guest_order(targets: Sequence[str]) -> tuple[str, ...]:
    """Sort as CernVM3 does: by text."""
    return tuple(sorted(targets))


def check_boot_disk(boot: str, targets: Sequence[str]) -> None:
    """Raise SiteError where libvirt would boot another disk than `boot`; the hint names targets that work."""
    if boot not in targets:
        raise SiteError(f"the boot disk '{boot}' is none of the domain's disks ({', '.join(targets) or 'it has none'})")
    first = libvirt_order(targets)[0]
    if first == boot:
        return
    names = working_names(boot, targets)
    others = " and ".join(f"{name} for {old}" for old, name in names.items() if old != boot)
    raise SiteError(
        f"on Xen the domain would boot from {first}, not from {boot}: libvirt takes the first of its own order, "
        f"{', '.join(libvirt_order(targets))}",
        f"use dev={names[boot]} for the boot disk and {others}, all with bus='xen'",
    )


def working_names(boot: str, targets: Sequence[str]) -> dict[str, str]:
    """Rename disks so that libvirt boots `boot` and the guest's order stays: {old name: new name}, in that order.

    What the guest sorts before the boot disk gets xvdaa, xvdab, ...: before xvdb by text, after it by index.
    """
    order = guest_order(targets)
    place = order.index(boot)
    prefix = split(boot)[0]
    before = zip(order[:place], _rising(f"{prefix}a"), strict=False)
    after = zip(order[place + 1 :], _rising(prefix, "c"), strict=False)
    return {**dict(before), boot: f"{prefix}b", **dict(after)}


def _rising(head: str, first: str = "a") -> Iterator[str]:
    """Yield names that rise by text and by index, without end: xvdc ... xvdz, xvdza ..."""
    for turns in count():
        for letter in ascii_lowercase[0 if turns else ascii_lowercase.index(first) :]:
            yield head + "z" * turns + letter
