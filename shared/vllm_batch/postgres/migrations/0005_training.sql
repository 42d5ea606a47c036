-- Training runs and datasets. Nothing to fill again: their events are newer than this migration.

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
