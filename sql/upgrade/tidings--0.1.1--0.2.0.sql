-- From 0.1.1 to 0.2.0: run by ALTER EXTENSION tidings UPDATE, after a restart with the new library.

\echo Use "ALTER EXTENSION tidings UPDATE" to load this file. \quit
