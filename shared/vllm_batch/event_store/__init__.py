"""Appending to the log with optimistic concurrency, reading it back, following it."""

from vllm_batch.event_store.protocol import EventStore, append_decided

__all__ = ["EventStore", "append_decided"]
