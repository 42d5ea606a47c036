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
WHERE job.project = $1 AND job.job_id = $2;

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
WHERE job.project = $1 AND job.seq < $2
ORDER BY job.seq DESC
LIMIT $3;

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

-- name: models
SELECT * FROM model ORDER BY created_at, name;

-- name: workers
SELECT * FROM worker ORDER BY seq;

-- name: api_keys
SELECT * FROM api_key ORDER BY seq;

-- name: input_in_use
SELECT EXISTS (
    SELECT FROM job
    WHERE input_file_id = $1 AND status NOT IN ('completed', 'failed', 'expired', 'cancelled')
);
