-- Labeling projects, annotations and measured accuracy. Nothing to fill again: their events are
-- newer than this migration.

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
