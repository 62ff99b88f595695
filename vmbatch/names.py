"""Names made of names: of a job on a node, of an interface; different things never share one."""

import hashlib

KEY_LENGTH = 64


def safe(text: str, also: str = "") -> str:
    """Spell any text with `[A-Za-z0-9._~]` (and `also`) only; different texts stay different."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._" + also) else f"~{ord(c):02x}" for c in text)


def short_hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:length]


def tap_prefix(network: str) -> str:
    """How the interfaces of all guests on one network begin: packet filters of two sites on a host keep apart by it."""
    return "v" + short_hash(network, 4)


def tap_name(network: str, guest: str) -> str:
    """Name a guest's interface on the host: 15 characters, the kernel's limit."""
    return tap_prefix(network) + short_hash(guest, 10)


def make_key(scheduler: str, cluster: str, node: str, job_id: str) -> str:
    """Name a job on a node: `slurm-prod-n-12-4711`. Only the node's part may hold `-`, so no two jobs share a key.

    A key longer than KEY_LENGTH characters (unix socket paths are built from it) keeps its head and ends in a hash.
    """
    key = "-".join((safe(scheduler), safe(cluster), safe(node, "-"), safe(job_id)))
    if len(key) <= KEY_LENGTH:
        return key
    return key[: KEY_LENGTH - 17] + "~" + short_hash(key, 16)
