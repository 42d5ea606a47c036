-- What batches took: time of engines and GPUs, and energy. Nobody measured it before, so 0 is right
-- for what is there already.

ALTER TABLE chunk
    ADD COLUMN engine_seconds double precision NOT NULL DEFAULT 0,
    ADD COLUMN gpu_seconds double precision NOT NULL DEFAULT 0,
    ADD COLUMN energy_joules double precision NOT NULL DEFAULT 0;
ALTER TABLE chunk
    ALTER COLUMN engine_seconds DROP DEFAULT,
    ALTER COLUMN gpu_seconds DROP DEFAULT,
    ALTER COLUMN energy_joules DROP DEFAULT;

DROP VIEW usage_line;
-- A line per chunk that has results, and per report of online requests, at the price of its time.
CREATE VIEW usage_line AS
SELECT line.*,
    (line.input_tokens * coalesce(price.input_per_million, 0)
        + line.output_tokens * coalesce(price.output_per_million, 0)) / 1e6 AS cost
FROM (
    SELECT job.project, job.key_id, chunk.model, 'batch' AS kind, chunk.job_id, chunk.used_at,
        chunk.completed::bigint AS requests, chunk.failed::bigint AS failed,
        chunk.input_tokens, chunk.cached_tokens, chunk.output_tokens, chunk.reasoning_tokens,
        chunk.engine_seconds, chunk.gpu_seconds, chunk.energy_joules
    FROM chunk JOIN job USING (job_id) WHERE chunk.used_at IS NOT NULL
    UNION ALL
    SELECT project, key_id, model, 'online', NULL, used_at, requests, failed,
        input_tokens, cached_tokens, output_tokens, reasoning_tokens, 0, 0, 0
    FROM online_usage
) AS line
LEFT JOIN model_price AS price ON price.model = line.model
    AND price.since <= line.used_at AND (price.until IS NULL OR line.used_at < price.until);
