"""The embedded stack: NATS, Postgres and every service on one machine under one supervisor."""
