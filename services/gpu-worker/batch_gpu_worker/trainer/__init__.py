"""The trainer: fine-tunes adapters in a process of the engine's environment, one run at a time."""
