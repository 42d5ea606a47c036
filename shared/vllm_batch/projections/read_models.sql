-- Queries of read_models.py: what the API and the CLI ask. Counts of a job that has not ended are
-- the sums over its chunks; its end event brings the final ones.

-- name: checkpoint
SELECT seq FROM checkpoint;

-- name: batch
SELECT job.*, sums.* FROM job, LATERAL (
    SELECT coalesce(sum(chunk.completed), 0)::bigint AS sum_completed,
        coalesce(sum(chunk.failed), 0)::bigint AS sum_failed,
        coalesce(sum(chunk.input_tokens), 0)::bigint AS sum_input_tokens,
        coalesce(sum(chunk.cached_tokens), 0)::bigint AS sum_cached_tokens,
        coalesce(sum(chunk.output_tokens), 0)::bigint AS sum_output_tokens,
        coalesce(sum(chunk.reasoning_tokens), 0)::bigint AS sum_reasoning_tokens
    FROM chunk WHERE chunk.job_id = job.job_id AND job.usage IS NULL
) AS sums
WHERE job.project = $1 AND job.job_id = $2 AND job.retired_at IS NULL;

-- name: batches
SELECT job.*, sums.* FROM job, LATERAL (
    SELECT coalesce(sum(chunk.completed), 0)::bigint AS sum_completed,
        coalesce(sum(chunk.failed), 0)::bigint AS sum_failed,
        coalesce(sum(chunk.input_tokens), 0)::bigint AS sum_input_tokens,
        coalesce(sum(chunk.cached_tokens), 0)::bigint AS sum_cached_tokens,
        coalesce(sum(chunk.output_tokens), 0)::bigint AS sum_output_tokens,
        coalesce(sum(chunk.reasoning_tokens), 0)::bigint AS sum_reasoning_tokens
    FROM chunk WHERE chunk.job_id = job.job_id AND job.usage IS NULL
) AS sums
WHERE job.project = $1 AND job.seq < $2 AND job.retired_at IS NULL
ORDER BY job.seq DESC
LIMIT $3;

-- Models that running batches have ready chunks for, while no worker serves them.
-- name: waiting
SELECT waiting.job_id, waiting.model, waiting.requests,
    registered.name IS NOT NULL AS registered, reports.loading, reports.failed
FROM (
    SELECT job_id, model, min(chunk) AS first, sum(count - completed - failed)::bigint AS requests
    FROM chunk WHERE job_id = ANY ($1::text[]) AND status = 'ready'
    GROUP BY job_id, model
) AS waiting
LEFT JOIN registered_model AS registered
    ON registered.name = waiting.model AND registered.retired_at IS NULL
LEFT JOIN LATERAL (
    SELECT json_agg(said.worker_name ORDER BY said.worker_name)
            FILTER (WHERE said.status = 'loading') AS loading,
        json_object_agg(said.worker_name, said.reason ORDER BY said.worker_name)
            FILTER (WHERE said.status = 'failed') AS failed
    FROM model_on_worker AS said JOIN worker USING (worker_id)
    WHERE said.model_key = registered.model_key AND worker.status IN ('started', 'ready')
) AS reports ON true
WHERE NOT EXISTS (
    SELECT FROM worker, json_array_elements_text(worker.models) AS served
    WHERE worker.status = 'ready' AND served = waiting.model
)
ORDER BY waiting.job_id, waiting.first;

-- name: batch_seq
SELECT seq FROM job WHERE project = $1 AND job_id = $2;

-- name: file
SELECT * FROM file WHERE project = $1 AND file_id = $2 AND deleted_at IS NULL;

-- A deleted file stays a valid cursor: whoever pages through a list meanwhile can go on.
-- name: file_seq
SELECT seq FROM file WHERE project = $1 AND file_id = $2;

-- name: files_newest_first
SELECT * FROM file
WHERE project = $1 AND deleted_at IS NULL AND ($2::text IS NULL OR purpose = $2) AND seq < $3
ORDER BY seq DESC
LIMIT $4;

-- name: files_oldest_first
SELECT * FROM file
WHERE project = $1 AND deleted_at IS NULL AND ($2::text IS NULL OR purpose = $2) AND seq > $3
ORDER BY seq
LIMIT $4;

-- A registered model hides the name that its workers announced, and is hidden once it is retired.
-- name: models
SELECT name, created_at, NULL AS root, base AS parent FROM registered_model
WHERE retired_at IS NULL
UNION ALL
SELECT alias, created_at, model, NULL FROM model_alias
UNION ALL
SELECT name, created_at, NULL, NULL FROM model
WHERE name NOT IN (SELECT name FROM registered_model)
    AND name NOT IN (SELECT alias FROM model_alias)
ORDER BY created_at, name;

-- name: workers
SELECT * FROM worker ORDER BY seq;

-- name: api_keys
SELECT * FROM api_key ORDER BY seq;

-- name: input_in_use
SELECT EXISTS (
    SELECT FROM job
    WHERE input_file_id = $1 AND status NOT IN ('completed', 'failed', 'expired', 'cancelled')
);

-- What a project has now. A batch that is not planned yet counts with the lines of its file.
-- name: project_use
SELECT
    (SELECT count(*) FROM file WHERE project = $1 AND deleted_at IS NULL) AS files,
    (SELECT coalesce(sum(bytes), 0)::bigint FROM file
        WHERE project = $1 AND deleted_at IS NULL) AS storage_bytes,
    (SELECT count(*) FROM job WHERE project = $1 AND retired_at IS NULL) AS batches,
    (SELECT coalesce(sum(
            CASE WHEN job.status = 'validating' THEN file.lines
            ELSE job.total - coalesce(done.requests, 0) END
        ), 0)::bigint
        FROM job LEFT JOIN file ON file.file_id = job.input_file_id
        LEFT JOIN LATERAL (
            SELECT sum(chunk.completed + chunk.failed) AS requests
            FROM chunk WHERE chunk.job_id = job.job_id
        ) AS done ON true
        WHERE job.project = $1 AND job.usage IS NULL
            AND job.status IN ('validating', 'running')) AS queued_requests;

-- Days are in UTC; no project: all of them. $4: by batch, too.
-- name: usage
SELECT to_char(to_timestamp(used_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day,
    project, key_id, model, kind, CASE WHEN $4 THEN job_id END AS job_id,
    sum(requests)::bigint AS requests, sum(failed)::bigint AS failed,
    sum(input_tokens)::bigint AS input_tokens, sum(cached_tokens)::bigint AS cached_tokens,
    sum(output_tokens)::bigint AS output_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens,
    sum(engine_seconds) AS engine_seconds, sum(gpu_seconds) AS gpu_seconds,
    sum(energy_joules) AS energy_joules, sum(cost)::double precision AS cost
FROM usage_line
WHERE used_at >= $1 AND used_at < $2 AND ($3::text IS NULL OR project = $3)
GROUP BY 1, 2, 3, 4, 5, 6
ORDER BY 1, 2, 3, 4, 5, 6;

-- name: batch_usage
SELECT job_id, project, key_id, model,
    sum(requests)::bigint AS requests, sum(failed)::bigint AS failed,
    sum(input_tokens)::bigint AS input_tokens, sum(cached_tokens)::bigint AS cached_tokens,
    sum(output_tokens)::bigint AS output_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens,
    sum(engine_seconds) AS engine_seconds, sum(gpu_seconds) AS gpu_seconds,
    sum(energy_joules) AS energy_joules, sum(cost)::double precision AS cost
FROM usage_line
WHERE job_id = ANY ($1::text[])
GROUP BY 1, 2, 3, 4
ORDER BY 1, 4;
