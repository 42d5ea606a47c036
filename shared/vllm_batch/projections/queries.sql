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
    usage = excluded.usage,
    retired_at = excluded.retired_at;

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
    reasoning_tokens = excluded.reasoning_tokens,
    used_at = excluded.used_at,
    engine_seconds = excluded.engine_seconds,
    gpu_seconds = excluded.gpu_seconds,
    energy_joules = excluded.energy_joules;

-- name: load_file
SELECT * FROM file WHERE file_id = ANY ($1::text[]);

-- name: save_file
INSERT INTO file SELECT * FROM json_populate_recordset(NULL::file, $1)
ON CONFLICT (file_id) DO UPDATE SET deleted_at = excluded.deleted_at;

-- name: load_api_key
SELECT * FROM api_key WHERE key_id = ANY ($1::text[]);

-- name: save_api_key
INSERT INTO api_key SELECT * FROM json_populate_recordset(NULL::api_key, $1)
ON CONFLICT (key_id) DO UPDATE SET
    prefix = excluded.prefix,
    sha256 = excluded.sha256,
    revoked_at = excluded.revoked_at,
    rotated_at = excluded.rotated_at;

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

-- name: load_registered_model
SELECT * FROM registered_model WHERE model_key = ANY ($1::text[]);

-- name: save_registered_model
INSERT INTO registered_model SELECT * FROM json_populate_recordset(NULL::registered_model, $1)
ON CONFLICT (model_key) DO UPDATE SET
    source = excluded.source,
    base = excluded.base,
    engine_args = excluded.engine_args,
    aliases = excluded.aliases,
    aliased_seq = excluded.aliased_seq,
    prices = excluded.prices,
    training_run = excluded.training_run,
    wanted_anywhere = excluded.wanted_anywhere,
    wanted_on = excluded.wanted_on,
    retired_at = excluded.retired_at;

-- name: load_model_on_worker
SELECT * FROM model_on_worker
WHERE (model_key, worker_id) IN (SELECT * FROM unnest($1::text[], $2::text[]));

-- name: save_model_on_worker
INSERT INTO model_on_worker SELECT * FROM json_populate_recordset(NULL::model_on_worker, $1)
ON CONFLICT (model_key, worker_id) DO UPDATE SET
    status = excluded.status,
    since = excluded.since,
    reason = excluded.reason,
    load_seconds = excluded.load_seconds;

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

-- name: load_online_usage
SELECT * FROM online_usage
WHERE (meter_id, number) IN (SELECT * FROM unnest($1::text[], $2::bigint[]));

-- name: save_online_usage
INSERT INTO online_usage SELECT * FROM json_populate_recordset(NULL::online_usage, $1)
ON CONFLICT (meter_id, number) DO NOTHING;

-- name: load_training_run
SELECT * FROM training_run WHERE run_id = ANY ($1::text[]);

-- name: save_training_run
INSERT INTO training_run SELECT * FROM json_populate_recordset(NULL::training_run, $1)
ON CONFLICT (run_id) DO UPDATE SET
    status = excluded.status,
    changed_at = excluded.changed_at,
    dataset_id = excluded.dataset_id,
    base_model = excluded.base_model,
    alias = excluded.alias,
    trainer_name = excluded.trainer_name,
    step = excluded.step,
    steps = excluded.steps,
    loss = excluded.loss,
    seconds = excluded.seconds,
    model = excluded.model,
    replaced = excluded.replaced,
    before = excluded.before,
    after = excluded.after,
    tasks = excluded.tasks,
    reason = excluded.reason;

-- name: load_training_dataset
SELECT * FROM training_dataset WHERE dataset_id = ANY ($1::text[]);

-- name: save_training_dataset
INSERT INTO training_dataset SELECT * FROM json_populate_recordset(NULL::training_dataset, $1)
ON CONFLICT (dataset_id) DO NOTHING;

-- name: load_annotation
SELECT * FROM annotation
WHERE (project, annotation) IN (SELECT * FROM unnest($1::text[], $2::text[]));

-- name: save_annotation
INSERT INTO annotation SELECT * FROM json_populate_recordset(NULL::annotation, $1)
ON CONFLICT (project, annotation) DO UPDATE SET
    task = excluded.task,
    version_us = excluded.version_us,
    status = excluded.status,
    ground_truth = excluded.ground_truth,
    was_cancelled = excluded.was_cancelled,
    completed_by = excluded.completed_by,
    lead_time_seconds = excluded.lead_time_seconds,
    agreement = excluded.agreement,
    model_version = excluded.model_version,
    model_agrees = excluded.model_agrees,
    reasons = excluded.reasons,
    details = excluded.details,
    changed_at = excluded.changed_at;

-- name: load_labeling_project
SELECT * FROM labeling_project WHERE project = ANY ($1::text[]);

-- name: save_labeling_project
INSERT INTO labeling_project SELECT * FROM json_populate_recordset(NULL::labeling_project, $1)
ON CONFLICT (project) DO UPDATE SET
    title = excluded.title,
    template = excluded.template,
    model = excluded.model,
    push_automatically = excluded.push_automatically,
    train_after = excluded.train_after,
    webhook_url = excluded.webhook_url,
    tasks_created = excluded.tasks_created,
    tasks_deleted = excluded.tasks_deleted,
    deleted = excluded.deleted,
    changed_at = excluded.changed_at;

-- name: load_labeling_accuracy
SELECT * FROM labeling_accuracy WHERE measurement = ANY ($1::text[]);

-- name: save_labeling_accuracy
INSERT INTO labeling_accuracy SELECT * FROM json_populate_recordset(NULL::labeling_accuracy, $1)
ON CONFLICT (measurement) DO UPDATE SET
    measured_at = excluded.measured_at;
