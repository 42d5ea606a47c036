-- What the migrations add up to; a test compares the two. Read this one, change by migration.

CREATE TABLE migration (number integer PRIMARY KEY);

CREATE TABLE checkpoint (
    one_row      boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    log_identity text NOT NULL,
    seq          bigint NOT NULL
);

CREATE TABLE job (
    job_id            text PRIMARY KEY,
    seq               bigint NOT NULL UNIQUE,
    project           text NOT NULL,
    status            text NOT NULL,
    endpoint          text NOT NULL,
    input_file_id     text NOT NULL,
    completion_window text NOT NULL,
    created_at        bigint NOT NULL,
    expires_at        bigint NOT NULL,
    metadata          json,
    model             text,
    errors            json,
    output_file_id    text,
    error_file_id     text,
    in_progress_at    bigint,
    finalizing_at     bigint,
    completed_at      bigint,
    failed_at         bigint,
    expired_at        bigint,
    cancelling_at     bigint,
    cancelled_at      bigint,
    total             bigint NOT NULL,
    completed         bigint NOT NULL,
    failed            bigint NOT NULL,
    usage             json,
    key_id            text,
    retired_at        bigint
);
CREATE INDEX job_of_project ON job (project, seq DESC);
CREATE INDEX job_by_input_file ON job (input_file_id);

CREATE TABLE chunk (
    job_id           text NOT NULL,
    chunk            integer NOT NULL,
    status           text NOT NULL,
    model            text NOT NULL,
    count            integer NOT NULL,
    epoch            integer NOT NULL,
    worker_id        text,
    completed        integer NOT NULL,
    failed           integer NOT NULL,
    input_tokens     bigint NOT NULL,
    cached_tokens    bigint NOT NULL,
    output_tokens    bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    used_at          bigint,
    engine_seconds   double precision NOT NULL,
    gpu_seconds      double precision NOT NULL,
    energy_joules    double precision NOT NULL,
    PRIMARY KEY (job_id, chunk)
) WITH (fillfactor = 70);
CREATE INDEX chunk_by_time ON chunk (used_at) WHERE used_at IS NOT NULL;

CREATE TABLE file (
    file_id    text PRIMARY KEY,
    seq        bigint NOT NULL UNIQUE,
    project    text NOT NULL,
    filename   text NOT NULL,
    purpose    text NOT NULL,
    bytes      bigint NOT NULL,
    lines      bigint NOT NULL,
    blob       text NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    deleted_at bigint
);
CREATE INDEX file_of_project ON file (project, seq DESC) WHERE deleted_at IS NULL;

CREATE TABLE api_key (
    key_id     text PRIMARY KEY,
    seq        bigint NOT NULL UNIQUE,
    project    text NOT NULL,
    name       text NOT NULL,
    prefix     text NOT NULL,
    sha256     text NOT NULL,
    created_at bigint NOT NULL,
    revoked_at bigint,
    scopes     json NOT NULL,
    expires_at bigint,
    rotated_at bigint
);

CREATE TABLE worker (
    worker_id     text PRIMARY KEY,
    seq           bigint NOT NULL UNIQUE,
    name          text NOT NULL,
    host          text NOT NULL,
    pid           bigint NOT NULL,
    engine        text NOT NULL,
    version       text NOT NULL,
    status        text NOT NULL,
    models        json NOT NULL,
    in_flight_max integer NOT NULL,
    started_at    bigint NOT NULL,
    ended_at      bigint,
    reason        text
);

CREATE TABLE model (
    name       text PRIMARY KEY,
    created_at bigint NOT NULL
);

CREATE TABLE registered_model (
    model_key       text PRIMARY KEY,
    seq             bigint NOT NULL UNIQUE,
    name            text NOT NULL,
    source          text NOT NULL,
    base            text,
    engine_args     json NOT NULL,
    aliases         json NOT NULL,
    aliased_seq     bigint NOT NULL,
    prices          json NOT NULL,
    training_run    text,
    wanted_anywhere boolean NOT NULL,
    wanted_on       json NOT NULL,
    created_at      bigint NOT NULL,
    retired_at      bigint
);

CREATE TABLE model_on_worker (
    model_key    text NOT NULL,
    worker_id    text NOT NULL,
    worker_name  text NOT NULL,
    status       text NOT NULL,
    since        bigint NOT NULL,
    reason       text,
    load_seconds double precision,
    PRIMARY KEY (model_key, worker_id)
);

-- What each alias means: the model that was given it last. A model's own name goes before.
CREATE VIEW model_alias AS
SELECT DISTINCT ON (given.alias) given.alias, registered_model.name AS model,
    registered_model.model_key, registered_model.created_at
FROM registered_model, json_array_elements_text(registered_model.aliases) AS given (alias)
WHERE registered_model.retired_at IS NULL
    AND given.alias NOT IN (SELECT name FROM registered_model WHERE retired_at IS NULL)
ORDER BY given.alias, registered_model.aliased_seq DESC;

-- What a million tokens cost, and from when to when (Unix seconds; until is open at the end).
CREATE VIEW model_price AS
SELECT registered_model.name AS model, price.since,
    lead(price.since) OVER (PARTITION BY registered_model.model_key ORDER BY price.place) AS until,
    price.input_per_million, price.output_per_million
FROM registered_model, ROWS FROM (
    json_to_recordset(registered_model.prices) AS (
        since bigint, input_per_million double precision, output_per_million double precision
    )
) WITH ORDINALITY AS price (since, input_per_million, output_per_million, place);

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

CREATE TABLE training_run (
    run_id       text PRIMARY KEY,
    project      text NOT NULL,
    trigger      text NOT NULL,
    retry_of     text,
    attempt      integer NOT NULL,
    status       text NOT NULL,
    requested_at bigint NOT NULL,
    changed_at   bigint NOT NULL,
    dataset_id   text,
    base_model   text,
    alias        text,
    trainer_name text,
    step         integer,
    steps        integer,
    loss         double precision,
    seconds      double precision,
    model        text,
    replaced     text,
    before       double precision,
    after        double precision,
    tasks        integer,
    reason       text
);
CREATE INDEX training_run_by_project ON training_run (project, requested_at);

CREATE TABLE training_dataset (
    dataset_id          text PRIMARY KEY,
    project             text NOT NULL,
    format              text NOT NULL,
    train_blob          text NOT NULL,
    validation_blob     text NOT NULL,
    train_examples      integer NOT NULL,
    validation_examples integer NOT NULL,
    held_out            integer NOT NULL,
    sha256              text NOT NULL,
    created_at          bigint NOT NULL
);

CREATE TABLE annotation (
    project           text NOT NULL,
    annotation        text NOT NULL,
    task              text,
    version_us        bigint,
    status            text NOT NULL,
    ground_truth      boolean NOT NULL,
    was_cancelled     boolean NOT NULL,
    completed_by      text,
    lead_time_seconds double precision,
    agreement         double precision,
    model_version     text,
    model_agrees      boolean,
    reasons           json NOT NULL,
    details           json NOT NULL,
    created_at        bigint NOT NULL,
    changed_at        bigint NOT NULL,
    PRIMARY KEY (project, annotation)
);
CREATE INDEX annotation_by_status ON annotation (project, status, changed_at);

CREATE TABLE labeling_project (
    project            text PRIMARY KEY,
    title              text NOT NULL,
    template           text,
    model              text,
    push_automatically boolean NOT NULL,
    train_after        integer NOT NULL,
    webhook_url        text,
    tasks_created      integer NOT NULL,
    tasks_deleted      integer NOT NULL,
    deleted            boolean NOT NULL,
    created_at         bigint NOT NULL,
    changed_at         bigint NOT NULL
);

CREATE TABLE labeling_accuracy (
    measurement   text PRIMARY KEY,
    project       text NOT NULL,
    model_version text NOT NULL,
    measured_at   bigint NOT NULL,
    tasks         integer NOT NULL,
    accuracy      double precision NOT NULL,
    interval_low  double precision NOT NULL,
    interval_high double precision NOT NULL,
    macro_f1      double precision NOT NULL,
    kappa         double precision,
    classes       json NOT NULL,
    labels        json NOT NULL,
    confusion     json NOT NULL
);
CREATE INDEX labeling_accuracy_by_project ON labeling_accuracy (project, measured_at);
