"""The admin web UI: everything that happens, live, and the buttons that change it."""
