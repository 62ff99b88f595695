"""What a network library raised -> a sentence. The library's own words are left out where they may hold the URL."""

import ftplib
import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import TypeVar

import urllib3

from vmbatch.images.transfer import Limits, SourceError

_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED in OpenSSL's x509_vfy.h; below: no issuer, self-signed, and the like
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
_FTP_ADVICE = {
    "530": "write user and password into the address, if the server wants them",
    "550": "correct the address of the image",
}
_Error = TypeVar("_Error", bound=BaseException)


def explain(error: BaseException, server: str, limits: Limits) -> SourceError:
    """Say what went wrong while `server` was asked, and whether another try may help."""
    causes = list(_causes(error))

    def first(*kinds: type[_Error]) -> _Error | None:
        return next((one for one in causes if isinstance(one, kinds)), None)

    who = f"the proxy for {server}" if first(urllib3.exceptions.ProxyError) else server
    if name := first(socket.gaierror):
        hint = "correct the name, or see this node's DNS: getent hosts NAME"
        return SourceError(
            f"the name of {who} cannot be resolved: {name.strerror}", hint, again=name.errno == socket.EAI_AGAIN
        )
    if tls := first(ssl.SSLError):
        return _explain_tls(tls, who)
    if first(TimeoutError):
        return SourceError(f"{who} did not answer within {limits.connect_s:g} s", "see the timeouts in [fetch]", again=True)
    if first(ConnectionRefusedError):
        return SourceError(f"{who} refused the connection", "see whether it runs, and its port", again=True)
    if reply := first(ftplib.Error):
        return SourceError(
            f"{who} answered {reply}", _FTP_ADVICE.get(str(reply)[:3], ""), again=isinstance(reply, ftplib.error_temp)
        )
    if first(ConnectionError, EOFError, http.client.IncompleteRead, urllib3.exceptions.ProtocolError):
        return SourceError(f"{who} closed the connection before the end", "try again later", again=True)
    if system := first(OSError):
        return SourceError(f"no connection to {who}: {system.strerror or type(system).__name__}", again=True)
    return SourceError(f"{who} answered what is not understood ({type(error).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain_tls(error: ssl.SSLError, who: str) -> SourceError:
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or type(error).__name__).lower().replace("_", " ")
        return SourceError(f"no TLS connection to {who}: {reason}", again=isinstance(error, ssl.SSLEOFError))
    if error.verify_code == _EXPIRED:
        return SourceError(f"the certificate of {who} has expired", "ask who runs it; see also this node's clock: date")
    if error.verify_code in _UNKNOWN_ISSUER:
        return SourceError(
            f"the certificate of {who} is signed by an authority that is not known here",
            "name a file with the authority's certificate as ca_file in [fetch]",
        )
    return SourceError(f"the certificate of {who} is not valid: {error.verify_message}")
