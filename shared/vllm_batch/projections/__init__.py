"""Read models in Postgres: disposable, rebuilt from the log at any time."""
