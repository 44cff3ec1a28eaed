"""A throw-away certificate authority for servers on loopback."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from cacheagent.demo.seaweedfs import Certificate


class Tls:
    """One authority and one certificate for loopback names, as files and as a server's context. Made in `directory`."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "127.0.0.2", "localhost")
        self.ca_bundle = directory / "ca.pem"
        """What a client must trust."""
        self.certificate = Certificate(chain=directory / "chain.pem", key=directory / "key.pem")
        authority.cert_pem.write_to_path(self.ca_bundle)
        issued.cert_chain_pems[0].write_to_path(self.certificate.chain)
        issued.private_key_pem.write_to_path(self.certificate.key)

    def server_context(self) -> ssl.SSLContext:
        """A fresh context that shows the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate.chain, self.certificate.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """A fresh context that trusts the authority and nobody else."""
        return ssl.create_default_context(cafile=str(self.ca_bundle))
