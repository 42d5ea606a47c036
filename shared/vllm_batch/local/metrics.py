"""Ports for the services' metrics, and ``<home>/metrics.json``, which tells a Prometheus of them.

The file has the form of Prometheus's ``file_sd_configs``. Written by the supervisor, atomically,
when it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from vllm_batch.local import ports
from vllm_batch.local.programs import environment_of
from vllm_batch.local.spec import ServiceSpec
from vllm_batch.local.state import StackState

_PREFIX = "metrics "


class _Targets(msgspec.Struct, frozen=True):
    targets: list[str]
    labels: dict[str, str]


def ports_of(chosen: Mapping[str, int]) -> dict[str, int]:
    """Return those of the chosen ports that are for metrics."""
    return {name: port for name, port in chosen.items() if name.startswith(_PREFIX)}


def with_port(spec: ServiceSpec, chosen: dict[str, int]) -> ServiceSpec:
    """Give a service a port for its metrics, the one in ``chosen`` where that is free, and note
    it there."""
    name = f"{_PREFIX}{spec.name}"
    taken = frozenset(port for other, port in chosen.items() if other != name)
    port = chosen[name] = ports.pick(chosen.get(name), avoid=taken)
    environment = {**spec.env, **environment_of({"metrics_port": port})}
    return replace(spec, env=environment, metrics_port=port)


def write_targets(path: Path, stack: StackState) -> None:
    """Replace what is there, if it says anything else."""
    found = [
        _Targets([f"127.0.0.1:{service.metrics_port}"], {"service": service.name})
        for service in stack.services
        if service.metrics_port is not None
    ]
    text = msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"
    if path.exists() and path.read_bytes() == text:
        return
    new = path.with_name(path.name + ".new")
    new.write_bytes(text)
    new.replace(path)
