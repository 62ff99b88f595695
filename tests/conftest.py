"""Fixtures. Real ones: libvirtd, QEMU, guests, Slurm, ordinary users. Nothing of ours is mocked."""

import contextlib
import os
import pwd
from collections.abc import Iterator
from typing import Any

import daemons
import devsite
import leaks as scanner
import pytest
from people import user

shared: list[contextlib.ExitStack] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Several workers share what one machine has once: daemons and users. Then the first process starts and stops them."""
    if getattr(session.config.option, "numprocesses", None) and os.geteuid() == 0:
        shared.append(contextlib.ExitStack())
        running = daemons.Daemons()
        shared[0].callback(running.stop)
        daemons.libvirt(running)
        daemons.munge(running)
        for name in ("vmbalice", "vmbbob", "vmbcarol"):
            shared[0].enter_context(user(name))


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


@pytest.fixture(scope="session")
def alice() -> Iterator[pwd.struct_passwd]:
    """An ordinary user."""
    with user("vmbalice") as entry:
        yield entry


@pytest.fixture(scope="session")
def bob() -> Iterator[pwd.struct_passwd]:
    """Another ordinary user."""
    with user("vmbbob") as entry:
        yield entry


@pytest.fixture(scope="session")
def carol() -> Iterator[pwd.struct_passwd]:
    """One whose processes a test may kill."""
    with user("vmbcarol") as entry:
        yield entry


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the golden files anew")
