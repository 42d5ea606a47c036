"""Real Label Studio for tests: installed once per machine, migrated once, a copy for each session.

The environment and the migrated database are in the cache folder (beside the engine's), under a
lock: whoever comes second waits. A copy answers after about three seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from vllm_batch.local import ports
from vllm_batch.local.engine_env import cache_dir, run_installer, waiting_lock

VERSION = "1.23.2"
COLD_SECONDS = 120.0
STOP_SECONDS = 10.0
WEBHOOK_SECONDS = 30.0
"""How long it waits for an answer to a webhook; 1 s unless it is told otherwise, as here."""
USER = "annotator@example.com"
CHOICES = (
    '<View><Text name="text" value="$text"/><Choices name="sentiment" toName="text" '
    'choice="single"><Choice value="Positive"/><Choice value="Negative"/></Choices></View>'
)


@dataclass(frozen=True)
class Template:
    """An installed Label Studio and a migrated database with one user."""

    program: Path
    data: Path
    token: str
    password: str


def ensure_template() -> Template:
    """Install and migrate unless that was done; takes two minutes the first time."""
    folder = cache_dir() / f"label-studio-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    data, stamp = folder / "template", folder / "ready.json"
    program = folder / "bin" / "label-studio"
    with waiting_lock(folder.with_name(folder.name + ".lock"), "Label Studio", print):
        if not stamp.exists():
            log = folder.with_name(folder.name + ".log")
            if not (folder / "bin" / "python").exists():
                run_installer((sys.executable, "-m", "venv", str(folder)), log, print)
            python = str(folder / "bin" / "python")
            wheel = f"label-studio=={VERSION}"
            run_installer((python, "-m", "pip", "install", "--no-input", wheel), log, print)
            shutil.rmtree(data, ignore_errors=True)
            made = Template(program, data, secrets.token_hex(20), secrets.token_urlsafe(12))
            with LabelStudio(made, data):
                pass
            stamp.write_text(json.dumps({"token": made.token, "password": made.password}))
        found = json.loads(stamp.read_text())
    return Template(program, data, found["token"], found["password"])


class LabelStudio:
    """A running Label Studio. ``stop`` and ``start`` again keep its data and its port."""

    def __init__(
        self, template: Template, data: Path, *, webhook_seconds: float = WEBHOOK_SECONDS
    ) -> None:
        self._webhook_seconds = webhook_seconds
        self._template = template
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None
        self.port = ports.pick(None)
        self.token = template.token
        self.password = template.password
        self.client = httpx.Client(
            base_url=self.url, headers={"authorization": f"Token {self.token}"}, timeout=60
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_text(self) -> str:
        return self._data.with_suffix(".log").read_text(errors="replace")

    def start(self) -> None:
        command = [str(self._template.program), "start", "--no-browser"]
        command += ["--internal-host", "127.0.0.1", "--port", str(self.port)]
        with self._data.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--data-dir", str(self._data)],
                env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + COLD_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                # A port that was taken meanwhile would silently become another one.
                if self.client.get("/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.1)
        self.stop()
        raise TimeoutError(f"Label Studio did not start:\n{self.log_text[-2000:]}")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
                return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self.client.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call its API as the user; raises for an error answer."""
        answer = self.client.request(method, path, json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def make_project(self, title: str, label_config: str = CHOICES) -> str:
        """Make a project; return its id."""
        made = self.call("POST", "/api/projects/", {"title": title, "label_config": label_config})
        return str(made["id"])

    def make_tasks(self, project: str, data: list[dict[str, Any]]) -> list[int]:
        """Import tasks; return their ids."""
        path = f"/api/projects/{project}/import?return_task_ids=true"
        ids: list[int] = self.call("POST", path, [{"data": one} for one in data])["task_ids"]
        return ids

    def annotate(self, task: int, result: list[dict[str, Any]], **fields: Any) -> int:
        """Hand in an annotation; return its id."""
        body = {"result": result, **fields}
        return int(self.call("POST", f"/api/tasks/{task}/annotations/", body)["id"])

    def choose(self, task: int, choice: str, **fields: Any) -> int:
        """Annotate a task of a `CHOICES` project."""
        value = {"choices": [choice]}
        region = {"from_name": "sentiment", "to_name": "text", "type": "choices", "value": value}
        return self.annotate(task, [region], **fields)

    def _environment(self) -> dict[str, str]:
        ours = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_BATCH_")}
        return ours | {
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            "SSRF_PROTECTION_ENABLED": "false",
            "ML_BLOCK_LOCAL_IP": "false",
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "WEBHOOK_TIMEOUT": str(self._webhook_seconds),
            "LABEL_STUDIO_USERNAME": USER,
            "LABEL_STUDIO_PASSWORD": self.password,
            "LABEL_STUDIO_USER_TOKEN": self.token,
        }


def copy_of(
    template: Template, folder: Path, *, webhook_seconds: float = WEBHOOK_SECONDS
) -> LabelStudio:
    """Return a Label Studio of its own in ``folder``, not started yet."""
    data = folder / "label-studio"
    shutil.copytree(template.data, data)
    return LabelStudio(template, data, webhook_seconds=webhook_seconds)
