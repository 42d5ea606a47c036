-- Queries of the projections. Tables are found by search_path. $1 of a save_ query is a JSON list
-- of rows with the table's column names.

-- name: read_checkpoint
SELECT log_identity, seq FROM checkpoint;

-- name: create_checkpoint
INSERT INTO checkpoint (log_identity, seq) VALUES ($1, 0) ON CONFLICT DO NOTHING;

-- name: advance_checkpoint
UPDATE checkpoint SET seq = $2 WHERE seq = $1;

-- name: announce
SELECT pg_notify($1, $2);

-- name: load_job
SELECT * FROM job WHERE job_id = ANY ($1::text[]);

-- name: save_job
INSERT INTO job SELECT * FROM json_populate_recordset(NULL::job, $1)
ON CONFLICT (job_id) DO UPDATE SET
    status = excluded.status,
    model = excluded.model,
    errors = excluded.errors,
    output_file_id = excluded.output_file_id,
    error_file_id = excluded.error_file_id,
    in_progress_at = excluded.in_progress_at,
    finalizing_at = excluded.finalizing_at,
    completed_at = excluded.completed_at,
    failed_at = excluded.failed_at,
    expired_at = excluded.expired_at,
    cancelling_at = excluded.cancelling_at,
    cancelled_at = excluded.cancelled_at,
    total = excluded.total,
    completed = excluded.completed,
    failed = excluded.failed,
    usage = excluded.usage;

-- name: load_chunk
SELECT * FROM chunk
WHERE (job_id, chunk) IN (SELECT * FROM unnest($1::text[], $2::integer[]));

-- name: save_chunk
INSERT INTO chunk SELECT * FROM json_populate_recordset(NULL::chunk, $1)
ON CONFLICT (job_id, chunk) DO UPDATE SET
    status = excluded.status,
    epoch = excluded.epoch,
    worker_id = excluded.worker_id,
    completed = excluded.completed,
    failed = excluded.failed,
    input_tokens = excluded.input_tokens,
    cached_tokens = excluded.cached_tokens,
    output_tokens = excluded.output_tokens,
    reasoning_tokens = excluded.reasoning_tokens;

-- name: load_file
SELECT * FROM file WHERE file_id = ANY ($1::text[]);

-- name: save_file
INSERT INTO file SELECT * FROM json_populate_recordset(NULL::file, $1)
ON CONFLICT (file_id) DO UPDATE SET deleted_at = excluded.deleted_at;

-- name: load_api_key
SELECT * FROM api_key WHERE key_id = ANY ($1::text[]);

-- name: save_api_key
INSERT INTO api_key SELECT * FROM json_populate_recordset(NULL::api_key, $1)
ON CONFLICT (key_id) DO UPDATE SET revoked_at = excluded.revoked_at;

-- name: load_worker
SELECT * FROM worker WHERE worker_id = ANY ($1::text[]);

-- name: save_worker
INSERT INTO worker SELECT * FROM json_populate_recordset(NULL::worker, $1)
ON CONFLICT (worker_id) DO UPDATE SET
    status = excluded.status,
    models = excluded.models,
    in_flight_max = excluded.in_flight_max,
    ended_at = excluded.ended_at,
    reason = excluded.reason;

-- name: load_model
SELECT * FROM model WHERE name = ANY ($1::text[]);

-- name: save_model
INSERT INTO model SELECT * FROM json_populate_recordset(NULL::model, $1)
ON CONFLICT (name) DO NOTHING;

-- name: checkpoint_of
SELECT seq FROM {schema}.checkpoint;

-- name: only_verifier
SELECT pg_try_advisory_lock(hashtextextended($1, 0));

-- What a whole table holds, in constant memory and in any order of its rows.
-- name: table_names
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind = 'r' AND c.relname NOT IN ('checkpoint', 'migration')
ORDER BY c.relname;

-- name: hash_table
SELECT count(*) AS rows,
    coalesce(sum(hashtextextended(row_text, 0)::numeric), 0)::text || ':' ||
    coalesce(sum(hashtextextended(row_text, 1)::numeric), 0)::text AS hash
FROM (SELECT t::text AS row_text FROM {table} t) AS texts;
