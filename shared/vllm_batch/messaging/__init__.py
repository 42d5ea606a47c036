"""Delivery: subjects, streams and consumers as data, connections, and the one place that acks."""
