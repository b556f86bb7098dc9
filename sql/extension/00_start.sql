-- What every script begins with, one that installs and one that upgrades: the Makefile puts this file in front.
--
-- A script runs as a superuser, in a database that others own and create objects in, and with settings that others have made.
-- So first of all names and operators mean those of Postgres alone, and what a setting could change is set. Postgres reads a
-- script as a whole before it runs any of it: hence only ASCII in these files, and no backslash in a plain string.

\echo Use "CREATE EXTENSION tidings" or "ALTER EXTENSION tidings UPDATE" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on;
SET LOCAL transform_null_equals = off;
SET LOCAL array_nulls = on;
SET LOCAL quote_all_identifiers = off;
SET LOCAL default_table_access_method = heap;

DO $$
DECLARE
    ours      oid := (SELECT e.oid FROM pg_extension e WHERE e.extname = 'tidings');
    schema    record;
    intruders text;
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION 'tidings needs a database with encoding UTF8, and this one has %', getdatabaseencoding()
            USING ERRCODE = 'feature_not_supported', HINT = 'Create the database with ENCODING ''UTF8''.';
    END IF;

    -- Whoever owns the schema may drop what is in it and put something else there.
    SELECT n.oid, n.nspowner INTO schema FROM pg_namespace n WHERE n.nspname = 'tidings';
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = schema.nspowner AND (r.rolsuper OR r.rolname = current_user)) THEN
        RAISE EXCEPTION 'the schema tidings belongs to %', schema.nspowner::regrole
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Whatever is in it would get the rights of the extension. Look at it, and then ALTER SCHEMA tidings OWNER TO CURRENT_USER.';
    END IF;

    -- What was there before an upgrade, so that its end can tell what is new; nothing before an installation.
    PERFORM set_config('tidings_script.members', ARRAY(
        SELECT format('%s.%s', d.classid, d.objid) FROM pg_depend d
        WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = ours AND d.deptype = 'e')::text, true);

    -- Who had the rights of a proxy, or to make watches or rules, gets what has been added to them: not so who has all functions unasked.
    PERFORM set_config('tidings_script.' || function, ARRAY(
        SELECT a.grantee FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a
        WHERE p.pronamespace = schema.oid AND p.proname = function AND a.grantee NOT IN (0, p.proowner)
          AND NOT EXISTS (
              SELECT FROM pg_default_acl d CROSS JOIN LATERAL aclexplode(d.defaclacl) e
              WHERE d.defaclrole = p.proowner AND d.defaclnamespace IN (0, schema.oid) AND d.defaclobjtype = 'f'
                AND e.grantee = a.grantee))::text, true)
    FROM unnest(ARRAY['report', 'watch', 'allow']) AS function;

    IF current_setting('tidings_script.members') = '{}' THEN
        SELECT string_agg(pg_describe_object(d.classid, d.objid, d.objsubid), ', ') INTO intruders FROM pg_depend d
        WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = schema.oid AND d.classid <> 'pg_extension'::regclass;
        IF intruders IS NOT NULL THEN
            RAISE EXCEPTION 'the schema tidings is not empty'
                USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'There is: ' || left(intruders, 1000),
                      HINT = 'It is the extension''s alone: others'' functions in it could be called with the extension''s rights. Move or drop what is in it.';
        END IF;
    END IF;
END
$$;
