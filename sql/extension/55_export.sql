-- Export: the statements that recreate everything that a database has of Tidings. A schema file of a framework, such as
-- Rails' schema.rb, has no triggers and no rules, so they have to be loaded after it.
--
-- Loading runs nothing that these statements contain: no query of a rule, no condition of a watch. So a superuser may
-- load what another role has written. That is why rules are inserted: tidings.allow() would plan their queries, and a
-- planner may call functions.

CREATE OR REPLACE FUNCTION tidings.exported_triggers(OUT step integer, OUT relation text, OUT name text, OUT statement text) RETURNS SETOF record
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
-- pg_get_triggerdef() writes literals and names as these settings say.
SET standard_conforming_strings = on
SET quote_all_identifiers = off
AS $$
    WITH ours AS (
        SELECT t.oid, t.tgname::text AS name, t.tgenabled, t.tgconstraint <> 0 AS is_constraint,
               whole.tgenabled AS enabled_in_whole,
               format('%I.%I', n.nspname, c.relname) AS relation, pg_get_triggerdef(t.oid) AS definition,
               CASE WHEN t.tgparentid <> 0 THEN (SELECT count(*) FROM pg_partition_ancestors(t.tgrelid)) END AS depth
        FROM pg_trigger t
        JOIN pg_proc p ON p.oid = t.tgfoid
        JOIN pg_class c ON c.oid = t.tgrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_trigger whole ON whole.oid = t.tgparentid
        WHERE p.pronamespace = 'tidings'::regnamespace AND c.relpersistence <> 't'
    )
    -- There is no CREATE OR REPLACE CONSTRAINT TRIGGER.
    SELECT 1, o.relation, o.name, format('DROP TRIGGER IF EXISTS %I ON %s;', o.name, o.relation)
    FROM ours o WHERE o.depth IS NULL AND o.is_constraint
    UNION ALL
    SELECT 2, o.relation, o.name, regexp_replace(o.definition, '^CREATE TRIGGER ', 'CREATE OR REPLACE TRIGGER ') || ';'
    FROM ours o WHERE o.depth IS NULL
    UNION ALL
    -- A new trigger is enabled for ordinary sessions (O). One of a partition is like that of its partitioned table,
    -- which comes first.
    SELECT coalesce(3 + o.depth::integer, 3), o.relation, o.name, format(
        'ALTER TABLE %s %s TRIGGER %I;', o.relation,
        CASE o.tgenabled WHEN 'O' THEN 'ENABLE' WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA'
                         ELSE 'DISABLE' END, o.name)
    FROM ours o WHERE o.tgenabled <> CASE WHEN o.depth IS NULL THEN 'O' ELSE o.enabled_in_whole END
$$;

COMMENT ON FUNCTION tidings.exported_triggers() IS 'The part of export() for the triggers of watches';

CREATE OR REPLACE FUNCTION tidings.export() RETURNS SETOF text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT statement FROM (
        SELECT 1 AS part, step, relation, name, statement FROM tidings.exported_triggers()
        UNION ALL
        -- Without this setting, a backslash in a literal has another meaning.
        SELECT 0, 0, '', '', 'SET standard_conforming_strings = on;'
        WHERE EXISTS (SELECT FROM tidings.exported_triggers() t WHERE strpos(t.statement, chr(92)) > 0)
        UNION ALL
        SELECT 2, 0, r.topic, '', format(
            'INSERT INTO tidings.rule (topic, using_query, search_path) VALUES (%L, %L, %L)'
            ' ON CONFLICT (topic) DO UPDATE'
            ' SET using_query = excluded.using_query, search_path = excluded.search_path;',
            r.topic, r.using_query, r.search_path)
        FROM tidings.rule r
        UNION ALL
        SELECT 3, 0, s.topic, '', format(
            'INSERT INTO tidings.snapshot_query (topic, query, event, search_path) VALUES (%L, %L, %L, %L)'
            ' ON CONFLICT (topic) DO UPDATE'
            ' SET query = excluded.query, event = excluded.event, search_path = excluded.search_path;',
            s.topic, s.query, s.event, s.search_path)
        FROM tidings.snapshot_query s
    ) exported
    -- The same order everywhere, because the result is kept in a version control system.
    ORDER BY part, step, relation COLLATE "C", name COLLATE "C"
$$;

COMMENT ON FUNCTION tidings.export() IS
    'The statements that recreate all watches, guards, rules and queries for snapshots, in an order in which they can run. They replace those of the same name';
