"""The vocabulary of vllm-batch: events, rules, event store, projections. It imports no service."""
