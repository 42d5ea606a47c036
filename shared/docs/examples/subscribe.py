"""Print every batch that completes: python subscribe.py URL (`vllm-batch events grant` has it)"""

import asyncio
import json
import sys

import nats


async def main() -> None:
    client = await nats.connect(sys.argv[1])
    batches = await client.subscribe("job.completed.*")
    async for message in batches.messages:
        event = json.loads(message.data)  # a CloudEvent
        print(
            event["subject"], event["data"]["completed"], "of", event["data"]["total"], flush=True
        )


asyncio.run(main())
