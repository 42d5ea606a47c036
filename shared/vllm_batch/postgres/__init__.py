"""The projections' database: connections, named queries, migrations. Knows no table by meaning."""
