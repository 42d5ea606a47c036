"""The command `vllm-batch`: finds its groups by name, turns errors into one clear line.

Every module of this package that has ``app`` (a Typer group, named like the module) or
``register(app)`` (commands of its own) takes part; nothing else has to know of it.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line. Exit codes: see ``vllm-batch --help``."""
    from vllm_batch.cli import application, output

    if "--debug" in sys.argv[1:]:
        os.environ["VLLM_BATCH_DEBUG"] = "1"
        sys.argv.remove("--debug")
    try:
        application.build()(prog_name="vllm-batch")
    except KeyboardInterrupt:
        output.warn("interrupted")
        sys.exit(output.ExitCode.INTERRUPTED)
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # the outermost frame of the program
        if os.environ.get("VLLM_BATCH_DEBUG"):
            raise
        sys.exit(output.explain(error))
