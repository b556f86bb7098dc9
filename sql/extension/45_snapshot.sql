-- The current rows of a topic: a stream with since=snapshot starts with them, and tidings.state() returns them.
--
-- They are the rows of the watches whose topic matches, unless the DBA has given a query for such topics. Either way
-- they are read as the subscriber. The library does the reading, because code of policies and views could leave the
-- role of a reading in SQL.

CREATE OR REPLACE VIEW tidings.snapshots AS SELECT topic, query, event FROM tidings.snapshot_query;

COMMENT ON VIEW tidings.snapshots IS
    'The queries whose rows streams start with. Streams of other topics start with the rows of their watches';
COMMENT ON COLUMN tidings.snapshots.topic IS 'The topic template';
COMMENT ON COLUMN tidings.snapshots.query IS 'The query, in which {name} stands for the value of that hole, as text';
COMMENT ON COLUMN tidings.snapshots.event IS 'The name of the events that its rows become';

CREATE OR REPLACE FUNCTION tidings.check_snapshot(topic text, event text) RETURNS void
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'check_snapshot_wrapper';

COMMENT ON FUNCTION tidings.check_snapshot(text, text) IS
    'Raises an error if the topic of a query or the name of its events is not valid';

CREATE OR REPLACE FUNCTION tidings.keep_snapshot(topic text, query text, event text, schemas name[]) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    PERFORM tidings.check_snapshot(topic, event);
    INSERT INTO tidings.snapshot_query AS s VALUES (topic, query, event, tidings.query_path('snapshot', topic, query, schemas))
        ON CONFLICT ON CONSTRAINT snapshot_query_pkey
        DO UPDATE SET query = excluded.query, event = excluded.event, search_path = excluded.search_path;
END
$$;

COMMENT ON FUNCTION tidings.keep_snapshot(text, text, text, name[]) IS
    'Checks a query and stores it. If its query needs more than pg_catalog, names are looked up in these schemas';

CREATE OR REPLACE FUNCTION tidings.snapshot(topic text, query text, event text DEFAULT 'snapshot') RETURNS void
LANGUAGE plpgsql STRICT
AS $$
BEGIN
    -- This reads the caller's search_path, but depends on it for nothing else.
    PERFORM tidings.keep_snapshot(topic, query, event, pg_catalog.current_schemas(false));
END
$$;

COMMENT ON FUNCTION tidings.snapshot(text, text, text) IS
    'Streams of topics that match the template start with the rows of this query, instead of those of the watches. Replaces an earlier query of the same template';

CREATE OR REPLACE FUNCTION tidings.unsnapshot(topic text) RETURNS boolean
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    DELETE FROM tidings.snapshot_query s WHERE s.topic = topic;
    RETURN FOUND;
END
$$;

COMMENT ON FUNCTION tidings.unsnapshot(text) IS
    'Removes a query for the start of streams. Returns false if there is none for this template';

-- The library calls this with the rights of the extension's owner, because a subscriber may not read the queries.
CREATE OR REPLACE FUNCTION tidings.row_sources(topics text[]) RETURNS text
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT json_build_array(
        (SELECT coalesce(json_agg(json_build_array(
                    t.topic, s.event, tidings.bind_holes(s.topic, s.query), m.holes, s.search_path) ORDER BY t.n, s.topic), '[]')
         FROM unnest(topics) WITH ORDINALITY AS t (topic, n)
         CROSS JOIN tidings.snapshot_query s
         CROSS JOIN LATERAL tidings.match_topic(s.topic, t.topic) AS m (holes)
         WHERE m.holes IS NOT NULL),
        -- The bits of tgtype: FOR EACH ROW (1) and INSERT (4). Not copied from a partitioned table, and enabled for
        -- ordinary sessions.
        (SELECT coalesce(json_agg(json_build_array(g.oid::bigint, g.tgrelid::bigint, encode(g.tgargs, 'hex'))
                    ORDER BY g.tgrelid, g.tgname), '[]')
         FROM pg_trigger g
         WHERE g.tgfoid = 'tidings.capture()'::regprocedure AND g.tgparentid = 0 AND g.tgtype & 5 = 5
           AND g.tgenabled IN ('O', 'A')
           -- Not a guard: its arguments, each of which ends with a zero byte, contain guard=true.
           AND position(decode('0067756172643d7472756500', 'hex') IN decode('00', 'hex') || g.tgargs) = 0))::text
$$;

COMMENT ON FUNCTION tidings.row_sources(text[]) IS
    'As JSON: the queries for the topics, and the triggers of all watches that capture INSERT';

CREATE OR REPLACE FUNCTION tidings.open_rows_as(role oid, claims text, topics text[], search_path text) RETURNS void
-- Not STRICT, because claims may be NULL.
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'open_rows_as_wrapper';

COMMENT ON FUNCTION tidings.open_rows_as(oid, text, text[], text) IS
    'Opens a reading of the rows of topics for tidings.fetch_rows(), as a role that it does not check';

-- A proxy's session looks up names only in pg_catalog. Code of policies and views needs the path that a session of the
-- role has.
CREATE OR REPLACE FUNCTION tidings.search_path_of(role oid) RETURNS text
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        (SELECT substr(setting, 13) FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS setting
         WHERE s.setrole IN (0, role) AND setting LIKE 'search~_path=%' ESCAPE '~'
           AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
         ORDER BY s.setrole <> 0 DESC, s.setdatabase <> 0 DESC LIMIT 1),
        (SELECT s.reset_val FROM pg_settings s WHERE s.name = 'search_path'))
$$;

COMMENT ON FUNCTION tidings.search_path_of(oid) IS
    'The search_path with which a session of the role in this database begins';

CREATE OR REPLACE FUNCTION tidings.open_rows(claims jsonb, topics text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    role_claim text := CASE WHEN claims IS NULL THEN session_user WHEN jsonb_typeof(claims -> 'role') = 'string' THEN claims ->> 'role' END;
    role       oid  := (SELECT r.oid FROM pg_roles r WHERE r.rolname = role_claim);
    refused    text := CASE WHEN claims IS NOT NULL THEN tidings.no_subscriber(role_claim) END;
BEGIN
    PERFORM tidings.refuse_subscriber();
    -- Roles may be created, dropped and renamed meanwhile. The rows must be read as the role that was checked.
    IF refused IS NULL AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = role AND r.rolname = role_claim) THEN
        refused := 'there is no such role for subscribers';
    END IF;
    IF refused IS NOT NULL THEN
        RAISE EXCEPTION 'rows can''t be read for these claims: %', refused
            USING ERRCODE = 'insufficient_privilege', HINT = 'Claims must name a role that the login role is a member of.';
    END IF;
    PERFORM tidings.open_rows_as(role, claims::text, topics, tidings.search_path_of(role));
END
$$;

COMMENT ON FUNCTION tidings.open_rows(jsonb, text[]) IS
    'Opens a reading of the rows of topics, as the role of the claims, or as the session''s own role if claims is NULL. The caller rolls its transaction back';

CREATE OR REPLACE FUNCTION tidings.fetch_rows(max_bytes integer, OUT topic text, OUT event text, OUT payloads text[])
RETURNS SETOF record
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'fetch_rows_wrapper';

COMMENT ON FUNCTION tidings.fetch_rows(integer) IS
    'The next rows of the open reading: at least one, and about max_bytes in total. No rows at its end';

CREATE OR REPLACE FUNCTION tidings.state(topics text[], OUT topic text, OUT event text, OUT payload text)
RETURNS SETOF record
LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'state_wrapper';

COMMENT ON FUNCTION tidings.state(text[]) IS
    'The current rows of topics as events, read with the caller''s rights. With tidings.position() in the same statement, a page can be rendered from them and continue as a stream';

CREATE OR REPLACE FUNCTION tidings.holes(template text) RETURNS text[]
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'holes_wrapper';

COMMENT ON FUNCTION tidings.holes(text) IS 'The names of a template''s holes, in order';

CREATE OR REPLACE FUNCTION tidings.note_missing_index(relation regclass, topic text, operations text[]) RETURNS void
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    holes text[] := tidings.holes(topic);
BEGIN
    IF holes = '{}' OR NOT EXISTS (SELECT FROM unnest(operations) o WHERE upper(o COLLATE "C") = 'INSERT') THEN
        RETURN;
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = relation AND i.indisvalid AND i.indpred IS NULL AND a.attname = ANY (holes)) THEN
        RAISE NOTICE 'no index finds the rows of a topic of %: a stream with since=snapshot reads the whole table', relation
            USING HINT = format('If streams start with the rows: CREATE INDEX ON %s (%I)', relation, holes[1]);
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.note_missing_index(regclass, text, text[]) IS
    'Gives a notice if no index begins with a column of the topic';
