"""``python -m vllm_batch.cli``: the same as the command ``vllm-batch``."""

from vllm_batch.cli import main

if __name__ == "__main__":
    main()
