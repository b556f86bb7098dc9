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
