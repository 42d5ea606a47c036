"""Outgoing webhooks: who wants what, how it is signed, where it may go, and its delivery."""
