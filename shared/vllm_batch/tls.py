"""Certificates and keys from files: plain errors where one is missing or does not fit."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from vllm_batch.errors import StackError


class Pair(NamedTuple):
    """Files of a certificate, with those that it was signed by, and its key."""

    cert: Path
    key: Path


def client_context(
    *, ca: Path | None, cert: Path | None, key: Path | None, setting: str
) -> ssl.SSLContext | None:
    """Return how to check a server by ``ca`` and show it ``cert``; None where nothing is set.

    Without ``ca`` the authorities of the system count. ``setting``: what the settings' names begin
    with, for the errors.

    Raises:
        StackError: a file cannot be read, is no certificate or key, or one of the pair is missing.
    """
    if ca is None and cert is None and key is None:
        return None
    check_pair(cert, key, setting=setting)
    if ca is not None:
        _check_file(ca, f"{setting}_ca")
    try:
        context = ssl.create_default_context(cafile=ca)
    except (ssl.SSLError, OSError) as error:
        raise StackError(
            f"{_variable(f'{setting}_ca')}: {ca} holds no certificate: {error}"
        ) from error
    if cert is not None and key is not None:
        load_pair(context, cert, key, setting=setting)
    return context


def server_pair(cert: Path | None, key: Path | None, *, setting: str) -> Pair | None:
    """Return what a server shows; None where nothing is set.

    Raises:
        StackError: a file cannot be read, is no certificate or key, or one of the pair is missing.
    """
    check_pair(cert, key, setting=setting)
    if cert is None or key is None:
        return None
    load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, key, setting=setting)
    return Pair(cert, key)


def load_pair(context: ssl.SSLContext, cert: Path, key: Path, *, setting: str) -> None:
    """Have ``context`` show ``cert``.

    Raises:
        StackError: the files are no certificate and its key.
    """
    try:
        context.load_cert_chain(cert, key)
    except (ssl.SSLError, OSError) as error:
        raise StackError(
            f"{_variable(f'{setting}_cert')}: {cert} and {key} are no certificate and its key "
            f"in PEM: {error}"
        ) from error


def check_pair(cert: Path | None, key: Path | None, *, setting: str) -> None:
    """Raise StackError where only one of certificate and key is set, or one cannot be read."""
    names = (f"{setting}_cert", f"{setting}_key")
    if (cert is None) != (key is None):
        there, missing = names if key is None else reversed(names)
        raise StackError(
            f"{_variable(there)} is set and {_variable(missing)} is not: TLS needs both"
        )
    if cert is not None and key is not None:
        _check_file(cert, names[0])
        _check_file(key, names[1])


def _check_file(path: Path, name: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise StackError(f"{_variable(name)}: cannot read {path}: {error.strerror}") from error


def _variable(name: str) -> str:
    return f"VLLM_BATCH_{name.upper()}"
