-- From 0.1.0 to 0.1.1: run by ALTER EXTENSION tidings UPDATE, after a restart with the new library.

\echo Use "ALTER EXTENSION tidings UPDATE" to load this file. \quit

COMMENT ON COLUMN tidings.status.relay_pid IS 'The relay''s process id, NULL while none runs';
