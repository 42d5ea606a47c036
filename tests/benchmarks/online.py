"""What the way through gateway, NATS and worker costs an online request.

    python -m tests.benchmarks.online

1. Time to first token, streamed, calling an engine's server directly and through the whole path,
   one after the other in turn: the server is the simulated engine behind HTTP. Target: at most 5 ms
   more at the median.
2. Time of a whole answer on an idle system and with a batch that keeps the simulated engine full.
   Target: at most twice as long at the 95th percentile.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import openai
from aiohttp import web

from batch_gpu_worker.engines.simulated import SimulatedEngine
from vllm_batch.local.stack import LocalStack
from vllm_batch.settings import Settings

CHAT = "/v1/chat/completions"
ROUNDS = 400
WARM_UP = 40
TTFT_TARGET_SECONDS = 0.005
SLOTS = 16
LATENCY_SECONDS = 0.25
PROBES = 120
BATCH_LINES = 4000
P95_TARGET_RATIO = 2.0


def body(model: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


async def serve() -> None:
    """Be an engine's server on a free port, and say which."""
    engine = SimulatedEngine(Settings(engine="simulated"))
    await engine.start()

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in await engine.models()]})

    async def chat(request: web.Request) -> web.StreamResponse:
        async with engine.stream(CHAT, await request.read()) as answer:
            response = web.StreamResponse(headers={"content-type": answer.content_type})
            await response.prepare(request)
            async for piece in answer.pieces:
                await response.write(piece)
        return response

    application = web.Application()
    application.router.add_get("/v1/models", models)
    application.router.add_post(CHAT, chat)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def first_token(session: aiohttp.ClientSession, url: str, text: str) -> float:
    """Return the seconds until the first byte of a streamed answer."""
    began = time.perf_counter()
    async with session.post(url, json=body("simulated-model", text, stream=True)) as answer:
        assert answer.status == 200, await answer.read()
        await answer.content.readany()
        seconds = time.perf_counter() - began
        await answer.read()
    return seconds


async def wait_served(session: aiohttp.ClientSession, url: str, model: str) -> None:
    async with asyncio.timeout(30):
        while True:
            async with session.post(url, json=body(model, "there?")) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.05)


async def compare_first_tokens(stack: LocalStack, direct: str) -> bool:
    headers = {"authorization": f"Bearer {stack.api_key}"}
    through = f"{stack.api_url}/chat/completions"
    seconds: dict[str, list[float]] = {"direct": [], "through": []}
    async with aiohttp.ClientSession(headers=headers) as session:
        await wait_served(session, through, "simulated-model")
        for number in range(WARM_UP + ROUNDS):
            for name, url in (("direct", direct), ("through", through)):
                taken = await first_token(session, url, f"{name} {number}")
                if number >= WARM_UP:
                    seconds[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, taken in seconds.items():
        p95 = statistics.quantiles(taken, n=20)[-1]
        print(f"first token, {name:8} p50 {medians[name] * 1e3:6.2f} ms   p95 {p95 * 1e3:6.2f} ms")
    added = medians["through"] - medians["direct"]
    print(f"added at the median: {added * 1e3:.2f} ms (target {TTFT_TARGET_SECONDS * 1e3:g} ms)")
    return added <= TTFT_TARGET_SECONDS


async def probe(stack: LocalStack) -> list[float]:
    """Return the seconds of whole answers, asked for one after the other."""
    url, model = f"{stack.api_url}/chat/completions", "simulated-model"
    headers = {"authorization": f"Bearer {stack.api_key}"}
    seconds = []
    async with aiohttp.ClientSession(headers=headers) as session:
        await wait_served(session, url, model)
        for number in range(PROBES):
            began = time.perf_counter()
            async with session.post(url, json=body(model, f"probe {number}")) as answer:
                assert answer.status == 200, await answer.read()
                await answer.read()
            seconds.append(time.perf_counter() - began)
    return seconds


async def compare_loads(stack: LocalStack) -> bool:
    idle = statistics.quantiles(await probe(stack), n=20)[-1]
    lines = (
        {
            "custom_id": str(n),
            "method": "POST",
            "url": CHAT,
            "body": body("simulated-model", str(n)),
        }
        for n in range(BATCH_LINES)
    )
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    async with openai.AsyncOpenAI(base_url=stack.api_url, api_key=stack.api_key) as client:
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h"
        )
        while batch.status != "in_progress" or not (batch.request_counts or 0):
            await asyncio.sleep(0.1)
            batch = await client.batches.retrieve(batch.id)
        busy = statistics.quantiles(await probe(stack), n=20)[-1]
        after = await client.batches.retrieve(batch.id)
        assert after.status == "in_progress", "the batch ended before the probes"
    print(f"whole answer, p95: idle {idle * 1e3:.0f} ms, beside a batch {busy * 1e3:.0f} ms")
    print(f"ratio {busy / idle:.2f} (target {P95_TARGET_RATIO:g})")
    return busy / idle <= P95_TARGET_RATIO


def main() -> int:
    command = [sys.executable, "-m", "tests.benchmarks.online", "serve"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        direct = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        with tempfile.TemporaryDirectory() as folder:
            remote = {"engine_url": direct, "model_name": "simulated-model"}
            with LocalStack(
                Path(folder) / "a", only={"nats", "api", "worker"}, engine="openai",
                settings_overrides=remote,
            ) as stack:  # fmt: skip
                near = asyncio.run(compare_first_tokens(stack, f"{direct}/chat/completions"))
            slow = {"simulated_latency_seconds": LATENCY_SECONDS, "engine_max_num_seqs": SLOTS}
            with LocalStack(
                Path(folder) / "b", engine="simulated", settings_overrides=slow
            ) as stack:
                fair = asyncio.run(compare_loads(stack))
    finally:
        server.kill()
        server.wait()
    return 0 if near and fair else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    sys.exit(main())
