"""A batch whose files and segments live in S3, as they do when workers are on other machines."""

from __future__ import annotations

from pathlib import Path

import openai
from tests.conftest import S3Bucket
from tests.e2e.conftest import Round

from vllm_batch.local.stack import LocalStack


def test_a_batch_over_s3(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    stack = LocalStack(
        tmp_path / "home",
        engine="simulated",
        workers=2,
        settings_overrides={"blob_url": s3_bucket.url},
        extra_env=s3_bucket.environment,
    )
    with stack:
        client = openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key, max_retries=0)
        with client:
            shop = Round(stack, client)
            lines = [
                shop.line(f"r-{number}", "[[sim:400]]" if number % 10 == 0 else "hello")
                for number in range(1000)
            ]
            batch = shop.run(lines)
            assert batch.status == "completed"
            output, errors = shop.rows(batch.output_file_id), shop.rows(batch.error_file_id)
            assert (len(output), len(errors)) == (900, 100)
            assert client.files.delete(str(batch.output_file_id)).deleted
    assert not list((tmp_path / "home").glob("blobs/**/*"))
