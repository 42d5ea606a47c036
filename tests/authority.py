"""A certificate authority of the tests' own."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Authority:
    """A certificate authority, and certificates by it as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a certificate for loopback and its key."""
        made = self._ca.issue_cert("127.0.0.1", "localhost")
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        for number, blob in enumerate(made.cert_chain_pems):
            blob.write_to_path(str(cert), append=number > 0)
        made.private_key_pem.write_to_path(str(key))
        return cert, key

    def context(self) -> ssl.SSLContext:
        """Return what a client checks by."""
        return ssl.create_default_context(cafile=self.ca)
