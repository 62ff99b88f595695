"""Ordinary users for tests: made where they are missing, and removed by whoever made them."""

import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def user(name: str) -> Iterator[pwd.struct_passwd]:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        subprocess.run(["useradd", "-m", "-s", "/bin/bash", name], check=True)
        yield pwd.getpwnam(name)
        subprocess.run(["userdel", "-r", name], capture_output=True, check=False)
    else:
        yield entry
