"""``python -m batch_labelstudio``: the Label Studio bridge as a process."""

from __future__ import annotations

import sys

from batch_labelstudio import main
from vllm_batch import process

if __name__ == "__main__":
    sys.exit(process.run("labelstudio-bridge", main.run))
