"""`TlsFiles`: the certificate and key that a server shows, for uvicorn, gRPC and Ray alike."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from serve.config import ServeConfig, ServeConfigError


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

    def uvicorn_options(self) -> dict[str, Any]:
        """Return the options of uvicorn and of Ray's proxy."""
        return {"ssl_certfile": self.cert, "ssl_keyfile": self.key}

    def rpc_credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of a gRPC server."""
        pair = (Path(self.key).read_bytes(), Path(self.cert).read_bytes())
        return grpc.ssl_server_credentials([pair])

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
