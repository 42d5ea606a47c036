"""``python -m batch_admin``: the admin web UI as a process."""

from __future__ import annotations

import sys

from batch_admin import main
from vllm_batch import process

if __name__ == "__main__":
    sys.exit(process.run("admin-ui", main.run))
