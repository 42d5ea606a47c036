"""The commands that are clients of the API, and streams of a batch that really runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from vllm_batch.cli.output import ExitCode
from vllm_batch.local.stack import LocalStack

REQUESTS = 60


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    overrides = {
        "simulated_latency_seconds": 0.1,
        "engine_max_num_seqs": 10,
        "in_flight_factor": 1,
        "chunk_requests_max": 20,
        "flush_seconds": 0.05,
    }
    home = tmp_path_factory.mktemp("cli home") / "stack"
    with LocalStack(home, settings_overrides=overrides) as running:
        yield running


@pytest.fixture
def batch_file(stack: LocalStack, tmp_path: Path) -> Path:
    path = tmp_path / "a batch.jsonl"
    lines = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": stack.model_name, "prompt": f"say {number}"},
        }
        for number in range(REQUESTS)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


class Answer:
    """What a command said and how it ended."""

    def __init__(
        self, stack: LocalStack | None, *arguments: str | Path, **environment: str
    ) -> None:
        command = [str(Path(sys.executable).with_name("vllm-batch")), *map(str, arguments)]
        if stack is not None:
            command += ["--home", str(stack.home.root)]
        done = subprocess.run(
            command, capture_output=True, env=os.environ | environment, timeout=60, check=False
        )
        self.code = ExitCode(done.returncode)
        self.out = done.stdout.decode()
        self.errors = done.stderr.decode()
        assert "Traceback" not in self.errors

    @property
    def data(self) -> dict[str, object]:
        read: dict[str, object] = json.loads(self.out)
        return read


def test_a_batch_from_submit_to_results(
    stack: LocalStack, batch_file: Path, tmp_path: Path
) -> None:
    submitted = Answer(stack, "batch", "submit", batch_file, "-m", "run=a=b", "--wait", "--json")
    assert submitted.code is ExitCode.DONE
    batch = submitted.data
    assert (batch["status"], batch["endpoint"]) == ("completed", "/v1/completions")
    assert batch["metadata"] == {"run": "a=b"}
    shown = Answer(stack, "batch", "show", str(batch["id"]))
    assert "60/60" in shown.out
    listed = Answer(stack, "batch", "list", "-n", "1").out.splitlines()
    assert [line.split("\t")[:3] for line in listed] == [[batch["id"], "completed", "60/60"]]
    printed = Answer(stack, "batch", "results", str(batch["id"]))
    ids = [json.loads(line)["custom_id"] for line in printed.out.splitlines()]
    assert ids == [f"r{number}" for number in range(REQUESTS)]
    target, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    saved = Answer(
        stack, "batch", "results", str(batch["id"]), "-o", target, "-e", errors, "--json"
    )
    assert saved.data["output"] == str(target)
    assert target.read_text() == printed.out
    assert errors.read_bytes() == b""
    assert {path.name for path in tmp_path.iterdir()} == {
        "a batch.jsonl", "out.jsonl", "errors.jsonl",
    }  # fmt: skip
    too_late = Answer(stack, "batch", "cancel", str(batch["id"]))
    assert too_late.code is ExitCode.FAILED
    assert "cannot be cancelled" in too_late.errors


def test_a_running_batch_is_followed_and_cancelled(stack: LocalStack, batch_file: Path) -> None:
    first = Answer(stack, "batch", "submit", batch_file)
    followed = Answer(stack, "batch", "results", first.out.strip(), "--follow")
    assert followed.code is ExitCode.DONE
    lines = [json.loads(line) for line in followed.out.splitlines()]
    assert {line["custom_id"] for line in lines} == {f"r{n}" for n in range(REQUESTS)}
    assert len(lines) == REQUESTS
    watched = Answer(stack, "batch", "watch", first.out.strip(), "--json")
    assert (watched.code, watched.data["status"]) == (ExitCode.DONE, "completed")
    large = batch_file.with_name("large.jsonl")
    large.write_text("".join(
        line.replace('"r', f'"{copy}-r') + "\n"
        for copy in range(100) for line in batch_file.read_text().splitlines()
    ))  # fmt: skip
    second = Answer(stack, "batch", "submit", large, "--priority", "-5").out.strip()
    cancelled = Answer(stack, "batch", "cancel", second, "--wait", "--json")
    assert (cancelled.code, cancelled.data["status"]) == (ExitCode.DONE, "cancelled")
    assert Answer(stack, "batch", "watch", second).code is ExitCode.UNSUCCESSFUL


def test_a_failed_batch_is_said_with_its_lines(stack: LocalStack, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('\n{"custom_id": 7}\n')
    failed = Answer(stack, "batch", "submit", broken, "--wait")
    assert failed.code is ExitCode.UNSUCCESSFUL
    assert "is failed" in failed.out
    assert "line 2" in failed.errors
    results = Answer(stack, "batch", "results", failed.out.split()[0])
    assert results.code is ExitCode.UNSUCCESSFUL


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["batch", "show", "batch_unknown"], ExitCode.NOT_FOUND),
        (["batch", "watch", "batch_unknown"], ExitCode.NOT_FOUND),
        (["batch", "results", "batch_unknown"], ExitCode.NOT_FOUND),
        (["batch", "submit", "no such file.jsonl"], ExitCode.NOT_FOUND),
        (["batch", "submit", "file-unknown"], ExitCode.FAILED),
        (["batch", "submit", "x", "-m", "no pair"], ExitCode.FAILED),
        (["batch", "results", "batch_unknown", "--json"], ExitCode.USAGE),
        (["batch", "list", "-n", "0"], ExitCode.USAGE),
        (["file", "show", "file-unknown"], ExitCode.NOT_FOUND),
        (["file", "delete", "file-unknown"], ExitCode.NOT_FOUND),
        (["file", "download", "file-unknown", "-o", "never written"], ExitCode.NOT_FOUND),
        (["keys", "revoke", "key_unknown"], ExitCode.NOT_FOUND),
        (["keys", "revoke", "no.token"], ExitCode.NOT_FOUND),
        (["keys", "create", "--project", "a b"], ExitCode.USAGE),
    ],
)
def test_what_goes_wrong_has_its_exit_code(
    stack: LocalStack, arguments: list[str], code: ExitCode
) -> None:
    answer = Answer(stack, *arguments)
    assert answer.code is code
    assert answer.errors.strip()
    assert not Path("never written").exists()


def test_files(stack: LocalStack, tmp_path: Path) -> None:
    path = tmp_path / "some data.bin"
    path.write_bytes(os.urandom(100_000))
    made = Answer(
        stack, "file", "upload", path, "--purpose", "evals", "--expires-after", "3600", "--json"
    ).data
    assert (made["filename"], made["bytes"]) == ("some data.bin", 100_000)
    assert made["id"] in Answer(stack, "file", "list", "--purpose", "evals").out
    assert "some data.bin" in Answer(stack, "file", "show", str(made["id"])).out
    target = tmp_path / "back.bin"
    assert Answer(stack, "file", "download", str(made["id"]), "-o", target).code is ExitCode.DONE
    assert target.read_bytes() == path.read_bytes()
    assert Answer(stack, "file", "delete", str(made["id"])).code is ExitCode.DONE
    assert Answer(stack, "file", "show", str(made["id"])).code is ExitCode.NOT_FOUND


def test_keys_open_their_project_at_once(stack: LocalStack) -> None:
    made = Answer(stack, "keys", "create", "--project", "other", "--name", "ci", "--json").data
    environment = {"OPENAI_BASE_URL": stack.api_url, "OPENAI_API_KEY": str(made["key"])}
    assert Answer(None, "batch", "list", "--json", **environment).out.strip() == "[]"
    listed = json.loads(Answer(stack, "keys", "list", "--json").out)
    (found,) = [key for key in listed if key["id"] == made["id"]]
    assert (found["project"], found["name"], found["revoked_at"]) == ("other", "ci", None)
    assert "sha256" not in found
    assert str(made["key"]) not in Answer(stack, "keys", "list").out
    assert Answer(stack, "keys", "revoke", str(made["id"])).code is ExitCode.DONE
    assert Answer(stack, "keys", "revoke", str(made["id"])).code is ExitCode.DONE
    refused = Answer(None, "batch", "list", **environment)
    assert refused.code is ExitCode.FAILED
    assert "API key" in refused.errors


def test_no_api_has_its_exit_code(tmp_path: Path) -> None:
    nowhere = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "x"}
    for environment in (nowhere, {"VLLM_BATCH_HOME": str(tmp_path / "none")}):
        answer = Answer(None, "batch", "show", "batch_x", **environment)
        assert answer.code is ExitCode.NOT_RUNNING
        assert "vllm-batch" in answer.errors


def test_a_key_alone_is_not_sent_anywhere(tmp_path: Path) -> None:
    answer = Answer(
        None, "batch", "list", OPENAI_API_KEY="sk-other", VLLM_BATCH_HOME=str(tmp_path / "none")
    )
    assert answer.code is ExitCode.NOT_RUNNING


def test_the_streams_agree_with_the_files(stack: LocalStack, batch_file: Path) -> None:
    client = openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
    headers = {"authorization": f"Bearer {stack.api_key}"}
    with client, httpx2.Client(base_url=stack.api_url, headers=headers, timeout=30) as http:
        *lines, last = batch_file.read_text().splitlines()
        slow = json.loads(last)
        slow["body"]["prompt"] += " [[sim:sleep=5]]"  # the batch runs on while the stream is read
        batch_file.write_text("\n".join([*lines, json.dumps(slow)]))
        file = client.files.create(file=batch_file, purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        early, cursor = [], 0
        with http.stream("GET", f"/batches/{batch.id}/results") as answer:
            for line in answer.iter_lines():
                early.append(line)
                cursor += 1
                if cursor == 25:
                    break
        still_running = client.batches.retrieve(batch.id).status
        rest = http.get(f"/batches/{batch.id}/results", params={"cursor": cursor}).text
        events = http.get(f"/batches/{batch.id}/events").text
        done = client.batches.retrieve(batch.id)
        assert done.output_file_id is not None
        output = client.files.content(done.output_file_id).text.splitlines()
    assert still_running == "in_progress"
    assert sorted(early + rest.splitlines()) == sorted(output)
    names = [line for line in events.splitlines() if line.startswith("event: ")]
    assert (names[0], names[-1]) == ("event: job.submitted", "event: job.completed")
    assert names.count("event: chunk.completed") == 3
