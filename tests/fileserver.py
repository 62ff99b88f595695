"""A server of files with faults on request: http, https, ftp or ftps, in a process of its own.

    with serving(folder) as server:
        server.url + "/disk?cut=1000&times=1"     # closes the connection after 1000 bytes, the first time

What goes wrong stands in the query of a http(s) URL. Without `times=N` it goes wrong every time.
    status=503      that answer instead of the file
    redirect=URL    an answer 302 that leads there; hops=N: N of them, one after the other
    mute=1          no answer at all
    cut=N, stop=N   N bytes of the body, then the connection is closed; or stays open, and nothing more comes
    drip=S          a byte of the body every S seconds, or piece=N bytes
    endless=1       zeros for ever, without a length
    length=none     no Content-Length; length=N: that one; length=chunked: chunks, cut off where `cut` says
    etag=none       none; weak: a weak one; new: another one for every request
    careless=1      the rest of the file where it is asked for, though it is another file now; whatever `times` says
    encoding=gzip   that Content-Encoding, on the same bytes
    login=U:P       401 without this user and password
    echo=TEXT       that text as the reason of an answer 418
"""

import base64
import hashlib
import json
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_NEW_KEY = ("-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


@dataclass(frozen=True)
class Server:
    """A running server. `requests` are lists of method, target, Range and status, in their order."""

    url: str
    folder: Path
    log: Path

    @property
    def requests(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def gets(self) -> int:
        return sum(1 for method, *_ in self.requests if method == "GET")

    def put(self, name: str, content: bytes) -> str:
        """Offer some bytes. Returns their URL."""
        (self.folder / name).write_bytes(content)
        return f"{self.url}/{name}"


@contextmanager
def serving(
    folder: Path, scheme: str = "http", certificate: Path | None = None, host: str = "127.0.0.1"
) -> Iterator[Server]:
    """Serve a folder. ftp knows everybody as anonymous, and the user `reader` with the password `s3cret`."""
    log = folder.with_name(f"{folder.name}.{scheme}-{time.monotonic_ns()}.log")
    log.touch()
    argv = [sys.executable, "-B", __file__, scheme, str(folder), str(log), str(certificate or "")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(f"{scheme}://{host}:{int(process.stdout.readline())}", folder, log)
        finally:
            process.kill()
            log.unlink()


def authority(folder: Path) -> Path:
    """Make a certificate authority. Returns its certificate."""
    folder.mkdir(exist_ok=True)
    place = ["-keyout", folder / "ca.key", "-out", folder / "ca.pem"]
    _openssl(
        "req", "-x509", *_NEW_KEY, "-days", "2", "-addext", "keyUsage=critical,keyCertSign", "-subj", "/CN=tests", *place
    )
    return folder / "ca.pem"


def certificate(ca: Path, name: str, names: str = "DNS:localhost,IP:127.0.0.1", days: int = 2) -> Path:
    """Have a server's certificate signed; with negative days it has expired. Returns it, with its key."""
    key, request, signed, more = (ca.with_name(f"{name}.{kind}") for kind in ("key", "csr", "crt", "ext"))
    more.write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\nextendedKeyUsage=serverAuth\n")
    _openssl("req", *_NEW_KEY, "-subj", "/CN=localhost", "-keyout", key, "-out", request)
    signer = ["-CA", ca, "-CAkey", ca.with_name("ca.key"), "-CAcreateserial"]
    _openssl("x509", "-req", "-in", request, *signer, "-days", str(days), "-extfile", more, "-out", signed)
    ca.with_name(f"{name}.pem").write_text(signed.read_text() + key.read_text())
    return ca.with_name(f"{name}.pem")


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, stdin=subprocess.DEVNULL)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, log: Path, certificate: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.log, self.seen = folder, log.open("a", buffering=1), Counter[str]()
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, address: Any) -> None:
        pass  # clients that leave are what is tested


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        """A proxy's way to https: bytes both ways are not needed by the tests, only that it was asked."""
        self.note(403)
        self.send_error(403)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        self.server.seen[self.path] += 1
        wish = dict(parse_qsl(asked.query))
        fault = {} if self.server.seen[self.path] > int(wish.pop("times", 1 << 30)) else wish
        if "mute" in fault:
            self.note(0)
            time.sleep(3600)
        elif int(fault.get("hops", 0)):
            self.answer(302, {"Location": f"{asked.path}?hops={int(fault['hops']) - 1}", "Content-Length": "0"})
        elif "redirect" in fault:
            self.answer(302, {"Location": fault["redirect"], "Content-Length": "0"})
        elif "status" in fault:
            self.answer(int(fault["status"]), {"Content-Length": "0"})
        elif "echo" in fault:
            self.answer(418, {"Content-Length": "0"}, fault["echo"])
        elif "login" in fault and self.headers.get("Authorization", "") != _basic(fault["login"]):
            self.answer(401, {"Content-Length": "0"})
        elif "endless" in fault:
            self.answer(200, {"Connection": "close"})
            while True:
                self.wfile.write(bytes(1 << 16))
        else:
            self.file(self.server.folder / asked.path.lstrip("/"), fault)

    def file(self, path: Path, fault: dict[str, str]) -> None:
        if not path.is_file():
            return self.answer(404, {"Content-Length": "0"})
        size = path.stat().st_size
        headers = {"ETag": self.etag(path, fault), "Last-Modified": self.date_time_string(int(path.stat().st_mtime))}
        begin = self.begin(headers["ETag"], size)
        headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}" if begin else ""
        headers["Content-Encoding"] = fault.get("encoding", "")
        sent = fault.get("length", str(size - begin))
        headers["Content-Length"] = sent if sent.isdigit() else ""
        headers["Transfer-Encoding"] = sent if sent == "chunked" else ""
        headers["Connection"] = "" if sent.isdigit() and "cut" not in fault else "close"
        self.answer(206 if begin else 200, headers)
        if self.command == "GET":
            with path.open("rb") as file:
                self.body(file, begin, size - begin, fault)
        return None

    def begin(self, etag: str, size: int) -> int:
        asked = self.headers.get("Range", "")
        same = "careless" in self.path or (self.headers.get("If-Range", etag) == etag and etag.startswith('"'))
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and same else 0
        return begin if begin < size else 0

    def etag(self, path: Path, fault: dict[str, str]) -> str:
        kind = fault.get("etag", "")
        status = path.stat()
        text = hashlib.md5(f"{status.st_size}{status.st_mtime_ns}".encode()).hexdigest()
        if kind == "new":
            text += str(self.server.seen[self.path])
        return "" if kind == "none" else f'W/"{text}"' if kind == "weak" else f'"{text}"'

    def body(self, file: Any, begin: int, count: int, fault: dict[str, str]) -> None:
        count = min(count, int(fault.get("cut", count)), int(fault.get("stop", count)))
        if fault.get("length") == "chunked":
            self.wfile.write(f"{count:x}\r\n".encode())
        if "drip" in fault:
            file.seek(begin)
            for _ in range(0, count, size := int(fault.get("piece", 1))):
                self.wfile.write(file.read(size))
                time.sleep(float(fault["drip"]))
        else:
            self.connection.sendfile(file, begin, count)
        if "stop" in fault:
            time.sleep(3600)
        if fault.get("length") == "chunked" and "cut" not in fault:
            self.wfile.write(b"\r\n0\r\n\r\n")

    def answer(self, status: int, headers: dict[str, str], reason: str | None = None) -> None:
        self.note(status)
        self.send_response(status, reason)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.close_connection = headers.get("Connection") == "close"

    def note(self, status: int) -> None:
        self.server.log.write(json.dumps([self.command, self.path, self.headers.get("Range", ""), status]) + "\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _ftp(folder: Path, certificate: str) -> Any:
    import logging

    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
    from pyftpdlib.servers import FTPServer

    logging.disable()
    handler = type("Handler", (TLS_FTPHandler if certificate else FTPHandler,), {})
    handler.authorizer = DummyAuthorizer()
    handler.authorizer.add_anonymous(str(folder))
    handler.authorizer.add_user("reader", "s3cret", str(folder), perm="elr")
    if certificate:
        handler.certfile, handler.tls_control_required, handler.tls_data_required = certificate, True, True
    return FTPServer(("127.0.0.1", 0), handler)


def main(scheme: str, folder: str, log: str, certificate: str) -> None:
    if scheme.startswith("ftp"):
        server = _ftp(Path(folder), certificate)
        print(server.address[1], flush=True)
    else:
        server = _Server(Path(folder), Path(log), certificate)
        print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
