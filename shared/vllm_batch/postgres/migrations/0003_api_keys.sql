-- What a key opens, until when, and its rotation. The tables are filled again from the log.

ALTER TABLE api_key ADD COLUMN scopes json NOT NULL DEFAULT '[]';
ALTER TABLE api_key ALTER COLUMN scopes DROP DEFAULT;
ALTER TABLE api_key ADD COLUMN expires_at bigint;
ALTER TABLE api_key ADD COLUMN rotated_at bigint;
TRUNCATE job, chunk, file, api_key, worker, model, registered_model, model_on_worker;
UPDATE checkpoint SET seq = 0;
