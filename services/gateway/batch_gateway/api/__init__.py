"""The HTTP API: OpenAI's Files, Uploads, Batches and Models, and what goes beyond them."""
