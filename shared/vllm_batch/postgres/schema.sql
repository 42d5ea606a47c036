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
    usage             json
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
    PRIMARY KEY (job_id, chunk)
) WITH (fillfactor = 70);

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
    revoked_at bigint
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
