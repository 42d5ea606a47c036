"""Fine-tunes a LoRA adapter. A script, run by the Python of the engine's environment.

``fine_tune.py JOB.json``: a `Job` as JSON. Writes the adapter into ``output`` and a line of JSON
per step on standard output: ``{"step", "steps", "epoch", "loss", "validation_loss"}``. Imports
nothing of the services: peft, trl and torch live with the engine.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TARGETS = "all-linear"


@dataclass(frozen=True)
class Job:
    """What to train. ``train`` and ``validation``: JSONL with ``messages``, the last of which is
    what the model should have said. ``memory_bytes_max`` bounds the address space; 0: not."""

    base: str
    train: str
    validation: str
    output: str
    rank: int
    epochs: int
    batch_examples: int
    learning_rate: float
    tokens_max: int
    seed: int
    memory_bytes_max: int


def main(path: str) -> None:
    """Train and save the adapter."""
    job = Job(**json.loads(Path(path).read_text(encoding="utf-8")))
    if job.memory_bytes_max:
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory_bytes_max, job.memory_bytes_max))
    os.environ.setdefault("HF_HUB_OFFLINE", "1" if Path(job.base).is_dir() else "0")
    # On shared cores (vLLM on a CPU) threads that spin at barriers wait for those that do not run.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    report = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no report
    trainer = _trainer(job, report)
    trainer.train()
    trainer.model.save_pretrained(job.output)


def finite(loss: Any) -> float | None:
    """Return a loss as JSON can say it: one that is no number (a training that has diverged, no
    token to learn) is None."""
    return float(loss) if loss is not None and math.isfinite(loss) else None


def _examples(path: str) -> list[dict[str, Any]]:
    """Return prompts and completions: the loss counts only what the model says itself."""
    examples = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        *asked, answer = json.loads(line)["messages"]
        examples.append({"prompt": asked, "completion": [answer]})
    return examples


def _trainer(job: Job, report: Any) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    class Reports(TrainerCallback):  # type: ignore[misc]
        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any, **_: Any) -> None:
            if "loss" in logs or "eval_loss" in logs:
                line = {
                    "step": state.global_step, "steps": state.max_steps, "epoch": state.epoch,
                    "loss": finite(logs.get("loss")),
                    "validation_loss": finite(logs.get("eval_loss")),
                }  # fmt: skip
                report.write(json.dumps(line) + "\n")

    set_seed(job.seed)
    on_gpu = torch.cuda.is_available()
    held_back = _examples(job.validation)
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            job.base, dtype=torch.bfloat16 if on_gpu else torch.float32
        ),
        processing_class=AutoTokenizer.from_pretrained(job.base),
        train_dataset=Dataset.from_list(_examples(job.train)),
        eval_dataset=Dataset.from_list(held_back) if held_back else None,
        peft_config=LoraConfig(
            r=job.rank, lora_alpha=2 * job.rank, target_modules=_TARGETS, task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=job.output,
            num_train_epochs=job.epochs,
            per_device_train_batch_size=job.batch_examples,
            learning_rate=job.learning_rate,
            max_length=job.tokens_max,
            seed=job.seed,
            data_seed=job.seed,
            logging_steps=1,
            eval_strategy="epoch" if held_back else "no",
            save_strategy="no",
            report_to=[],
            bf16=on_gpu,
            use_cpu=not on_gpu,
            gradient_checkpointing=on_gpu,
            dataloader_pin_memory=on_gpu,
            disable_tqdm=True,
        ),
        callbacks=[Reports()],
    )


if __name__ == "__main__":
    main(sys.argv[1])
