-- Who used what, when, and what it cost. The tables are filled again from the log.

ALTER TABLE job ADD COLUMN key_id text;
ALTER TABLE chunk ADD COLUMN used_at bigint;

CREATE TABLE online_usage (
    meter_id         text NOT NULL,
    number           bigint NOT NULL,
    project          text NOT NULL,
    key_id           text NOT NULL,
    model            text NOT NULL,
    used_at          bigint NOT NULL,
    requests         bigint NOT NULL,
    failed           bigint NOT NULL,
    input_tokens     bigint NOT NULL,
    cached_tokens    bigint NOT NULL,
    output_tokens    bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    PRIMARY KEY (meter_id, number)
);
CREATE INDEX online_usage_by_time ON online_usage (used_at);
CREATE INDEX chunk_by_time ON chunk (used_at) WHERE used_at IS NOT NULL;

-- A line per chunk that has results, and per report of online requests, at the price of its time.
CREATE VIEW usage_line AS
SELECT line.*,
    (line.input_tokens * coalesce(price.input_per_million, 0)
        + line.output_tokens * coalesce(price.output_per_million, 0)) / 1e6 AS cost
FROM (
    SELECT job.project, job.key_id, chunk.model, 'batch' AS kind, chunk.job_id, chunk.used_at,
        chunk.completed::bigint AS requests, chunk.failed::bigint AS failed,
        chunk.input_tokens, chunk.cached_tokens, chunk.output_tokens, chunk.reasoning_tokens
    FROM chunk JOIN job USING (job_id) WHERE chunk.used_at IS NOT NULL
    UNION ALL
    SELECT project, key_id, model, 'online', NULL, used_at, requests, failed,
        input_tokens, cached_tokens, output_tokens, reasoning_tokens
    FROM online_usage
) AS line
LEFT JOIN model_price AS price ON price.model = line.model
    AND price.since <= line.used_at AND (price.until IS NULL OR line.used_at < price.until);

TRUNCATE job, chunk, file, api_key, worker, model, registered_model, model_on_worker;
UPDATE checkpoint SET seq = 0;
