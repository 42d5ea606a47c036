-- Queries of admin_reads.py: what the admin UI asks, over all projects. Counts as in read_models.sql.

-- $1 status, $2 project, $3 model: empty is any. $4: part of an id, a model or the metadata.
-- name: admin_batches
SELECT job.*, sums.*, count(*) OVER () AS found FROM job, LATERAL (
    SELECT coalesce(sum(chunk.completed), 0)::bigint AS sum_completed,
        coalesce(sum(chunk.failed), 0)::bigint AS sum_failed,
        coalesce(sum(chunk.input_tokens), 0)::bigint AS sum_input_tokens,
        coalesce(sum(chunk.cached_tokens), 0)::bigint AS sum_cached_tokens,
        coalesce(sum(chunk.output_tokens), 0)::bigint AS sum_output_tokens,
        coalesce(sum(chunk.reasoning_tokens), 0)::bigint AS sum_reasoning_tokens
    FROM chunk WHERE chunk.job_id = job.job_id AND job.usage IS NULL
) AS sums
WHERE ($1 = '' OR job.status = $1)
    AND ($2 = '' OR job.project = $2)
    AND ($3 = '' OR job.model = $3)
    AND ($4 = '' OR position(lower($4) IN lower(
        concat_ws(' ', job.job_id, job.model, job.metadata::text, job.input_file_id))) > 0)
ORDER BY
    CASE WHEN $5 = 'created_at' AND $6 THEN job.seq END DESC,
    CASE WHEN $5 = 'created_at' AND NOT $6 THEN job.seq END,
    CASE WHEN $5 = 'total' AND $6 THEN job.total END DESC,
    CASE WHEN $5 = 'total' AND NOT $6 THEN job.total END,
    CASE WHEN $5 = 'failed' AND $6 THEN job.failed END DESC,
    CASE WHEN $5 = 'failed' AND NOT $6 THEN job.failed END,
    CASE WHEN $5 = 'status' AND $6 THEN job.status END DESC,
    CASE WHEN $5 = 'status' AND NOT $6 THEN job.status END,
    job.seq DESC
LIMIT $7 OFFSET $8;

-- name: admin_batch
SELECT job.*, sums.* FROM job, LATERAL (
    SELECT coalesce(sum(chunk.completed), 0)::bigint AS sum_completed,
        coalesce(sum(chunk.failed), 0)::bigint AS sum_failed,
        coalesce(sum(chunk.input_tokens), 0)::bigint AS sum_input_tokens,
        coalesce(sum(chunk.cached_tokens), 0)::bigint AS sum_cached_tokens,
        coalesce(sum(chunk.output_tokens), 0)::bigint AS sum_output_tokens,
        coalesce(sum(chunk.reasoning_tokens), 0)::bigint AS sum_reasoning_tokens
    FROM chunk WHERE chunk.job_id = job.job_id AND job.usage IS NULL
) AS sums
WHERE job.job_id = $1;

-- A letter per chunk, in their order: r(eady), l(eased), c(ompleted), f (completed, with failures),
-- x (closed). Ten thousand of them are ten kilobytes.
-- name: admin_chunk_states
SELECT coalesce(string_agg(
    CASE status WHEN 'ready' THEN 'r' WHEN 'leased' THEN 'l' WHEN 'closed' THEN 'x'
        ELSE CASE WHEN failed > 0 THEN 'f' ELSE 'c' END END,
    '' ORDER BY chunk), '') AS states
FROM chunk WHERE job_id = $1;

-- name: admin_choices
SELECT ARRAY(SELECT DISTINCT project FROM job ORDER BY 1) AS projects,
    ARRAY(SELECT DISTINCT model FROM job WHERE model IS NOT NULL ORDER BY 1) AS models;

-- name: admin_labeling_projects
SELECT labeling_project.project, labeling_project.title, labeling_project.template,
    labeling_project.model, labeling_project.webhook_url IS NOT NULL AS connected,
    labeling_project.tasks_created - labeling_project.tasks_deleted AS tasks,
    coalesce(counts.annotations, 0) AS annotations, coalesce(counts.pending, 0) AS pending,
    coalesce(counts.validated, 0) AS validated, coalesce(counts.flagged, 0) AS flagged,
    coalesce(counts.ground_truth, 0) AS ground_truth, newest.accuracy
FROM labeling_project
LEFT JOIN (
    SELECT project, count(*) AS annotations,
        count(*) FILTER (WHERE status = 'pending') AS pending,
        count(*) FILTER (WHERE status = 'validated') AS validated,
        count(*) FILTER (WHERE status = 'flagged') AS flagged,
        count(*) FILTER (WHERE ground_truth) AS ground_truth
    FROM annotation WHERE status <> 'deleted' GROUP BY project
) AS counts USING (project)
LEFT JOIN LATERAL (
    SELECT accuracy FROM labeling_accuracy
    WHERE labeling_accuracy.project = labeling_project.project
    ORDER BY measured_at DESC LIMIT 1
) AS newest ON true
WHERE NOT labeling_project.deleted
ORDER BY labeling_project.created_at;

-- name: admin_flagged
SELECT * FROM annotation WHERE project = $1 AND status = 'flagged'
ORDER BY changed_at DESC, annotation LIMIT $2;

-- Annotations handed in since $2, in steps of $3 seconds.
-- name: admin_annotation_pace
SELECT (created_at / $3) * $3 AS step, count(*) AS annotations FROM annotation
WHERE project = $1 AND created_at >= $2 AND status <> 'deleted' AND NOT was_cancelled
GROUP BY step ORDER BY step;
