"""Tools outside that may connect to the embedded NATS: the log has them, the server's users file
is a copy."""

from __future__ import annotations

from vllm_batch import event_tools
from vllm_batch.event_store import jetstream
from vllm_batch.local.home import Home
from vllm_batch.local.nats import reload, write_tools
from vllm_batch.settings import Settings


async def apply_tools(
    home: Home, settings: Settings, nats_pid: int, nats_monitor_port: int
) -> None:
    """Have the running server let those in that have a grant, and cut off those that have none.

    Raises:
        EventStoreUnavailable: the log does not answer.
        StackError: the server is gone, or does not read who may connect.
    """
    async with jetstream.connect(settings, source="cli") as store:
        granted = [one.tool for one in await event_tools.load(store)]
    if write_tools(home, granted):
        await reload(nats_pid, nats_monitor_port)
