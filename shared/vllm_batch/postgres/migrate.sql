-- Queries of migrate.py.

-- name: lock
SELECT pg_advisory_xact_lock($1);

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS {schema};

-- name: drop_schema
DROP SCHEMA IF EXISTS {schema} CASCADE;

-- name: create_migration_table
CREATE TABLE IF NOT EXISTS migration (number integer PRIMARY KEY);

-- name: applied
SELECT number FROM migration;

-- name: record
INSERT INTO migration (number) VALUES ($1);
