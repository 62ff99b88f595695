"""Unit tests start no program and open no connection, unless they say so with @pytest.mark.programs."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

_FORBIDDEN = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "socket.connect", "os.exec"}
_guarding = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _guarding and event in _FORBIDDEN:
        raise AssertionError(f"a unit test did {event}{arguments[:2]!r}; mark it with @pytest.mark.programs")


sys.addaudithook(_hook)


@pytest.fixture(autouse=True)
def guard(request: pytest.FixtureRequest) -> Iterator[None]:
    global _guarding
    _guarding = request.node.get_closest_marker("programs") is None
    yield
    _guarding = False
