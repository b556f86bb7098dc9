-- The log: what was captured, and the ticks that order it.
--
-- Both tables have four partitions that are used in turn and emptied by TRUNCATE (see retention.rs). Writers insert into a
-- partition of the log directly; the index on xid is the only one on their path. The relay alone writes ticks.

\echo Use "CREATE EXTENSION tidings" to load this file. \quit

CREATE TABLE tidings.log (
    slot    smallint NOT NULL,
    xid     xid8     NOT NULL,
    stamp   bigint   NOT NULL,
    ordinal bigint   NOT NULL,
    events  integer  NOT NULL,
    data    bytea    NOT NULL
) PARTITION BY LIST (slot);

COMMENT ON TABLE tidings.log IS 'The captured events: one row, a segment, for each transaction or early flush';
COMMENT ON COLUMN tidings.log.slot IS 'The partition';
COMMENT ON COLUMN tidings.log.xid IS 'The transaction that captured the events';
COMMENT ON COLUMN tidings.log.stamp IS 'When the segment was written: microseconds since the Unix epoch, never twice the same';
COMMENT ON COLUMN tidings.log.ordinal IS 'How many events of the transaction come before this segment';
COMMENT ON COLUMN tidings.log.events IS 'How many events the segment holds';
COMMENT ON COLUMN tidings.log.data IS 'The events, encoded; see tidings.events';

CREATE TABLE tidings.tick (
    slot     smallint    NOT NULL,
    tick     bigint      NOT NULL,
    previous bigint      NOT NULL,
    since    pg_snapshot NOT NULL,
    until    pg_snapshot NOT NULL,
    used     smallint    NOT NULL
) PARTITION BY LIST (slot);

COMMENT ON TABLE tidings.tick IS 'The cuts through the log: a tick holds what one snapshot sees and the one before does not';
COMMENT ON COLUMN tidings.tick.slot IS 'The partition';
COMMENT ON COLUMN tidings.tick.tick IS 'The tick''s number: when it was cut, in microseconds since the Unix epoch';
COMMENT ON COLUMN tidings.tick.previous IS 'The number of the tick before';
COMMENT ON COLUMN tidings.tick.since IS 'What this snapshot sees is in an earlier tick';
COMMENT ON COLUMN tidings.tick.until IS 'What this snapshot does not see is in a later tick';
COMMENT ON COLUMN tidings.tick.used IS 'The partitions of the log that hold its segments: bit n stands for log_n';

CREATE TABLE tidings.log_0 PARTITION OF tidings.log FOR VALUES IN (0);
CREATE TABLE tidings.log_1 PARTITION OF tidings.log FOR VALUES IN (1);
CREATE TABLE tidings.log_2 PARTITION OF tidings.log FOR VALUES IN (2);
CREATE TABLE tidings.log_3 PARTITION OF tidings.log FOR VALUES IN (3);
CREATE TABLE tidings.tick_0 PARTITION OF tidings.tick FOR VALUES IN (0);
CREATE TABLE tidings.tick_1 PARTITION OF tidings.tick FOR VALUES IN (1);
CREATE TABLE tidings.tick_2 PARTITION OF tidings.tick FOR VALUES IN (2);
CREATE TABLE tidings.tick_3 PARTITION OF tidings.tick FOR VALUES IN (3);

-- Rows are never updated, and leave with their whole partition: there is nothing to vacuum but against wraparound. Large
-- segments are compressed, by lz4 where the server has it.
DO $$
DECLARE
    part regclass;
BEGIN
    FOR part IN
        SELECT inhrelid FROM pg_catalog.pg_inherits
        WHERE inhparent IN ('tidings.log'::regclass, 'tidings.tick'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off, toast.autovacuum_enabled = off)', part);
        EXECUTE format('COMMENT ON TABLE %s IS %L', part, 'A partition, emptied as a whole when all in it has been retained long enough');
    END LOOP;
    -- The relay deletes from the ticks, which a publication of all tables would not allow without an identity.
    FOR part IN SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = 'tidings.tick'::regclass LOOP
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', part);
    END LOOP;
    FOR part IN SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = 'tidings.log'::regclass LOOP
        BEGIN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN data SET COMPRESSION lz4', part);
        EXCEPTION WHEN feature_not_supported THEN
            NULL;  -- This server was built without lz4: pglz, then.
        END;
    END LOOP;
END
$$;

CREATE INDEX log_xid_idx ON tidings.log (xid);
CREATE INDEX tick_tick_idx ON tidings.tick (tick);

COMMENT ON INDEX tidings.log_xid_idx IS 'Finds the segments of a tick: those from one transaction on, and stragglers';
COMMENT ON INDEX tidings.tick_tick_idx IS 'Finds the ticks from one number on';

CREATE TABLE tidings.secret (
    channel text NOT NULL
);

COMMENT ON TABLE tidings.secret IS 'What only granted roles may know. Not dumped: each database has its own';
COMMENT ON COLUMN tidings.secret.channel IS 'The channel that the relay notifies: any role may listen on a channel, but must know its name';

INSERT INTO tidings.secret VALUES ('tidings_' || replace(gen_random_uuid()::text, '-', ''));
-- Capture: the trigger function and what one can say by hand.

CREATE FUNCTION tidings.capture() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'tidings_capture';

COMMENT ON FUNCTION tidings.capture() IS
    'Trigger function of a watch. Arguments: topic=…, and if need be event=…, payload=…, old_record=…, column=… or exclude=… (repeated)';

CREATE FUNCTION tidings.publish_text(topic text, data text, event text DEFAULT 'message') RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'publish_text_wrapper';

COMMENT ON FUNCTION tidings.publish_text(text, text, text) IS
    'Sends a text to the subscribers of a topic when the transaction commits; nothing if an argument is NULL';

CREATE FUNCTION tidings.publish(topic text, payload jsonb, event text DEFAULT 'message') RETURNS void
LANGUAGE sql STRICT
BEGIN ATOMIC
    SELECT tidings.publish_text(topic, payload::text, event);
END;

COMMENT ON FUNCTION tidings.publish(text, jsonb, text) IS
    'Sends a JSON value to the subscribers of a topic when the transaction commits; nothing if an argument is NULL';
-- Watches: the triggers, made, dropped and listed. There is no table of watches; the triggers are the configuration.

CREATE FUNCTION tidings.check_watch(relation regclass, name text) RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'check_watch_wrapper';

COMMENT ON FUNCTION tidings.check_watch(regclass, text) IS 'Raises an error if the triggers of a watch could not do their work';

CREATE FUNCTION tidings.watch_statements(
    relation regclass, topic text, event text, payload jsonb, columns text[], exclude text[], operations text[],
    condition text, old_record text, name text
) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    row_operations text[];
    list           text;
    statements     text[] := '{}';
BEGIN
    IF relation IS NULL OR topic IS NULL OR event IS NULL OR operations IS NULL OR old_record IS NULL OR name IS NULL THEN
        RAISE EXCEPTION 'only payload, columns, exclude and condition of tidings.watch() may be NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Leave out an argument to get its default.';
    END IF;
    IF 1 < ANY (ARRAY[array_ndims(columns), array_ndims(exclude), array_ndims(operations)]) THEN
        RAISE EXCEPTION 'a list is nested'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'columns, exclude and operations are plain lists of names.';
    END IF;
    IF array_position(columns, NULL) IS NOT NULL OR array_position(exclude, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'a column''s name is NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'columns and exclude are lists of names.';
    END IF;
    IF columns = '{}' THEN
        RAISE EXCEPTION 'no column is left to capture'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave out columns to capture all of them.';
    END IF;
    IF name = '' OR octet_length(name) > 46 OR right(name, 9) = '_truncate' THEN
        RAISE EXCEPTION 'the name of a watch has 1 to 46 bytes and does not end in _truncate'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Its triggers are called tidings_<name> and tidings_<name>_truncate.';
    END IF;
    operations := ARRAY(SELECT upper(o) FROM unnest(operations) o);
    IF operations = '{}' OR NOT operations <@ '{INSERT,UPDATE,DELETE,TRUNCATE}' THEN
        RAISE EXCEPTION 'operations are %', operations
            USING ERRCODE = 'invalid_parameter_value', HINT = 'They are one or more of INSERT, UPDATE, DELETE and TRUNCATE.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = relation AND c.relkind IN ('r', 'p')) THEN
        RAISE EXCEPTION '% is not a table', relation
            USING ERRCODE = 'wrong_object_type', HINT = 'Watch the tables that a view reads from.';
    END IF;

    SELECT string_agg(quote_literal(a), ', ') INTO list FROM unnest(
        ARRAY['topic=' || topic, 'event=' || event, 'old_record=' || old_record]
        || CASE WHEN payload IS NULL THEN '{}' ELSE ARRAY['payload=' || payload::text] END
        || ARRAY(SELECT 'column=' || c FROM unnest(columns) c)
        || ARRAY(SELECT 'exclude=' || c FROM unnest(exclude) c)) a;

    row_operations := ARRAY(SELECT DISTINCT o FROM unnest(operations) o WHERE o <> 'TRUNCATE');
    IF row_operations <> '{}' THEN
        statements := statements || format(
            'CREATE TRIGGER %I AFTER %s ON %s FOR EACH ROW %s EXECUTE FUNCTION tidings.capture(%s)',
            'tidings_' || name, array_to_string(row_operations, ' OR '), relation,
            CASE WHEN condition IS NULL THEN '' ELSE 'WHEN (' || condition || E'\n)' END, list);  -- a comment at its end ends there
    ELSIF condition IS NOT NULL THEN
        RAISE EXCEPTION 'a watch of TRUNCATE cannot have a condition'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'A condition looks at a row, and TRUNCATE has none.';
    END IF;
    IF 'TRUNCATE' = ANY (operations) THEN
        statements := statements || format(
            'CREATE TRIGGER %I AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION tidings.capture(%s)',
            'tidings_' || name || '_truncate', relation, list);
    END IF;
    RETURN statements;
END
$$;

COMMENT ON FUNCTION tidings.watch_statements(regclass, text, text, jsonb, text[], text[], text[], text, text, text) IS
    'The CREATE TRIGGER statements of a watch';

-- No search_path is set here: the condition means what it means to the caller.
CREATE FUNCTION tidings.watch(
    relation   regclass,
    topic      text,
    event      text    DEFAULT 'changed',
    payload    jsonb   DEFAULT NULL,
    columns    text[]  DEFAULT NULL,
    exclude    text[]  DEFAULT NULL,
    operations text[]  DEFAULT '{INSERT,UPDATE,DELETE}',
    condition  text    DEFAULT NULL,
    old_record text    DEFAULT 'changed',
    name       text    DEFAULT 'default'
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    statements text[] := tidings.watch_statements(
        relation, topic, event, payload, columns, exclude, operations, condition, old_record, name);
    statement  text;
BEGIN
    PERFORM tidings.unwatch(relation, name);
    FOREACH statement IN ARRAY statements LOOP
        EXECUTE statement;
    END LOOP;
    PERFORM tidings.check_watch(relation, name);
END
$$;

COMMENT ON FUNCTION tidings.watch(regclass, text, text, jsonb, text[], text[], text[], text, text, text) IS
    'Captures the changes of a table: each becomes an event of the topic that the row names';

CREATE FUNCTION tidings.unwatch(relation regclass, name text DEFAULT 'default') RETURNS boolean
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    found_any boolean := false;
    dropped   name;
BEGIN
    FOR dropped IN
        SELECT t.tgname FROM pg_trigger t
        WHERE t.tgrelid = relation AND t.tgparentid = 0 AND t.tgfoid = 'tidings.capture()'::regprocedure
          AND t.tgname IN ('tidings_' || name, 'tidings_' || name || '_truncate')
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', dropped, relation);
        found_any := true;
    END LOOP;
    RETURN found_any;
END
$$;

COMMENT ON FUNCTION tidings.unwatch(regclass, text) IS 'Ends a watch; false if there was none of this name';

CREATE VIEW tidings.watches AS
SELECT w.tgrelid::regclass AS relation,
       w.name,
       (SELECT substr(a, 7) FROM unnest(w.list) a WHERE a LIKE 'topic=%') AS topic,
       coalesce((SELECT substr(a, 7) FROM unnest(w.list) a WHERE a LIKE 'event=%'), 'changed') AS event,
       (SELECT substr(a, 9) FROM unnest(w.list) a WHERE a LIKE 'payload=%') AS payload,
       nullif(ARRAY(SELECT substr(a, 8) FROM unnest(w.list) a WHERE a LIKE 'column=%'), '{}') AS columns,
       nullif(ARRAY(SELECT substr(a, 9) FROM unnest(w.list) a WHERE a LIKE 'exclude=%'), '{}') AS exclude,
       array_remove(ARRAY[
           CASE WHEN bit_or(w.tgtype) & 4 <> 0 THEN 'INSERT' END,
           CASE WHEN bit_or(w.tgtype) & 16 <> 0 THEN 'UPDATE' END,
           CASE WHEN bit_or(w.tgtype) & 8 <> 0 THEN 'DELETE' END,
           CASE WHEN bit_or(w.tgtype) & 32 <> 0 THEN 'TRUNCATE' END], NULL) AS operations,
       max(substring(pg_get_triggerdef(w.oid) FROM ' WHEN \((.*)\) EXECUTE FUNCTION ')) AS condition,
       coalesce((SELECT substr(a, 12) FROM unnest(w.list) a WHERE a LIKE 'old_record=%'), 'changed') AS old_record,
       bool_and(w.tgenabled <> 'D') AS enabled
FROM (
    -- The arguments are stored one after the other, each with a zero byte behind it.
    SELECT t.oid, t.tgrelid, t.tgtype, t.tgenabled,
           regexp_replace(t.tgname, CASE WHEN t.tgtype & 32 <> 0 THEN '^tidings_(.*)_truncate$' ELSE '^tidings_(.*)$' END, '\1') AS name,
           (SELECT array_agg(convert_from(decode(replace(raw, ' ', ''), 'hex'), 'UTF8'))
            FROM regexp_split_to_table(regexp_replace(regexp_replace(encode(t.tgargs, 'hex'), '(..)', '\1 ', 'g'), '00 $', ''), '00 ') raw) AS list
    FROM pg_catalog.pg_trigger t
    WHERE t.tgfoid = 'tidings.capture()'::regprocedure AND t.tgparentid = 0
) w
-- A watch of rows and of TRUNCATE has two triggers.
GROUP BY w.tgrelid, w.name, w.list;

COMMENT ON VIEW tidings.watches IS 'Every watch, read from its triggers';
COMMENT ON COLUMN tidings.watches.relation IS 'The watched table';
COMMENT ON COLUMN tidings.watches.name IS 'The name of the watch; its trigger is called tidings_<name>';
COMMENT ON COLUMN tidings.watches.topic IS 'The template of the topic';
COMMENT ON COLUMN tidings.watches.event IS 'The name of its events';
COMMENT ON COLUMN tidings.watches.payload IS 'The shape of the payload, NULL for the usual one';
COMMENT ON COLUMN tidings.watches.columns IS 'The columns that are captured, NULL for all';
COMMENT ON COLUMN tidings.watches.exclude IS 'The columns that are left out, NULL for none';
COMMENT ON COLUMN tidings.watches.operations IS 'INSERT, UPDATE, DELETE, TRUNCATE: those that are captured';
COMMENT ON COLUMN tidings.watches.condition IS 'The condition on OLD and NEW, NULL for none';
COMMENT ON COLUMN tidings.watches.old_record IS 'What an UPDATE tells of the old row: changed, full or none';
COMMENT ON COLUMN tidings.watches.enabled IS 'Whether its triggers are enabled';
-- Reading: positions, and the log in order.
--
-- Every function that reads the log sees each tick whole or not at all, whatever is being written meanwhile, and fails with
-- SQLSTATE TI001 when the position is older than what is retained: never a silent gap.
--
-- The tables are never analyzed, and plans made while they were empty must do for full ones: so sequential scans are off, and
-- so is the just-in-time compiler, which the costs of what is off would call in for each query.

CREATE FUNCTION tidings.stamp() RETURNS bigint
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'stamp_wrapper';

COMMENT ON FUNCTION tidings.stamp() IS 'The next reading of the clock that orders segments and numbers ticks';

CREATE FUNCTION tidings.floor() RETURNS bigint
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'floor_wrapper';

COMMENT ON FUNCTION tidings.floor() IS 'Positions below this one have been given up since the server started, also for old snapshots';

CREATE FUNCTION tidings.parse_position(text, OUT tick bigint, OUT n bigint, OUT stamp bigint, OUT snapshot text) RETURNS SETOF record
LANGUAGE c STRICT IMMUTABLE ROWS 1 AS 'MODULE_PATHNAME', 'parse_position_wrapper';

COMMENT ON FUNCTION tidings.parse_position(text) IS 'Takes a position apart';

CREATE FUNCTION tidings.decode(data bytea, topics text[], OUT n integer, OUT topic text, OUT event text, OUT payload text) RETURNS SETOF record
LANGUAGE c IMMUTABLE AS 'MODULE_PATHNAME', 'decode_wrapper';

COMMENT ON FUNCTION tidings.decode(bytea, text[]) IS 'The events of a segment, those of the given topics only unless that is NULL';

CREATE FUNCTION tidings.relay(OUT pid integer, OUT state text, OUT tick bigint, OUT ticks bigint, OUT events bigint, OUT hints bigint, OUT skipped bigint) RETURNS SETOF record
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'relay_wrapper';

COMMENT ON FUNCTION tidings.relay() IS 'The relay''s process and its counters since the server started';

CREATE FUNCTION tidings.relay_pid() RETURNS integer
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pid FROM tidings.relay();
END;

COMMENT ON FUNCTION tidings.relay_pid() IS 'The relay''s process id, NULL while none runs: notifications from others are not ours';

CREATE FUNCTION tidings.channel() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'SELECT channel FROM tidings.secret';

COMMENT ON FUNCTION tidings.channel() IS 'The channel that the relay notifies';

CREATE FUNCTION tidings.position() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    -- The stamp is read after the snapshot was taken: a tick numbered above it sees all that the snapshot saw.
    SELECT (SELECT t.tick FROM tidings.tick t ORDER BY t.tick DESC LIMIT 1) || ':' || tidings.stamp() || ':' || pg_current_snapshot()
$$;

COMMENT ON FUNCTION tidings.position() IS
    'The position of the current snapshot: what a query of the same snapshot has not seen is behind it';

CREATE FUNCTION tidings.tick_segments(
    since pg_snapshot, until pg_snapshot,
    OUT first integer, OUT events integer, OUT xid xid8, OUT stamp bigint, OUT data bytea
) RETURNS SETOF record
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    -- New are the transactions that had not started when the last tick was cut, and the stragglers that were running then.
    WITH segment AS (
        SELECT l.* FROM tidings.log l WHERE l.xid >= pg_snapshot_xmax(since) AND l.xid < pg_snapshot_xmax(until)
        UNION ALL
        SELECT l.* FROM tidings.log l WHERE l.xid = ANY (ARRAY(SELECT pg_snapshot_xip(since)))
    ), dated AS (
        SELECT s.*, max(s.stamp) OVER (PARTITION BY s.xid) AS last_stamp
        FROM segment s WHERE pg_visible_in_snapshot(s.xid, until)
    )
    -- The order of a tick: transactions by their last stamp, each in its own order. The relay orders likewise (tick.rs).
    SELECT (sum(d.events) OVER before - d.events)::integer, d.events, d.xid, d.stamp, d.data
    FROM dated d
    WINDOW before AS (ORDER BY d.last_stamp, d.ordinal ROWS UNBOUNDED PRECEDING)
    ORDER BY d.last_stamp, d.ordinal
$$;

COMMENT ON FUNCTION tidings.tick_segments(pg_snapshot, pg_snapshot) IS 'The segments of a tick, in order, each with the number of events before it';

CREATE FUNCTION tidings.check_retained(after bigint, n bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    -- What the table says, and what was thrown away since this snapshot was taken.
    oldest bigint := greatest((SELECT t.previous FROM tidings.tick t ORDER BY t.tick LIMIT 1), tidings.floor());
BEGIN
    IF after < oldest OR (after = oldest AND n < 4294967295) THEN
        RAISE EXCEPTION 'the position is older than what is retained'
            USING ERRCODE = 'TI001', HINT = 'Read the data anew and go on from tidings.position(). tidings.retention sets how long events are kept.';
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.check_retained(bigint, bigint) IS 'Raises TI001 unless all events behind a position are retained';

CREATE FUNCTION tidings.locate(after text) RETURNS text
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    place  record;
    newest record;
BEGIN
    IF after = 'earliest' THEN
        RETURN greatest((SELECT t.previous FROM tidings.tick t ORDER BY t.tick LIMIT 1), tidings.floor())::text;
    END IF;
    SELECT * INTO place FROM tidings.parse_position(after);
    PERFORM tidings.check_retained(place.tick, place.n);
    SELECT t.tick, t.until INTO newest FROM tidings.tick t ORDER BY t.tick DESC LIMIT 1;
    IF place.snapshot IS NOT NULL AND newest.tick < place.stamp AND EXISTS (
        SELECT FROM (
            SELECT l.xid FROM tidings.log l WHERE l.xid >= pg_snapshot_xmax(newest.until)
            UNION ALL
            SELECT l.xid FROM tidings.log l WHERE l.xid = ANY (ARRAY(SELECT pg_snapshot_xip(newest.until)))
        ) unticked
        WHERE pg_visible_in_snapshot(unticked.xid, place.snapshot::pg_snapshot)
    ) THEN
        RETURN NULL;
    END IF;
    -- A tick that is not there, and is no boundary either, was lost in a failover.
    IF NOT EXISTS (SELECT FROM tidings.tick t WHERE t.tick = place.tick)
       AND place.tick <> (SELECT t.previous FROM tidings.tick t ORDER BY t.tick LIMIT 1) THEN
        RETURN (SELECT max(t.tick) FROM tidings.tick t WHERE t.tick < place.tick)::text;
    END IF;
    RETURN after;
END
$$;

COMMENT ON FUNCTION tidings.locate(text) IS
    'Where to read on from a position: the same, or the greatest known tick below an unknown one; NULL while something that its snapshot saw is in no tick';

CREATE FUNCTION tidings.segments(
    after text, max_bytes integer DEFAULT 1048576,
    OUT tick bigint, OUT previous bigint, OUT first integer, OUT last boolean, OUT data bytea
) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    place   record;
    t       record;
    segment record;
    size    bigint := 0;
BEGIN
    SELECT * INTO place FROM tidings.parse_position(after) p;
    <<ticks>>
    FOR t IN
        SELECT k.tick, k.previous, k.since, k.until FROM tidings.tick k
        WHERE k.tick > place.tick OR (k.tick = place.tick AND place.n < 4294967295)
        ORDER BY k.tick
    LOOP
        tick := t.tick; previous := t.previous; last := true; data := NULL;
        FOR segment IN
            SELECT s.*, lead(s.first) OVER (ORDER BY s.first) IS NULL AS is_last FROM tidings.tick_segments(t.since, t.until) s
        LOOP
            CONTINUE WHEN t.tick = place.tick AND segment.first + segment.events <= place.n;
            first := segment.first; last := segment.is_last; data := segment.data;
            RETURN NEXT;
            size := size + octet_length(segment.data);
            EXIT ticks WHEN size >= max_bytes;
        END LOOP;
        IF data IS NULL AND t.tick > place.tick THEN
            first := 0;
            RETURN NEXT;
        END IF;
    END LOOP;
    PERFORM tidings.check_retained(place.tick, place.n);
END
$$;

COMMENT ON FUNCTION tidings.segments(text, integer) IS 'The log behind a position, in order, in whole segments, for the proxy';

CREATE FUNCTION tidings.changes(
    after text, topics text[] DEFAULT NULL, max_rows integer DEFAULT 1000,
    OUT "position" text, OUT topic text, OUT event text, OUT payload text, OUT created_at timestamptz
) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    place   record;
    suffix  text;
    t       record;
    divided boolean;
    got     integer;
    found_n integer := 0;
BEGIN
    IF after IS NULL OR max_rows IS NULL OR max_rows < 1 THEN
        RAISE EXCEPTION 'tidings.changes() needs a position and a number of rows'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Start from earliest or from tidings.position().';
    END IF;
    IF after = 'earliest' THEN
        after := tidings.locate(after);
    END IF;
    SELECT * INTO place FROM tidings.parse_position(after) p;
    suffix := substring(after FROM ':.*');
    FOR t IN
        SELECT k.tick, k.previous, k.since, k.until FROM tidings.tick k
        WHERE k.tick > place.tick OR (k.tick = place.tick AND place.n < 4294967295)
        ORDER BY k.tick
    LOOP
        -- A snapshot divides the ticks up to the first one cut after it: its reader knows a part of their events.
        divided := coalesce(t.previous < place.stamp, false);
        -- Segments come in order and are decoded one by one, only as far as rows are wanted: a sort would decode them all.
        RETURN QUERY
            SELECT t.tick || '-' || (s.first + d.n) || CASE WHEN divided THEN suffix ELSE '' END,
                   d.topic, d.event, d.payload, to_timestamp(s.stamp / 1000000.0)
            FROM tidings.tick_segments(t.since, t.until) s
            CROSS JOIN LATERAL tidings.decode(s.data, topics) d
            WHERE (t.tick > place.tick OR s.first + s.events > place.n)
              AND NOT (divided AND pg_visible_in_snapshot(s.xid, place.snapshot::pg_snapshot))
              AND (t.tick > place.tick OR s.first + d.n > place.n)
            LIMIT max_rows - found_n;
        GET DIAGNOSTICS got = ROW_COUNT;
        found_n := found_n + got;
        EXIT WHEN found_n >= max_rows;
    END LOOP;
    PERFORM tidings.check_retained(place.tick, place.n);
END
$$;

COMMENT ON FUNCTION tidings.changes(text, text[], integer) IS
    'The events behind a position, in order, of the given topics or all; fewer than max_rows means that there are no more';

CREATE VIEW tidings.events AS
SELECT t.tick || '-' || (s.first + d.n) AS position, d.topic, d.event, d.payload, to_timestamp(s.stamp / 1000000.0) AS created_at
FROM tidings.tick t
CROSS JOIN LATERAL tidings.tick_segments(t.since, t.until) s
CROSS JOIN LATERAL tidings.decode(s.data, NULL) d;

COMMENT ON VIEW tidings.events IS 'The retained events, for a look; tidings.changes() gives them in order';
COMMENT ON COLUMN tidings.events.position IS 'Its place in the order of all events';
COMMENT ON COLUMN tidings.events.topic IS 'Its topic';
COMMENT ON COLUMN tidings.events.event IS 'Its name';
COMMENT ON COLUMN tidings.events.payload IS 'Its payload, JSON unless it was published as text';
COMMENT ON COLUMN tidings.events.created_at IS 'When its segment was written, right before its transaction committed';
-- What is going on: the relay, the log, and who is subscribed.

CREATE VIEW tidings.status AS
SELECT r.pid AS relay_pid,
       r.state AS relay_state,
       newest.tick AS last_tick,
       to_timestamp(newest.tick / 1000000.0) AS last_tick_at,
       (SELECT to_timestamp(min(w.stamp) / 1000000.0) FROM (
            SELECT l.stamp FROM tidings.log l WHERE l.xid >= pg_snapshot_xmax(newest.until)
            UNION ALL
            SELECT l.stamp FROM tidings.log l WHERE l.xid = ANY (ARRAY(SELECT pg_snapshot_xip(newest.until)))) w) AS waiting_since,
       r.ticks, r.events AS inline_events, r.hints, r.skipped,
       (SELECT sum(pg_total_relation_size(i.inhrelid)) FROM pg_catalog.pg_inherits i
        WHERE i.inhparent IN ('tidings.log'::regclass, 'tidings.tick'::regclass))::bigint AS log_bytes,
       (SELECT k.previous FROM tidings.tick k ORDER BY k.tick LIMIT 1) AS oldest_position,
       current_setting('tidings.retention')::interval AS retention,
       pg_notification_queue_usage() AS notify_queue_usage
FROM tidings.relay() r
-- From the table, not from the relay: it holds also while no relay runs, or one has only just started.
LEFT JOIN (SELECT k.tick, k.until FROM tidings.tick k ORDER BY k.tick DESC LIMIT 1) newest ON true;

COMMENT ON VIEW tidings.status IS 'The relay, its lag and counters, and the size of the log';
COMMENT ON COLUMN tidings.status.relay_pid IS 'The relay''s process id, NULL while none runs';
COMMENT ON COLUMN tidings.status.relay_state IS 'wanted, starting, running; absent on a server that has none, unknown before the launcher has looked';
COMMENT ON COLUMN tidings.status.last_tick IS 'The number of the last tick, in microseconds since the Unix epoch';
COMMENT ON COLUMN tidings.status.last_tick_at IS 'The same as a time';
COMMENT ON COLUMN tidings.status.waiting_since IS 'Since when the oldest event that is committed waits for its tick; NULL if none does';
COMMENT ON COLUMN tidings.status.ticks IS 'Ticks since the server started';
COMMENT ON COLUMN tidings.status.inline_events IS 'Events that travelled inside of notifications';
COMMENT ON COLUMN tidings.status.hints IS 'Ticks that were announced only, to be read from the log';
COMMENT ON COLUMN tidings.status.skipped IS 'Changes that made no valid topic';
COMMENT ON COLUMN tidings.status.log_bytes IS 'What log and ticks take on the disk, indexes included';
COMMENT ON COLUMN tidings.status.oldest_position IS 'The start of what is retained: positions before it cannot be served';
COMMENT ON COLUMN tidings.status.retention IS 'tidings.retention';
COMMENT ON COLUMN tidings.status.notify_queue_usage IS 'How full the queue of notifications is, from 0 to 1';

CREATE UNLOGGED TABLE tidings.proxy (
    proxy text PRIMARY KEY,
    until timestamptz NOT NULL
);

COMMENT ON TABLE tidings.proxy IS 'The proxies that have reported, and how long their reports hold';
COMMENT ON COLUMN tidings.proxy.proxy IS 'The name a proxy gives itself';
COMMENT ON COLUMN tidings.proxy.until IS 'When its lease ends';

CREATE UNLOGGED TABLE tidings.open_topic (
    proxy       text        NOT NULL REFERENCES tidings.proxy ON DELETE CASCADE,
    topic       text        NOT NULL,
    subscribers integer     NOT NULL CHECK (subscribers > 0),
    since       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, proxy)
);

CREATE INDEX open_topic_proxy_idx ON tidings.open_topic (proxy);

COMMENT ON TABLE tidings.open_topic IS 'How many subscribers each proxy has for a topic';
COMMENT ON COLUMN tidings.open_topic.proxy IS 'The proxy';
COMMENT ON COLUMN tidings.open_topic.topic IS 'The topic';
COMMENT ON COLUMN tidings.open_topic.subscribers IS 'How many subscribers it has there';
COMMENT ON COLUMN tidings.open_topic.since IS 'Since when it has had any';
COMMENT ON INDEX tidings.open_topic_proxy_idx IS 'Finds what goes when a proxy''s lease ends';

CREATE FUNCTION tidings.report(proxy text, topics text[], subscribers integer[], lease interval DEFAULT '30 seconds') RETURNS void
LANGUAGE plpgsql STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    DELETE FROM tidings.proxy p WHERE p.until < now() AND p.proxy <> proxy;
    INSERT INTO tidings.proxy AS p VALUES (proxy, now() + least(lease, '1 hour'))
        ON CONFLICT ON CONSTRAINT proxy_pkey DO UPDATE SET until = excluded.until;
    DELETE FROM tidings.open_topic o
        USING ROWS FROM (unnest(topics), unnest(subscribers)) AS r (topic, subscribers)
        WHERE o.proxy = proxy AND o.topic = r.topic AND r.subscribers = 0;
    INSERT INTO tidings.open_topic AS o (proxy, topic, subscribers)
        SELECT proxy, r.topic, r.subscribers FROM ROWS FROM (unnest(topics), unnest(subscribers)) AS r (topic, subscribers)
        WHERE r.subscribers > 0
        ON CONFLICT ON CONSTRAINT open_topic_pkey DO UPDATE SET subscribers = excluded.subscribers;
END
$$;

COMMENT ON FUNCTION tidings.report(text, text[], integer[], interval) IS
    'A proxy tells how many subscribers its topics have (0 closes one), and renews the lease on all it has told';

CREATE VIEW tidings.open_topics AS
SELECT o.topic, sum(o.subscribers)::integer AS subscribers, array_agg(o.proxy ORDER BY o.proxy) AS proxies, min(o.since) AS since
FROM tidings.open_topic o JOIN tidings.proxy p USING (proxy)
WHERE p.until > now()
GROUP BY o.topic;

COMMENT ON VIEW tidings.open_topics IS 'The topics that someone is subscribed to right now';
COMMENT ON COLUMN tidings.open_topics.topic IS 'The topic';
COMMENT ON COLUMN tidings.open_topics.subscribers IS 'How many subscribers it has at all proxies';
COMMENT ON COLUMN tidings.open_topics.proxies IS 'The proxies that have told of them';
COMMENT ON COLUMN tidings.open_topics.since IS 'Since when it has had any';
-- Access: who may subscribe to what. The database decides, with the row-level security that already guards its tables.
--
-- A rule is a topic template and a query; the template's holes are the query's text parameters. A subscription is allowed
-- if some rule whose template matches finds a row when its query runs as the subscriber: with the role of the claims,
-- with request.jwt.claims set as PostgREST sets it, read-only.

CREATE TABLE tidings.rule (
    topic       text PRIMARY KEY,
    using_query text NOT NULL,
    search_path text NOT NULL
);

COMMENT ON TABLE tidings.rule IS 'The subscription rules; see tidings.allow()';
COMMENT ON COLUMN tidings.rule.topic IS 'A topic template';
COMMENT ON COLUMN tidings.rule.using_query IS 'A query; {name} stands for the value of that hole, as text';
COMMENT ON COLUMN tidings.rule.search_path IS 'The search_path under which the rule was written, and under which it runs';

-- Rules are the one thing here that a dump carries.
SELECT pg_catalog.pg_extension_config_dump('tidings.rule', '');

CREATE VIEW tidings.rules AS SELECT topic, using_query FROM tidings.rule;

COMMENT ON VIEW tidings.rules IS 'The subscription rules';
COMMENT ON COLUMN tidings.rules.topic IS 'The topic template';
COMMENT ON COLUMN tidings.rules.using_query IS 'The query that must find a row';

CREATE FUNCTION tidings.match_topic(template text, topic text) RETURNS text[]
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'match_topic_wrapper';

COMMENT ON FUNCTION tidings.match_topic(text, text) IS 'The values of a template''s holes in a topic, in order; NULL if the topic does not match';

CREATE FUNCTION tidings.bind_holes(template text, using_query text) RETURNS text
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'bind_holes_wrapper';

COMMENT ON FUNCTION tidings.bind_holes(text, text) IS 'A rule''s query with each {hole} replaced by the parameter that it stands for';

CREATE FUNCTION tidings.rules_for(topics text[], OUT topic text, OUT query text, OUT holes text[], OUT search_path text) RETURNS SETOF record
LANGUAGE sql STABLE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.topic, tidings.bind_holes(r.topic, r.using_query), m.holes, r.search_path
    FROM unnest(topics) AS t (topic)
    CROSS JOIN tidings.rule r
    CROSS JOIN LATERAL tidings.match_topic(r.topic, t.topic) AS m (holes)
    WHERE m.holes IS NOT NULL
$$;

COMMENT ON FUNCTION tidings.rules_for(text[]) IS 'The rules that match each topic, ready to run';

CREATE FUNCTION tidings.allow(topic text, using_query text) RETURNS void
LANGUAGE plpgsql STRICT
AS $$
BEGIN
    -- Whatever is wrong with the query is an error now, not at the first subscription.
    EXECUTE 'SELECT EXISTS (' OPERATOR(pg_catalog.||) tidings.bind_holes(topic, using_query) OPERATOR(pg_catalog.||) E'\n) WHERE false'
        USING pg_catalog.array_fill(NULL::pg_catalog.text, ARRAY[0]);
    INSERT INTO tidings.rule AS r VALUES (topic, using_query, pg_catalog.current_setting('search_path'))
        ON CONFLICT ON CONSTRAINT rule_pkey
        DO UPDATE SET using_query = excluded.using_query, search_path = excluded.search_path;
END
$$;

COMMENT ON FUNCTION tidings.allow(text, text) IS
    'Allows the subscription to topics of this form to those for whom the query finds a row; replaces the rule of the same form';

CREATE FUNCTION tidings.disallow(topic text) RETURNS boolean
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    DELETE FROM tidings.rule r WHERE r.topic = topic;
    RETURN FOUND;
END
$$;

COMMENT ON FUNCTION tidings.disallow(text) IS 'Takes a rule back; false if there was none for this template';

CREATE FUNCTION tidings.check_subscription(claims jsonb, topics text[], OUT topic text, OUT allowed boolean, OUT reason text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    role_claim text := claims ->> 'role';
    refused    text;
    rule       record;
    rule_rows  refcursor;
    first_row  record;
    found_row  boolean;
BEGIN
    refused := CASE
        WHEN jsonb_typeof(claims -> 'role') IS DISTINCT FROM 'string' THEN 'the claims name no role'
        WHEN role_claim = session_user THEN 'the role is the proxy''s own'
        WHEN NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = role_claim AND NOT r.rolsuper) THEN 'there is no such role for subscribers'
        WHEN NOT pg_has_role(session_user, role_claim, 'MEMBER') THEN 'the proxy may not take the role'
    END;
    FOREACH topic IN ARRAY topics LOOP
        allowed := false;
        reason := coalesce(refused, 'no rule matches');
        IF refused IS NULL THEN
            FOR rule IN SELECT r.* FROM tidings.rules_for(ARRAY[topic]) r LOOP
                found_row := NULL;
                rule_rows := NULL;
                -- The inner block is always rolled back, and with it whatever the query did to the session.
                BEGIN
                    PERFORM set_config('request.jwt.claims', claims::text, true);
                    PERFORM set_config('search_path', rule.search_path, true);
                    PERFORM set_config('transaction_read_only', 'on', true);
                    PERFORM set_config('role', role_claim, true);
                    -- The first row is really fetched: inside of EXISTS, what the query selects would not be evaluated, and a
                    -- function that refuses by raising an error would never be called.
                    OPEN rule_rows FOR EXECUTE rule.query USING rule.holes;
                    FETCH rule_rows INTO first_row;
                    found_row := FOUND;
                    RAISE EXCEPTION USING ERRCODE = CASE WHEN found_row THEN 'TI010' ELSE 'TI011' END;
                EXCEPTION
                    WHEN SQLSTATE 'TI010' THEN
                        -- Not if the query has raised it by itself.
                        allowed := coalesce(found_row, false);
                        reason := CASE WHEN NOT allowed THEN 'its rule fails' END;
                    WHEN SQLSTATE 'TI011' THEN
                        reason := 'its rule finds no row';
                    WHEN OTHERS THEN
                        reason := format('its rule fails: %s (%s)', SQLERRM, SQLSTATE);
                END;
                EXIT WHEN allowed;
            END LOOP;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

COMMENT ON FUNCTION tidings.check_subscription(jsonb, text[]) IS
    'For each topic whether the claims may subscribe to it, and if not why not. The reason is for the log, not for the subscriber';

CREATE FUNCTION tidings.authorize(claims jsonb, topics text[]) RETURNS text[]
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(c.topic), '{}') FROM tidings.check_subscription(claims, topics) c WHERE NOT c.allowed
$$;

COMMENT ON FUNCTION tidings.authorize(jsonb, text[]) IS 'Those of the topics that the claims may not subscribe to';
-- Rights: nothing for PUBLIC, and exactly what a proxy needs for a proxy.

CREATE FUNCTION tidings.grant_proxy(role regrole) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    function regprocedure;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA tidings TO %s', role);
    FOREACH function IN ARRAY ARRAY[
        'tidings.channel()', 'tidings.relay()', 'tidings.relay_pid()', 'tidings.position()', 'tidings.locate(text)',
        'tidings.segments(text, integer)', 'tidings.changes(text, text[], integer)',
        'tidings.report(text, text[], integer[], interval)', 'tidings.rules_for(text[])',
        'tidings.check_subscription(jsonb, text[])', 'tidings.authorize(jsonb, text[])'
    ]::regprocedure[] LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', function, role);
    END LOOP;
END
$$;

COMMENT ON FUNCTION tidings.grant_proxy(regrole) IS 'Grants a proxy''s login role what it needs, and nothing more';

REVOKE ALL ON ALL TABLES IN SCHEMA tidings FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tidings FROM PUBLIC;

CREATE FUNCTION tidings.installed() RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'installed_wrapper';

COMMENT ON FUNCTION tidings.installed() IS 'Called once by the install script: the relay starts when the transaction commits';

REVOKE ALL ON FUNCTION tidings.installed() FROM PUBLIC;

-- The first tick, without events: a position from before it is one of another database. Whatever is in the log is in a later
-- one, also what transactions with older ids are going to write.
INSERT INTO tidings.tick (slot, tick, previous, since, until, used)
SELECT 0, first, first, '3:3:', '3:3:', 0 FROM tidings.stamp() AS first;

SELECT tidings.installed();
