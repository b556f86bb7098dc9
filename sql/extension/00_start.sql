-- The beginning of every installation and upgrade script: the Makefile prepends this file.
--
-- A script runs as a superuser, in a database where other roles create objects and change settings. So it first makes all names and
-- operators refer to those of Postgres only, and sets every setting that could change the meaning of a statement. Postgres reads a
-- whole script before it runs any of it, so these files are ASCII, without a backslash in a plain string.

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
        RAISE EXCEPTION 'tidings needs a database with encoding UTF8, but this one has %', getdatabaseencoding()
            USING ERRCODE = 'feature_not_supported', HINT = 'Create the database with ENCODING ''UTF8''.';
    END IF;

    -- The schema's owner can drop the objects in it and replace them.
    SELECT n.oid, n.nspowner INTO schema FROM pg_namespace n WHERE n.nspname = 'tidings';
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = schema.nspowner AND (r.rolsuper OR r.rolname = current_user)) THEN
        RAISE EXCEPTION 'the schema tidings belongs to %', schema.nspowner::regrole
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Its owner could replace objects that run with the rights of the extension. Check what it contains, then run ALTER SCHEMA tidings OWNER TO CURRENT_USER.';
    END IF;

    -- The objects that exist before an upgrade, so that the end of the script can recognize new ones. None before an installation.
    PERFORM set_config('tidings_script.members', ARRAY(
        SELECT format('%s.%s', d.classid, d.objid) FROM pg_depend d
        WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = ours AND d.deptype = 'e')::text, true);

    -- Roles with the rights of a proxy, or with the right to create watches or rules, will get the new functions too. Roles whose
    -- rights come only from ALTER DEFAULT PRIVILEGES will not.
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
                USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'It contains ' || left(intruders, 1000),
                      HINT = 'The extension needs the schema for itself: it could call functions of other roles in it, with its own rights. Move or drop these objects.';
        END IF;
    END IF;
END
$$;
