"""`TlsFiles`: the certificate and key that a server shows, for uvicorn, gRPC and Ray alike.

Certificates are renewed while servers run: whoever connects is shown the one that is in the files
then. One that can't be used is logged, and the last one that could stays.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from serve.access.watched_files import WatchedFiles
from serve.config import ServeConfig, ServeConfigError

logger = logging.getLogger(__name__)


class TlsFiles(NamedTuple):
    """Paths of a certificate chain and its private key, both in PEM form."""

    cert: str
    key: str

    def check(self) -> None:
        """Raise ServeConfigError unless both can be read and belong together."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.cert, self.key, _no_password
            )
        except OSError as error:  # an SSLError too
            why = error.strerror or type(error).__name__
            text = f"tls_cert {self.cert} and tls_key {self.key}: can't be used ({why})"
            raise ServeConfigError(f"{text}; give a PEM chain and its unencrypted key") from None

    def proxy_options(self) -> dict[str, Any]:
        """Return the options of Ray's proxy, which keeps the certificate that it begins with."""
        return {"ssl_certfile": self.cert, "ssl_keyfile": self.key}

    def server_context(self) -> ssl.SSLContext:
        """Return what an HTTP server shows its certificate with, the one of the moment."""
        watched, current = WatchedFiles(self), self._context()

        def renew(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            nonlocal current
            if watched.changed() and self._is_usable():
                current = self._context()
            connection.context = current

        context = self._context()
        context.sni_callback = renew  # called in every handshake, with a name or without
        return context

    def rpc_credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of a gRPC server, the ones of the moment for every connection."""
        watched = WatchedFiles(self)

        def renewed() -> Any:  # None: as before
            return self._rpc_pair() if watched.changed() and self._is_usable() else None

        return grpc.dynamic_ssl_server_credentials(self._rpc_pair(), renewed)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key, _no_password)
        return context

    def _rpc_pair(self) -> grpc.ServerCertificateConfiguration:
        pair = (Path(self.key).read_bytes(), Path(self.cert).read_bytes())
        return grpc.ssl_server_certificate_configuration([pair])

    def _is_usable(self) -> bool:
        """Whether the files can be used now; says so in the log either way."""
        try:
            self.check()
        except ServeConfigError as error:
            logger.error("%s; the certificate of before stays", error)
            return False
        logger.warning("tls_cert %s was renewed", self.cert)
        return True

    def client_context(self) -> ssl.SSLContext:
        """Return what trusts a server with just this certificate, by whatever name it is called.

        For a host that looks whether its own server, on this machine, has come up.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= (
            ssl.VERIFY_X509_PARTIAL_CHAIN
        )  # the certificate itself is the anchor
        context.load_verify_locations(self.cert)
        return context


def tls_files(config: ServeConfig) -> TlsFiles | None:
    """Return the files of a configuration that wants TLS."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    return TlsFiles(config.tls_cert, config.tls_key)


def _no_password() -> str:
    raise OSError("the key is encrypted")
