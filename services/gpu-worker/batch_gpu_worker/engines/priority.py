"""vLLM's `priority` of a request: lower runs sooner, and it is never a user's to choose.

Batch requests go without one, which is 0, so the hot path stays as it is; online requests get
`ONLINE_PRIORITY`. vLLM serves by it only when started with ``--scheduling-policy priority``.
"""

from __future__ import annotations

import msgspec

BATCH_PRIORITY = 0
ONLINE_PRIORITY = -1
SCHEDULING_ARGUMENTS = ("--scheduling-policy", "priority")
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_priority(body: bytes, priority: int) -> bytes:
    """Return a request body with this priority instead of its own; what is no JSON object stays as
    it is, for the engine to refuse."""
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body
    fields["priority"] = msgspec.Raw(b"%d" % priority)
    return msgspec.json.encode(fields)
