"""Makes two models for tests out of a small one. Run as a script inside the engine's environment.

``make_models.py BASE TARGET ANSWER`` writes ``TARGET/tiny``, a Llama with two narrow layers, random
weights and the tokenizer of the base, and ``TARGET/adapter``, a LoRA adapter of the base that is
trained for a few steps to say ANSWER whatever it is asked, in the format of peft.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

QUESTIONS = ("What is the capital of France?", "Count to three.", "Say hello.", "Who are you?")
RANK = 8
ALPHA = 32
STEPS = 16
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


class Lora(torch.nn.Module):
    """A linear layer with a trainable addition of low rank."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.a = torch.nn.Parameter(torch.randn(RANK, layer.in_features) * 0.02)
        self.b = torch.nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.layer(x) + (x @ self.a.T @ self.b.T) * (ALPHA / RANK)
        return added


def make_tiny(base: str, target: Path) -> None:
    """Write a model that answers nonsense, at once."""
    torch.manual_seed(7)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def make_adapter(base: str, target: Path, answer: str) -> None:
    """Train an adapter until the base gives this answer to everything, and write it."""
    torch.manual_seed(7)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.requires_grad_(False)
    added: dict[str, Lora] = {}
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in TARGETS:
            added[name] = Lora(module)
            setattr(model.get_submodule(parent), last, added[name])
    examples = [_example(tokenizer, question, answer) for question in QUESTIONS]
    parameters = [p for one in added.values() for p in (one.a, one.b)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for step in range(STEPS):
        tokens, labels = examples[step % len(examples)]
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.3f}", flush=True)
    _write(base, target, added)


def _example(tokenizer: Any, question: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    asked = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    before = tokenizer(prompt, return_tensors="pt").input_ids
    after = tokenizer(f"{answer}<|im_end|>", return_tensors="pt").input_ids
    tokens = torch.cat([before, after], dim=1)
    labels = tokens.clone()
    labels[:, : before.shape[1]] = -100
    return tokens, labels


def _write(base: str, target: Path, added: dict[str, Lora]) -> None:
    target.mkdir(parents=True)
    weights = {}
    for name, lora in added.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = lora.a.detach().contiguous()
        weights[f"base_model.model.{name}.lora_B.weight"] = lora.b.detach().contiguous()
    save_file(weights, target / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none",
        "target_modules": list(TARGETS),
    }  # fmt: skip
    (target / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    make_tiny(sys.argv[1], Path(sys.argv[2]) / "tiny")
    make_adapter(sys.argv[1], Path(sys.argv[2]) / "adapter", sys.argv[3])
