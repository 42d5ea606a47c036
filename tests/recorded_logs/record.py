"""Records the log of a release: run once per release, from a clean checkout of it.

    python -m tests.recorded_logs.record 0.1.0

A real stack on the simulated engine does a bit of everything: batches that complete, fail, are
cancelled, expire and are retired, workers that are killed, uploads, keys, limits, webhooks, online
requests, a purge. What takes other programs (Label Studio, GPUs) is appended as it would be
recorded. The folder has the log as a backup, and the read models of this release: every later one
has to come to the same. Folders are only ever added.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path

import openai

from tests.e2e.conftest import Round, jsonl
from tests.integration.test_api_cli import Answer
from tests.recorded_logs import facts, read_models
from vllm_batch import backup
from vllm_batch.blobs import open_blobs
from vllm_batch.event_store import jetstream
from vllm_batch.events import EVENT_TYPES
from vllm_batch.local.stack import LocalStack

FOLDER = Path(__file__).parent
RETIRED_SECONDS = 20
SETTINGS = {
    "batch_retention_seconds": RETIRED_SECONDS,
    "cancel_grace_seconds": 1.0,
    "chunk_requests_max": 5,
    "engine_max_num_seqs": 4,
    "flush_seconds": 0.1,
    "lease_seconds": 3.0,
    "usage_flush_seconds": 0.5,
    "webhook_networks_allowed": ["127.0.0.0/8"],
    "webhook_retry_seconds": 0.3,
    "webhook_retry_seconds_max": 0.5,
}


def work(stack: LocalStack, client: openai.OpenAI) -> None:
    """Do what clients do."""
    around = Round(stack, client)
    slow = [around.line(f"s{n}", "[[sim:sleep=200]]") for n in range(3)]
    expiring = around.submit(jsonl([around.line("quick"), *slow]), window="1m")
    endpoint = client.webhooks.create(
        name="nobody", url="http://127.0.0.1:1/hook", event_types=["batch.completed"]
    )
    around.run([around.line(f"r{n}", "[[sim:400]]" if n == 3 else "Hi") for n in range(12)])
    around.wait(around.submit(b'{"custom_id": "no request"}\nnonsense\n'))
    killed = around.submit(jsonl([around.line(f"k{n}", "[[sim:sleep=0.3]]") for n in range(30)]))
    wait_for_results(client, killed.id)
    stack.service("worker-1").kill()
    around.wait(killed)
    cancelled = around.submit(jsonl(slow))
    client.batches.cancel(cancelled.id)
    around.wait(cancelled)
    client.chat.completions.create(
        model=stack.model_name, messages=[{"role": "user", "content": "Hello"}]
    )
    uploads(client)
    webhooks(client, endpoint.id)
    around.wait(expiring, seconds=120)
    time.sleep(RETIRED_SECONDS + 5)


def wait_for_results(client: openai.OpenAI, batch: str) -> None:
    """Wait until some of a batch is done."""
    while not (counts := client.batches.retrieve(batch).request_counts) or not counts.completed:
        time.sleep(0.05)


def uploads(client: openai.OpenAI) -> None:
    """One that is completed and one that is cancelled; a file that is deleted."""
    made = [
        client.uploads.create(bytes=2, filename="u", mime_type="text/plain", purpose="user_data")
        for _ in range(2)
    ]
    part = client.uploads.parts.create(upload_id=made[0].id, data=b"hi")
    whole = client.uploads.complete(made[0].id, part_ids=[part.id])
    assert whole.file is not None
    client.files.delete(whole.file.id)
    client.uploads.cancel(made[1].id)


def webhooks(client: openai.OpenAI, endpoint: str) -> None:
    """An endpoint that is disabled, enabled, changed and deleted, and a delivery again."""
    while client.webhooks.retrieve(endpoint).to_dict()["status"] == "active":
        time.sleep(0.1)
    path = f"/webhook_endpoints/{endpoint}"
    delivery = client.get(f"{path}/deliveries", cast_to=dict)["data"][0]["id"]
    client.post(f"{path}/enable", cast_to=dict)
    client.post(f"{path}/deliveries/{delivery}/replay", cast_to=dict)
    client.webhooks.update(endpoint, name="nobody at all")
    client.webhooks.rotate_secret(endpoint, keep_old_secret_active_for_24_hours=True)
    client.webhooks.delete(endpoint)


def manage(stack: LocalStack) -> None:
    """Do what operators do."""

    def run(*arguments: str) -> Answer:
        answer = Answer(stack, *arguments)
        assert answer.code == 0, answer.errors
        return answer

    made = [run("keys", "create", "--project", name, "--json").data for name in ("etl", "doomed")]
    run("keys", "rotate", str(made[0]["id"]))
    run("keys", "revoke", str(made[0]["id"]))
    run("project", "limit", "etl", "--requests-per-minute", "60", "--budget-per-month", "5")
    run("project", "purge", "doomed", "--yes")
    run("worker", "kill", "worker-1", "--yes")


async def store_log(stack: LocalStack, folder: Path) -> set[str]:
    """Append the rest, write the folder; return the types of event that are in it."""
    settings = stack.settings
    async with jetstream.connect(settings, source="recorder") as store:
        await facts.append_all(store)
        nothing = open_blobs((stack.home.root / "no blobs").as_uri())
        await backup.create(store, nothing, folder, progress=print)
        types = set()
        async for batch in store.read(">"):
            types |= {recorded.event.TYPE for recorded in batch}
        rows = await read_models.replay(store, settings)
    text = json.dumps(rows, indent=1, sort_keys=True)
    (folder / read_models.NAME).write_text(text + "\n")
    return types


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("release")
    folder = FOLDER / parser.parse_args().release
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as root:
        home = Path(root) / "home"
        with LocalStack(home, settings_overrides=SETTINGS) as stack:
            manage(stack)
            with openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key) as client:
                work(stack, client)
        with LocalStack(home, only={"nats", "postgres"}) as stack:
            types = asyncio.run(store_log(stack, folder))
    print(
        f"wrote {folder}; types of event that are not in it: {sorted(EVENT_TYPES.keys() - types)}"
    )


if __name__ == "__main__":
    main()
