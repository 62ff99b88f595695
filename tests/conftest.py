"""Fixtures. Real ones: libvirtd, QEMU, guests, Slurm, ordinary users. Nothing of ours is mocked."""

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator
from typing import Any

import daemons
import devsite
import leaks as scanner
import pytest

shared: list[contextlib.ExitStack] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Several workers share what one machine has once: daemons and users. Then the first process starts and stops them."""
    if getattr(session.config.option, "numprocesses", None) and os.geteuid() == 0:
        shared.append(contextlib.ExitStack())
        running = daemons.Daemons()
        shared[0].callback(running.stop)
        daemons.libvirt(running)
        daemons.munge(running)
        for name in ("vmbalice", "vmbbob"):
            shared[0].enter_context(contextlib.contextmanager(_user)(name))


def pytest_sessionfinish(session: pytest.Session) -> None:
    for stack in shared:
        stack.close()


@pytest.fixture(scope="session")
def processes() -> Iterator[daemons.Daemons]:
    """Processes that tests start; stopped by pid at the end."""
    running = daemons.Daemons()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def libvirt(processes: daemons.Daemons) -> None:
    """qemu:///system answers. These tests need root."""
    if os.geteuid() != 0:
        pytest.fail("tests with real guests run as root: make test")
    daemons.libvirt(processes)


@pytest.fixture(scope="session")
def images() -> Any:
    """Return a function that makes sure of an image in the tests' catalogue."""
    return devsite.image


@pytest.fixture(scope="module")
def site(libvirt: None) -> Iterator[devsite.Site]:
    """A site with the tiny image; after the module nothing of it stands."""
    devsite.image("tiny")
    with devsite.Site() as made:
        yield made


@pytest.fixture
def no_leaks(site: devsite.Site) -> Iterator[None]:
    """After the test nothing of the site's jobs stands on this machine."""
    yield
    assert scanner.leaks(site) == []


def _user(name: str) -> Iterator[pwd.struct_passwd]:
    try:
        entry = pwd.getpwnam(name)
        yield entry
    except KeyError:
        subprocess.run(["useradd", "-m", "-s", "/bin/bash", name], check=True)
        yield pwd.getpwnam(name)
        subprocess.run(["userdel", "-r", name], capture_output=True, check=False)


@pytest.fixture(scope="session")
def alice() -> Iterator[pwd.struct_passwd]:
    """An ordinary user."""
    yield from _user("vmbalice")


@pytest.fixture(scope="session")
def bob() -> Iterator[pwd.struct_passwd]:
    """Another ordinary user."""
    yield from _user("vmbbob")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the golden files anew")
