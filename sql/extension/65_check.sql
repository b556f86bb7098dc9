-- The check: what must be right so that events arrive, each with the statement that mends it. `tidings-proxy check`
-- asks for it too.
--
-- ok is true if a thing is right and false if it must be mended. NULL is a hint: it may be meant to be so.

CREATE OR REPLACE FUNCTION tidings.library_version() RETURNS text
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'library_version_wrapper';

COMMENT ON FUNCTION tidings.library_version() IS 'The version of the library that this session uses';

CREATE OR REPLACE FUNCTION tidings.check_library(OUT item text, OUT ok boolean, OUT detail text, OUT fix text)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    library   text := tidings.library_version();
    created   text := (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'tidings');
    available text := (SELECT a.default_version FROM pg_available_extensions a WHERE a.name = 'tidings');
BEGIN
    item := 'preload';
    BEGIN
        PERFORM tidings.relay();
        ok := true;
        detail := 'the library is preloaded';
    EXCEPTION WHEN object_not_in_prerequisite_state THEN
        ok := false;
        detail := 'the library is not preloaded: no change is captured, and no relay runs';
        fix := format('ALTER SYSTEM SET shared_preload_libraries = %s;  -- then restart the server', (
            SELECT string_agg(quote_literal(btrim(l.name, ' "')), ', ' ORDER BY l.n)
            FROM string_to_table(concat_ws(',', nullif(current_setting('shared_preload_libraries'), ''), 'tidings'), ',')
                WITH ORDINALITY AS l (name, n)));
    END;
    RETURN NEXT;

    item := 'version';
    fix := NULL;
    ok := library = created;
    detail := format('the extension is %s, the library in memory %s, the installed files %s', created, library, coalesce(available, 'not found'));
    IF created <> library AND library = available THEN
        fix := 'ALTER EXTENSION tidings UPDATE;';
    ELSIF library <> available THEN
        ok := NULLIF(ok, true);
        fix := 'Restart the server, so that it loads the installed library; then ALTER EXTENSION tidings UPDATE;';
    END IF;
    RETURN NEXT;
END
$$;

COMMENT ON FUNCTION tidings.check_library() IS 'The part of check() about the library';

CREATE OR REPLACE FUNCTION tidings.check_relay(OUT item text, OUT ok boolean, OUT detail text, OUT fix text)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relay   record;
    most    integer := current_setting('max_worker_processes')::integer;
    -- Everything that is no process of Postgres itself takes one of these places.
    workers bigint  := (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type <> ALL ('{client backend,autovacuum launcher,autovacuum worker,
        background writer,checkpointer,walwriter,walsender,walreceiver,walsummarizer,startup,archiver,slotsync worker,io worker,logger,standalone backend}'));
    more    text    := format('ALTER SYSTEM SET max_worker_processes = %s;  -- then restart the server', most + 8);
    ahead   interval;
BEGIN
    SELECT * INTO relay FROM tidings.relay();
    item := 'relay';
    ok := relay.pid IS NOT NULL OR relay.state = 'standby';
    IF relay.pid IS NOT NULL THEN
        detail := format('the relay runs, process %s', relay.pid);
    ELSIF relay.state = 'standby' THEN
        detail := 'a standby, which gets its events from the primary''s relay';
    ELSE
        detail := format('no relay runs (%s), so no event is sent', relay.state);
        fix := CASE WHEN relay.state = 'no place' THEN 'Drop the extension in databases that do not use it: too many have it.'
                    WHEN workers >= most THEN more
                    ELSE 'Read the server''s log: its lines about tidings say why.' END;
    END IF;
    RETURN NEXT;

    item := 'workers';
    ok := NULLIF(workers < most, false);
    detail := format('%s of %s background workers are in use (max_worker_processes); each database with the extension needs one', workers, most);
    fix := CASE WHEN ok IS NULL THEN more END;
    RETURN NEXT;

    item := 'compression';
    ok := NULLIF((SELECT bool_and(a.attcompression = 'l') FROM pg_inherits i JOIN pg_attribute a ON a.attrelid = i.inhrelid
                  WHERE i.inhparent = 'tidings.log'::regclass AND a.attname = 'data'), false);
    detail := CASE WHEN ok THEN 'the log is compressed with lz4'
                   ELSE 'the log is compressed with pglz, which costs writers of large events more time than lz4; this server was built without lz4' END;
    fix := NULL;
    RETURN NEXT;

    SELECT s.clock_ahead INTO ahead FROM tidings.status s;
    IF ahead > '10 seconds' THEN
        item := 'clock';
        ok := NULL;
        detail := format('the server''s clock was set back: positions are %s ahead of it until it has caught up', ahead);
        RETURN NEXT;
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.check_relay() IS 'The part of check() about the relay and its server';

CREATE OR REPLACE FUNCTION tidings.sample_topic(template text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
-- chr(1) and chr(2) stand for literal braces meanwhile: no topic has control characters.
AS $$
    SELECT translate(regexp_replace(replace(replace(template, '{{', chr(1)), '}}', chr(2)), '[{][^{}]*[}]', '1', 'g'), chr(1) || chr(2), '{}')
$$;

COMMENT ON FUNCTION tidings.sample_topic(text) IS 'A topic that fits a template: each hole has the value 1';

CREATE OR REPLACE FUNCTION tidings.meet(template text, other text) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT tidings.match_topic(template, tidings.sample_topic(other)) IS NOT NULL
        OR tidings.match_topic(other, tidings.sample_topic(template)) IS NOT NULL
$$;

COMMENT ON FUNCTION tidings.meet(text, text) IS 'Whether one template fits topics of the other';

CREATE OR REPLACE FUNCTION tidings.check_watches(OUT item text, OUT ok boolean, OUT detail text, OUT fix text)
RETURNS SETOF record
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'watch', CASE WHEN count(*) > 0 THEN true END,
           CASE WHEN count(*) > 0 THEN format('%s watches', count(*)) ELSE 'no table is watched, so only tidings.publish() makes events' END,
           CASE WHEN count(*) = 0 THEN 'SELECT tidings.watch(''items'', topic => ''lists_{list_id}'');' END
    FROM tidings.watches w WHERE NOT w.is_guard
    UNION ALL
    SELECT 'watch', NULL, format('the watch "%s" of %s is disabled', w.name, w.relation),
           format('ALTER TABLE %s ENABLE TRIGGER %I;', w.relation, 'tidings_' || w.name)
    FROM tidings.watches w WHERE NOT w.enabled
    UNION ALL
    SELECT 'access', CASE WHEN count(*) > 0 THEN true END,
           CASE WHEN count(*) > 0 THEN format('%s rules', count(*)) ELSE 'there is no rule, so with tokens nobody may subscribe to anything' END,
           CASE WHEN count(*) = 0 THEN 'SELECT tidings.allow(''lists_{list_id}'', ''SELECT FROM lists WHERE id = {list_id}::bigint'');' END
    FROM tidings.rule
    UNION ALL
    SELECT 'rule', NULL, format('no rule fits the topic "%s" of %s, so with tokens nobody may subscribe to it', w.topic, w.relation),
           format('SELECT tidings.allow(%L, ''SELECT ...'');', w.topic)
    FROM tidings.watches w
    WHERE NOT w.is_guard
      AND EXISTS (SELECT FROM tidings.rule) AND NOT EXISTS (SELECT FROM tidings.rule r WHERE tidings.meet(r.topic, w.topic))
    UNION ALL
    SELECT 'guard', NULL, format('no rule fits the topic "%s" of the guard of %s, so it has no effect on streams with tokens',
                                 w.topic, w.relation),
           format('SELECT tidings.unwatch(%L, %L);  -- or guard it again with the topic of a rule', w.relation, w.name)
    FROM tidings.watches w
    WHERE w.is_guard
      AND EXISTS (SELECT FROM tidings.rule) AND NOT EXISTS (SELECT FROM tidings.rule r WHERE tidings.meet(r.topic, w.topic))
    UNION ALL
    SELECT 'rule', NULL, format('no watch makes a topic that fits the rule "%s": only tidings.publish() may', r.topic), NULL
    FROM tidings.rule r
    WHERE EXISTS (SELECT FROM tidings.watches w WHERE NOT w.is_guard)
      AND NOT EXISTS (SELECT FROM tidings.watches w WHERE NOT w.is_guard AND tidings.meet(r.topic, w.topic))
    UNION ALL
    SELECT 'rule', false, format('the rule "%s" is invalid and allows nothing', r.topic), format('SELECT tidings.allow(%L, ''SELECT ...'');', r.topic)
    FROM tidings.rule r WHERE NOT tidings.can_bind(r.topic, r.using_query)
$$;

COMMENT ON FUNCTION tidings.check_watches() IS 'The part of check() about watches and rules';

CREATE OR REPLACE FUNCTION tidings.explain_rule(role oid, query text, holes text[], search_path text) RETURNS text
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'explain_rule_wrapper';

COMMENT ON FUNCTION tidings.explain_rule(oid, text, text[], text) IS
    'The plan of a rule for the role and these values of its holes, as JSON; NULL if it cannot be planned. It is planned as the role, and not run';

CREATE OR REPLACE FUNCTION tidings.subscriber_roles() RETURNS SETOF oid
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT r.oid
    FROM pg_roles r
    WHERE NOT r.rolsuper AND NOT has_function_privilege(r.oid, 'tidings.channel()', 'EXECUTE') AND EXISTS (
        SELECT FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a
        WHERE p.oid = 'tidings.check_subscription(jsonb, text[])'::regprocedure
          AND a.grantee NOT IN (0, p.proowner, r.oid) AND pg_has_role(a.grantee, r.oid, 'MEMBER'))
    ORDER BY r.rolname
$$;

COMMENT ON FUNCTION tidings.subscriber_roles() IS 'The roles that tokens may name: those that a proxy may take';

-- The values are unknown here, so a rule is planned with one that most types accept, for a few of the subscribers'
-- roles. A table that is small now is read from end to end without harm, so only large ones count.
CREATE OR REPLACE FUNCTION tidings.check_rules(OUT item text, OUT ok boolean, OUT detail text, OUT fix text)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    most_rules CONSTANT integer := 100;
    most_roles CONSTANT integer := 3;
    many_rows  CONSTANT integer := 10000;
    samples    CONSTANT text[]  := '{1,00000000-0000-0000-0000-000000000001,2000-01-01}';
    planned integer := 0;
    total   integer := 0;
    slow    integer := 0;
    role    oid;
    rule    record;
    scan    record;
    sample  text;
    plan    jsonb;
BEGIN
    item := 'plan';
    FOR rule IN
        SELECT r.topic, r.search_path, tidings.bind_holes(r.topic, r.using_query) AS query, cardinality(tidings.holes(r.topic)) AS holes
        FROM tidings.rule r WHERE tidings.can_bind(r.topic, r.using_query) ORDER BY r.topic LIMIT most_rules
    LOOP
        total := total + 1;
        FOR role IN SELECT r FROM tidings.subscriber_roles() r LIMIT most_roles LOOP
            plan := NULL;
            FOREACH sample IN ARRAY samples LOOP
                plan := coalesce(plan, tidings.explain_rule(role, rule.query, array_fill(sample, ARRAY[rule.holes]), rule.search_path)::jsonb);
            END LOOP;
            CONTINUE WHEN plan IS NULL;
            planned := planned + 1;
            FOR scan IN
                SELECT DISTINCT c.oid::regclass AS relation, c.reltuples::bigint AS count, node ->> 'Filter' AS filter
                FROM jsonb_path_query(plan, 'strict $.**  ? (@."Node Type" == "Seq Scan")') node
                JOIN pg_class c ON c.relname = node ->> 'Relation Name' AND c.relnamespace = to_regnamespace(quote_ident(node ->> 'Schema'))
                WHERE c.reltuples >= many_rows
            LOOP
                slow := slow + 1;
                ok := NULL;
                detail := format('each check of the rule "%s" reads all %s rows of %s, as %s', rule.topic, scan.count, scan.relation, role::regrole);
                fix := format('Create an index for this condition: %s', coalesce(scan.filter, 'none, so every row is read'));
                RETURN NEXT;
            END LOOP;
            EXIT;
        END LOOP;
    END LOOP;
    IF total > 0 AND slow = 0 THEN
        ok := true;
        detail := format('%s of %s rules could be planned with sample values, and none reads a large table from end to end', planned, total);
        fix := NULL;
        RETURN NEXT;
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.check_rules() IS 'The part of check() about the plans of rules';

CREATE OR REPLACE FUNCTION tidings.check_log(OUT item text, OUT ok boolean, OUT detail text, OUT fix text)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    log     record;
    kept    interval;
    standby integer := (SELECT count(*) FROM pg_stat_replication r WHERE r.state = 'streaming');
BEGIN
    SELECT s.*, clock_timestamp() - to_timestamp(s.oldest_position / 1000000.0) AS kept INTO log FROM tidings.status s;
    item := 'log';
    kept := date_trunc('second', greatest(log.kept, '0'));
    -- Partitions are removed in turn, so events stay up to half as long again.
    ok := NULLIF(coalesce(log.kept, '0') < log.retention * 2 + interval '5 minutes', false);
    IF ok THEN
        detail := format('the log has %s for the last %s; events stay up to %s. SQL can''t see how much of the disk is free: compare with df',
            pg_size_pretty(log.log_bytes), kept, log.retention * 1.5);
        fix := NULL;
    ELSE
        detail := format('the log has %s and goes back %s, more than tidings.retention (%s)', pg_size_pretty(log.log_bytes), kept, log.retention);
        fix := 'End old transactions that wrote to it: SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY xact_start LIMIT 3; or pg_prepared_xacts.';
    END IF;
    RETURN NEXT;

    IF standby > 0 THEN
        item := 'standby';
        ok := NULL;
        detail := format('standbys connected: %s; their settings can''t be seen from here', standby);
        fix := 'On each, before it may be promoted, shared_preload_libraries must contain tidings. Look with the same '
               'tidings-proxy check, but with --database-url of the standby; or there: SELECT * FROM tidings.check();';
        RETURN NEXT;
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.check_log() IS 'The part of check() about the size of the log, and about standbys';

CREATE OR REPLACE FUNCTION tidings.check_topics(topics text[], OUT item text, OUT ok boolean, OUT detail text, OUT fix text) RETURNS SETOF record
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'topic', w.relation IS NOT NULL,
           CASE WHEN w.relation IS NOT NULL THEN format('changes of %s make the topic "%s"', w.relation, t.topic)
                ELSE format('no watch makes the topic "%s"; the watches make %s', t.topic,
                    coalesce((SELECT string_agg(DISTINCT format('"%s" (%s)', a.topic, a.relation), ', ') FROM tidings.watches a WHERE NOT a.is_guard), 'none')) END,
           CASE WHEN w.relation IS NULL THEN 'Subscribe to one of these, or watch the table: SELECT tidings.watch(''items'', topic => ''lists_{list_id}'');' END
    FROM unnest(topics) WITH ORDINALITY AS t (topic, n)
    LEFT JOIN LATERAL (SELECT * FROM tidings.watches a WHERE NOT a.is_guard AND tidings.match_topic(a.topic, t.topic) IS NOT NULL LIMIT 1) w ON true
    UNION ALL
    SELECT 'access', r.topic IS NOT NULL OR NULL,
           CASE WHEN r.topic IS NOT NULL THEN format('the rule "%s" decides about the topic "%s"', r.topic, t.topic)
                ELSE format('no rule matches the topic "%s"', t.topic) END,
           CASE WHEN r.topic IS NULL THEN format('SELECT tidings.allow(%L, ''SELECT ...'');', t.topic) END
    FROM unnest(topics) WITH ORDINALITY AS t (topic, n)
    LEFT JOIN LATERAL (SELECT * FROM tidings.rule a WHERE tidings.match_topic(a.topic, t.topic) IS NOT NULL LIMIT 1) r ON true
$$;

COMMENT ON FUNCTION tidings.check_topics(text[]) IS 'The part of check() about the given topics';

CREATE OR REPLACE FUNCTION tidings.check_roles(OUT item text, OUT ok boolean, OUT detail text, OUT fix text)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY WITH login AS (
        SELECT r.oid, r.rolname, ARRAY(
            SELECT f::text FROM unnest(tidings.proxy_functions()) f WHERE NOT has_function_privilege(r.oid, f, 'EXECUTE')) AS missing
        FROM pg_roles r
        WHERE r.oid IN (SELECT a.grantee FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a
                        WHERE p.oid = 'tidings.listen()'::regprocedure AND a.grantee <> p.proowner)
    )
    SELECT 'proxy', CASE WHEN count(*) > 0 THEN true END,
           coalesce('roles of proxies: ' || string_agg(l.rolname, ', ' ORDER BY l.rolname), 'no role has the rights of a proxy'),
           CASE WHEN count(*) = 0 THEN 'CREATE ROLE tidings_proxy LOGIN PASSWORD ''...''; SELECT tidings.grant_proxy(''tidings_proxy'');' END
    FROM login l
    UNION ALL
    SELECT 'proxy', false, format('the proxy''s role %I may not execute %s', l.rolname, array_to_string(l.missing, ', ')),
           format('SELECT tidings.grant_proxy(%L);', quote_ident(l.rolname))
    FROM login l WHERE l.missing <> '{}'
    UNION ALL
    SELECT 'proxy', NULL, format('the proxy''s role %I is a superuser, or can become one through %I: it can read and change everything', l.rolname, r.rolname),
           CASE WHEN l.oid = r.oid THEN format('ALTER ROLE %I NOSUPERUSER;', l.rolname) ELSE format('REVOKE %I FROM %I;', r.rolname, l.rolname) END
    FROM login l JOIN pg_roles r ON pg_has_role(l.oid, r.oid, 'MEMBER')
    WHERE r.rolsuper AND (l.oid = r.oid OR NOT (SELECT s.rolsuper FROM pg_roles s WHERE s.oid = l.oid));
END
$$;

COMMENT ON FUNCTION tidings.check_roles() IS 'The part of check() about the roles of proxies';

-- This function reads rules, watches and settings, so it runs as the extension's owner. A proxy's role, which can read
-- every event, learns from it the templates of topics, but not the queries of rules.
CREATE OR REPLACE FUNCTION tidings.check(topics text[] DEFAULT '{}', OUT item text, OUT ok boolean, OUT detail text, OUT fix text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    RETURN QUERY SELECT * FROM tidings.check_library();
    -- Nothing else can be asked without the library.
    IF EXISTS (SELECT FROM tidings.check_library() c WHERE c.item = 'preload' AND c.ok) THEN
        RETURN QUERY SELECT * FROM tidings.check_relay();
        RETURN QUERY SELECT * FROM tidings.check_roles();
        RETURN QUERY SELECT * FROM tidings.check_watches();
        RETURN QUERY SELECT * FROM tidings.check_rules();
        RETURN QUERY SELECT * FROM tidings.check_log();
        RETURN QUERY SELECT * FROM tidings.check_topics(topics);
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.check(text[]) IS
    'What must be right so that events of these topics arrive: ok is false for what is wrong, NULL for a hint, and fix says what to do';

CREATE OR REPLACE FUNCTION tidings.probe(id uuid) RETURNS text
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    topic text := 'tidings_check_' || id::text;
BEGIN
    PERFORM tidings.publish_text(topic, id::text, 'check');
    RETURN topic;
END
$$;

COMMENT ON FUNCTION tidings.probe(uuid) IS
    'Called by tidings-proxy check: sends an event on a topic of its own, which is returned';
