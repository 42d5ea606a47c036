-- The model registry. Nothing to fill again: its events are newer than this migration.

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
