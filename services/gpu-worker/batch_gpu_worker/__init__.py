"""The GPU worker: leases chunks, keeps an inference engine busy with them, hands in results."""
