"""Settings by the part of the system that reads them; `vllm_batch.settings.Settings` has them
all."""
