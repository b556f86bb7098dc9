-- From 0.1.1 to 0.2.0: run by ALTER EXTENSION tidings UPDATE, after a restart with the new library.

-- Proxies no longer call this function: check_subscription() reads the rules for them.
DO $$
DECLARE
    grantee regrole;
BEGIN
    FOR grantee IN
        SELECT a.grantee FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a
        WHERE p.oid = 'tidings.rules_for(text[])'::regprocedure AND a.grantee NOT IN (0, p.proowner)
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION tidings.rules_for(text[]) FROM %s', grantee);
    END LOOP;
END
$$;

CREATE TABLE tidings.snapshot_query (
    topic       text PRIMARY KEY,
    query       text NOT NULL,
    event       text NOT NULL,
    search_path text NOT NULL
);

COMMENT ON TABLE tidings.snapshot_query IS 'The queries whose rows streams start with; see tidings.snapshot()';
COMMENT ON COLUMN tidings.snapshot_query.topic IS 'A topic template';
COMMENT ON COLUMN tidings.snapshot_query.query IS 'A query, in which {name} stands for the value of that hole, as text';
COMMENT ON COLUMN tidings.snapshot_query.event IS 'The name of the events that its rows become';
COMMENT ON COLUMN tidings.snapshot_query.search_path IS 'The search_path under which the query was written, and under which it runs';

SELECT pg_catalog.pg_extension_config_dump('tidings.snapshot_query', '');
