"""``python -m batch_gateway api|orchestrator``: one role of the gateway as a process."""

from __future__ import annotations

import argparse
import sys

from vllm_batch import process


def main() -> int:
    """Run the role until it is told to stop; 1 where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m batch_gateway", description=__doc__)
    parser.add_argument("role", choices=("api", "orchestrator"))
    role = parser.parse_args().role
    if role == "api":
        from batch_gateway.api import server

        return process.run(role, server.run)
    from batch_gateway.orchestrator import main as orchestrator

    return process.run(role, orchestrator.run)


if __name__ == "__main__":
    sys.exit(main())
