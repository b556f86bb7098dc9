-- Rights: no role has any by default. The functions here grant proxies, applications and migrations what they need.

CREATE OR REPLACE FUNCTION tidings.grant_functions(role regrole, functions regprocedure[]) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    function regprocedure;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA tidings TO %s', role);
    FOREACH function IN ARRAY functions LOOP
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s', function, role);
    END LOOP;
END
$$;

COMMENT ON FUNCTION tidings.grant_functions(regrole, regprocedure[]) IS
    'Grants functions, and USAGE on their schema, to a role';

CREATE OR REPLACE FUNCTION tidings.proxy_functions() RETURNS regprocedure[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY[
        'tidings.channel()', 'tidings.listen()', 'tidings.relay()', 'tidings.relay_pid()', 'tidings.position()', 'tidings.locate(text)',
        'tidings.segments(text, integer)', 'tidings.survivors(bigint, bigint)', 'tidings.changes(text, text[], integer)',
        'tidings.follow(text, interval, integer)', 'tidings.await_tick(text, interval)', 'tidings.standby()',
        'tidings.page(text, text[], integer, integer)', 'tidings.scan(text, text[], integer, integer, boolean)',
        'tidings.report(text, text[], integer[], interval)',
        'tidings.check_subscription(jsonb, text[])', 'tidings.authorize(jsonb, text[])',
        'tidings.open_rows(jsonb, text[])', 'tidings.fetch_rows(integer)',
        'tidings.check(text[])', 'tidings.probe(uuid)'
    ]::regprocedure[]
$$;

COMMENT ON FUNCTION tidings.proxy_functions() IS 'The functions that a proxy calls';

CREATE OR REPLACE FUNCTION tidings.grant_proxy(role regrole) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tidings.grant_functions(role, tidings.proxy_functions());
END
$$;

COMMENT ON FUNCTION tidings.grant_proxy(regrole) IS 'Grants the login role of a proxy what it needs, and nothing more';

CREATE OR REPLACE FUNCTION tidings.grant_gate(role regrole) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tidings.grant_functions(role, ARRAY[
        'tidings.check_subscription(jsonb, text[])', 'tidings.authorize(jsonb, text[])',
        'tidings.position()', 'tidings.open_rows(jsonb, text[])', 'tidings.fetch_rows(integer)'
    ]::regprocedure[]);
END
$$;

COMMENT ON FUNCTION tidings.grant_gate(regrole) IS
    'Grants what the second login role of a proxy needs, which only checks access and reads rows as subscribers. This role can''t read events';

CREATE OR REPLACE FUNCTION tidings.grant_app(role regrole) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tidings.grant_functions(role, ARRAY[
        'tidings.position()', 'tidings.state(text[])', 'tidings.publish(text, jsonb, text)', 'tidings.publish_text(text, text, text)',
        'tidings.recheck(text)'
    ]::regprocedure[]);
END
$$;

COMMENT ON FUNCTION tidings.grant_app(regrole) IS
    'Grants the role of an application what it needs: to publish to any topic, to have its subscribers asked again, and to read positions and the rows of topics';

-- tidings.watch() runs with the caller's rights, so the caller needs the functions that it calls.
CREATE OR REPLACE FUNCTION tidings.grant_watch(role regrole) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tidings.grant_functions(role, ARRAY[
        'tidings.watch(regclass, text, text, jsonb, text[], text[], text[], text, text, text)',
        'tidings.watch_statements(regclass, text, text, jsonb, text[], text[], text[], text, text, text)',
        'tidings.guard(regclass, text, text[], text, text)',
        'tidings.unwatch(regclass, text)', 'tidings.check_watch(regclass, text)', 'tidings.capture()',
        'tidings.note_missing_index(regclass, text, text[])', 'tidings.holes(text)'
    ]::regprocedure[]);
END
$$;

COMMENT ON FUNCTION tidings.grant_watch(regrole) IS 'The part of grant_manager() for watches';

-- The same holds for tidings.allow().
CREATE OR REPLACE FUNCTION tidings.grant_rules(role regrole) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tidings.grant_functions(role, ARRAY[
        'tidings.allow(text, text)', 'tidings.keep_rule(text, text, name[])', 'tidings.plan_rule(text, text)',
        'tidings.others_who_create(name[])', 'tidings.bind_holes(text, text)', 'tidings.query_path(text, text, text, name[])'
    ]::regprocedure[]);
END
$$;

COMMENT ON FUNCTION tidings.grant_rules(regrole) IS 'The part of grant_manager() for creating rules';

CREATE OR REPLACE FUNCTION tidings.grant_manager(role regrole) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tidings.grant_app(role);
    PERFORM tidings.grant_watch(role);
    PERFORM tidings.grant_rules(role);
    PERFORM tidings.grant_functions(role, ARRAY[
        'tidings.disallow(text)', 'tidings.relay()', 'tidings.ring()', 'tidings.flushed_first()', 'tidings.check(text[])', 'tidings.snapshot(text, text, text)',
        'tidings.keep_snapshot(text, text, text, name[])', 'tidings.check_snapshot(text, text)', 'tidings.unsnapshot(text)',
        'tidings.export()', 'tidings.exported_triggers()'
    ]::regprocedure[]);
    EXECUTE format('GRANT SELECT ON tidings.watches, tidings.rules, tidings.snapshots, tidings.status, tidings.open_topics TO %s', role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON tidings.rule, tidings.snapshot_query TO %s', role);
END
$$;

COMMENT ON FUNCTION tidings.grant_manager(regrole) IS
    'Grants the role of migrations what it needs: the rights of an application, watches on its own tables, rules, queries for snapshots, the views that show them, and export()';

CREATE OR REPLACE FUNCTION tidings.installed() RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'installed_wrapper';

COMMENT ON FUNCTION tidings.installed() IS
    'Called once by the install script: the relay starts when the transaction commits';

-- New objects have the rights that ALTER DEFAULT PRIVILEGES grants: these are revoked. On older objects this revokes
-- the rights of PUBLIC, the rights that those defaults would grant, and all rights on the tables with events and with
-- the channel's name. Other rights, which were granted explicitly, are kept.
DO $$
DECLARE
    unasked record;
    role    regrole;
BEGIN
    FOR unasked IN
        WITH member AS (
            SELECT d.classid, d.objid, format('%s.%s', d.classid, d.objid) <> ALL (current_setting('tidings_script.members')::text[]) AS is_new
            FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
            WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'tidings'
        ), object AS (
            SELECT 'n'::"char" AS type, 'SCHEMA' AS kind, 'tidings' AS name, n.nspowner AS owner, n.nspacl AS acl,
                   current_setting('tidings_script.members') = '{}' AS is_closed
            FROM pg_namespace n WHERE n.nspname = 'tidings'
            UNION ALL
            SELECT 'r', 'TABLE', c.oid::regclass::text, c.relowner, c.relacl,
                   m.is_new OR c.relname ~ '^(log|tick)(_[0-9])?$' OR c.relname = 'secret'
            FROM member m JOIN pg_class c ON c.oid = m.objid WHERE m.classid = 'pg_class'::regclass
            UNION ALL
            SELECT 'f', 'ROUTINE', p.oid::regprocedure::text, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)), m.is_new
            FROM member m JOIN pg_proc p ON p.oid = m.objid WHERE m.classid = 'pg_proc'::regclass
        )
        SELECT o.kind, o.name, a.grantee, string_agg(a.privilege_type, ', ') AS privileges
        FROM object o
        CROSS JOIN LATERAL aclexplode(o.acl) a
        WHERE a.grantee <> o.owner AND (
            o.is_closed OR a.grantee = 0 OR (o.type = 'n' AND a.privilege_type = 'CREATE')
            OR EXISTS (
                SELECT FROM pg_default_acl d CROSS JOIN LATERAL aclexplode(d.defaclacl) e
                WHERE d.defaclrole = o.owner AND d.defaclobjtype = o.type
                  AND d.defaclnamespace IN (0, (SELECT n.oid FROM pg_namespace n WHERE n.nspname = 'tidings'))
                  AND e.grantee = a.grantee AND e.privilege_type = a.privilege_type))
        GROUP BY o.kind, o.name, a.grantee
    LOOP
        EXECUTE format('REVOKE %s ON %s %s FROM %s CASCADE', unasked.privileges, unasked.kind, unasked.name,
            CASE unasked.grantee WHEN 0 THEN 'PUBLIC' ELSE unasked.grantee::regrole::text END);
    END LOOP;

    -- These roles had the rights on all functions that existed before the upgrade.
    FOREACH role IN ARRAY current_setting('tidings_script.report')::regrole[] LOOP
        PERFORM tidings.grant_proxy(role);
    END LOOP;
    FOREACH role IN ARRAY current_setting('tidings_script.watch')::regrole[] LOOP
        PERFORM tidings.grant_watch(role);
    END LOOP;
    FOREACH role IN ARRAY current_setting('tidings_script.allow')::regrole[] LOOP
        PERFORM tidings.grant_rules(role);
    END LOOP;
    -- The view calls a function that earlier versions do not have.
    FOR role IN
        SELECT a.grantee FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
        WHERE c.oid = 'tidings.status'::regclass AND a.privilege_type = 'SELECT' AND a.grantee NOT IN (0, c.relowner)
    LOOP
        PERFORM tidings.grant_functions(role, '{tidings.ring(),tidings.flushed_first()}');
    END LOOP;

    -- Rights of other roles are not part of the extension, so a dump must include them. PostgreSQL 17 and later also
    -- record the grantees.
    UPDATE pg_init_privs i SET initprivs = ARRAY(
        SELECT item FROM unnest(i.initprivs) item
        WHERE EXISTS (SELECT FROM aclexplode(ARRAY[item]) a WHERE a.grantee = a.grantor))
    FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'tidings'
      AND d.classid = i.classoid AND d.objid = i.objoid AND i.classoid IN ('pg_class'::regclass, 'pg_proc'::regclass);
    DELETE FROM pg_init_privs i USING pg_namespace n
    WHERE i.classoid = 'pg_namespace'::regclass AND i.objoid = n.oid AND n.nspname = 'tidings';
    DELETE FROM pg_shdepend s USING pg_database b
    WHERE s.deptype = 'i' AND s.dbid = b.oid AND b.datname = current_database() AND (
        EXISTS (SELECT FROM pg_namespace n WHERE s.classid = 'pg_namespace'::regclass AND s.objid = n.oid AND n.nspname = 'tidings')
        OR EXISTS (
            SELECT FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
            WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'tidings'
              AND d.classid = s.classid AND d.objid = s.objid));
END
$$;
