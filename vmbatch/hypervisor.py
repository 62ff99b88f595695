"""The only door to libvirt. Every call is bounded in time.

libvirt can hang for ever, and no signal handler of Python helps then: all calls are made in one child, forked early,
that can be abandoned. Parent and child exchange one JSON line a call over a socket pair.
"""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any
from xml.etree import ElementTree  # what it reads is libvirt's own output

from vmbatch.errors import SiteError
from vmbatch.process import close_others

_MEND = "start it, then run: vmbatch doctor"


class LibvirtError(SiteError):
    """libvirt answered with an error; its own words are in the message."""


class Hypervisor:
    """A connection to libvirt that cannot hang us. Use it as a context manager."""

    def __init__(self, uri: str, timeout_s: float) -> None:
        self.uri = uri
        self.timeout_s = timeout_s
        self._pid = 0
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Hypervisor":
        self._fork()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(theirs, self.uri)
        theirs.close()
        self._socket = ours

    def close(self) -> None:
        """End the child. One that hangs in libvirt is killed, never waited for."""
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def call(self, method: str, *words: Any, timeout_s: float | None = None, descriptors: tuple[int, ...] = ()) -> Any:
        """Make one call. Raises LibvirtError (libvirt said no) or SiteError (no answer in time)."""
        if self._socket is None:
            self._fork()
        assert self._socket is not None
        limit = timeout_s or self.timeout_s
        self._socket.settimeout(limit)
        try:
            if descriptors:  # a lone byte carries them, so that the line after it may be of any length
                socket.send_fds(self._socket, [b"\0"], descriptors)
            self._socket.sendall(json.dumps([method, *words]).encode() + b"\n")
            answer = _line(self._socket)
        except TimeoutError:
            self.close()
            raise SiteError(f"libvirt ({self.uri}) did not answer within {limit:g} s", _MEND) from None
        except OSError as error:
            self.close()
            raise SiteError(f"the connection to libvirt ({self.uri}) broke: {error}", _MEND) from error
        if "error" in answer:
            hint = _MEND if answer.get("down") else ""
            raise LibvirtError(f"libvirt ({self.uri}): {answer['error']}", hint)
        return answer.get("result")

    # --- the calls ---

    def start(self, xml: str, descriptors: Mapping[str, int] | None = None) -> str:
        """Start a transient domain. Returns the live XML.

        `descriptors`: open files for the fdgroups of the XML; a domain with some stands still until resume().
        """
        groups = dict(descriptors or {})
        limit = max(self.timeout_s, 60)
        return str(self.call("start", xml, list(groups), timeout_s=limit, descriptors=tuple(groups.values())))

    def destroy(self, name: str) -> None:
        """Make the domain not exist. Absent is fine."""
        self.call("destroy", name)

    def resume(self, name: str) -> None:
        """Let a domain run that was started with descriptors."""
        self.call("resume", name)

    def power_off(self, name: str) -> None:
        """Press the domain's power button: its guest may write what it still holds, and ends when it likes."""
        self.call("power_off", name)

    def exists(self, name: str) -> bool:
        return bool(self.call("exists", name))

    def eject(self, name: str, device: str) -> None:
        """Take the disk out of a CD-ROM drive, whatever the guest thinks of it."""
        self.call("eject", name, device)

    def monitor(self, name: str, command: str) -> str:
        """Send a command to QEMU's human monitor; return what it prints."""
        return str(self.call("monitor", name, command))

    def ensure_network(self, name: str, xml: str) -> None:
        """Define and start a network that is not there yet."""
        self.call("ensure_network", name, xml)

    def domains(self) -> list[tuple[str, str]]:
        """Return (name, XML) of every running domain whose name says that it is ours."""
        return [(str(name), str(xml)) for name, xml in self.call("domains")]

    def version(self) -> dict[str, str]:
        """Return the versions of libvirt and QEMU."""
        return dict(self.call("version"))


def _line(connection: socket.socket) -> dict[str, Any]:
    data = bytearray()
    while not data.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part:
            raise ConnectionError("the child process ended")
        data += part
    answer = json.loads(data)
    assert isinstance(answer, dict)
    return answer


# --- the child ---


def _serve(connection: socket.socket, uri: str) -> None:
    """Answer calls until the parent is gone. Never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which tears down through us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        close_others(connection.fileno())
        calls = _Calls(uri)
        while line := _call(connection, calls.descriptors):
            method, *words = json.loads(line)
            connection.sendall(json.dumps(calls.answer(method, words)).encode() + b"\n")
    finally:
        os._exit(0)


def _call(connection: socket.socket, descriptors: list[int]) -> bytes:
    """Read one line, and the descriptors that come before it. b"": the parent is gone."""
    data = b""
    while not data.endswith(b"\n"):
        part, found, _, _ = socket.recv_fds(connection, 1 << 16, 64)
        descriptors += found
        if not part:
            return b""
        data += part
    return data.lstrip(b"\0")


class _Calls:
    def __init__(self, uri: str) -> None:
        import libvirt

        self.descriptors: list[int] = []

        self.libvirt = libvirt
        libvirt.registerErrorHandler(lambda context, error: None, None)
        self.uri = uri
        self.opened: Any = None

    def answer(self, method: str, words: list[Any]) -> dict[str, Any]:
        function: Callable[..., Any] = getattr(self, f"do_{method}")
        try:
            return {"result": function(*words)}
        except self.libvirt.libvirtError as error:
            down = error.get_error_domain() == self.libvirt.VIR_FROM_RPC or self.opened is None
            return {"error": str(error), "down": down}

    @property
    def connection(self) -> Any:
        if self.opened is None:
            self.opened = self.libvirt.open(self.uri)
        return self.opened

    def domain(self, name: str) -> Any:
        try:
            return self.connection.lookupByName(name)
        except self.libvirt.libvirtError as error:
            if error.get_error_code() == self.libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def do_start(self, xml: str, groups: list[str]) -> str:
        if not groups:
            return str(self.connection.createXML(xml, 0).XMLDesc(0))
        # libvirt takes descriptors for a defined domain only; undefined while it runs, it is transient as the others
        domain = self.connection.defineXML(xml)
        try:
            for group, descriptor in zip(groups, self.descriptors, strict=True):
                domain.FDAssociate(group, [descriptor], 0)
            domain.createWithFlags(self.libvirt.VIR_DOMAIN_START_PAUSED)
            return str(domain.XMLDesc(0))
        finally:
            domain.undefine()
            for descriptor in self.descriptors:
                os.close(descriptor)
            self.descriptors.clear()

    def do_exists(self, name: str) -> bool:
        return self.domain(name) is not None

    def do_destroy(self, name: str) -> None:
        gone = (self.libvirt.VIR_ERR_NO_DOMAIN, self.libvirt.VIR_ERR_OPERATION_INVALID)
        for act in ("destroy", "undefine"):
            domain = self.domain(name)
            if domain is None:
                return
            try:
                if act == "destroy" or domain.isPersistent():
                    getattr(domain, act)()
            except self.libvirt.libvirtError as error:
                if error.get_error_code() not in gone:
                    raise

    def do_resume(self, name: str) -> None:
        domain = self.domain(name)
        if domain is not None:
            domain.resume()

    def do_power_off(self, name: str) -> None:
        domain = self.domain(name)
        if domain is not None:
            domain.shutdown()

    def do_eject(self, name: str, device: str) -> None:
        domain = self.domain(name)
        if domain is None:
            return
        flags = self.libvirt.VIR_DOMAIN_AFFECT_LIVE | self.libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE
        for disk in ElementTree.fromstring(domain.XMLDesc(0)).iterfind("devices/disk"):
            target, source = disk.find("target"), disk.find("source")
            if target is not None and target.get("dev") == device and source is not None:
                disk.remove(source)
                domain.updateDeviceFlags(ElementTree.tostring(disk, encoding="unicode"), flags)

    def do_monitor(self, name: str, command: str) -> str:
        import libvirt_qemu

        return str(libvirt_qemu.qemuMonitorCommand(self.domain(name), command, 1))

    def do_ensure_network(self, name: str, xml: str) -> None:
        try:
            network = self.connection.networkLookupByName(name)
        except self.libvirt.libvirtError as error:
            if error.get_error_code() != self.libvirt.VIR_ERR_NO_NETWORK:
                raise
            network = self.connection.networkDefineXML(xml)
        if not network.isActive():
            try:
                network.create()
            except self.libvirt.libvirtError:
                if not network.isActive():  # another prologue was quicker
                    raise

    def do_domains(self) -> list[tuple[str, str]]:
        found = []
        for domain in self.connection.listAllDomains():
            with contextlib.suppress(self.libvirt.libvirtError):
                if domain.name().startswith("vmbatch-"):
                    found.append((domain.name(), domain.XMLDesc(0)))
        return found

    def do_version(self) -> dict[str, str]:
        def spell(number: int) -> str:
            return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"

        connection = self.connection
        return {"libvirt": spell(connection.getLibVersion()), "qemu": spell(connection.getVersion())}
