"""When a project's model is trained, and what becomes of it: measured, promoted, rejected."""
