"""``python -m batch_watchdog``: the watchdog as a process."""

from __future__ import annotations

import sys

from batch_watchdog import main
from vllm_batch import process

if __name__ == "__main__":
    sys.exit(process.run("watchdog", main.run))
