"""An engine with the stand-in images and ours, built once; deployments to do things to."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.compose import stand_ins
from tests.compose.deployment import COMPOSE, Deployment
from tests.docker_engine import DockerEngine, docker_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerEngine]:
    if not Path(COMPOSE).exists():
        pytest.skip("Docker Compose is not installed beside this Python")
    with docker_engine(networks=True) as started:
        folder = Path(tempfile.mkdtemp(prefix="images-"))
        try:
            stand_ins.build(started, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        yield started


@pytest.fixture(scope="session")
def built(engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> DockerEngine:
    """The engine with our images, too.

    They are built once: builds side by side leave twins of their first steps in the classic
    builder's cache, among which a second build of the same finds the wrong ones.
    """
    Deployment(engine, tmp_path_factory.mktemp("built")).compose("build", "--quiet")
    return engine


@pytest.fixture(scope="module")
def deployment(
    built: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """The whole service, built and started as a user does it."""
    made = Deployment(built, tmp_path_factory.mktemp("deployment"))
    with running(made):
        yield made


@pytest.fixture(scope="module")
def cluster(built: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The same with three NATS servers and two workers."""
    made = Deployment(built, tmp_path_factory.mktemp("cluster"), cluster=True)
    with running(made):
        yield made


@contextmanager
def running(deployment: Deployment) -> Iterator[None]:
    """Start and in the end remove it."""
    try:
        deployment.up()
        yield
    finally:
        deployment.compose("down", "--volumes", "--timeout", "1")
