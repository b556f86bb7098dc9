-- Reading: positions, and the log in order.
--
-- Every function that reads the log sees each tick whole or not at all, whatever is being written meanwhile, and fails with
-- SQLSTATE TI001 when the position is older than what is retained: never a silent gap.
--
-- The tables are never analyzed, and plans made while they were empty must do for full ones: so sequential scans are off, and
-- so is the just-in-time compiler, which the costs of what is off would call in for each query. And a condition on ticks has its bound
-- outside of any OR: else the index would be read from its beginning.

CREATE OR REPLACE FUNCTION tidings.stamp() RETURNS bigint
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'stamp_wrapper';

COMMENT ON FUNCTION tidings.stamp() IS 'The next reading of the clock that orders segments and numbers ticks';

CREATE OR REPLACE FUNCTION tidings.floor() RETURNS bigint
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'floor_wrapper';

COMMENT ON FUNCTION tidings.floor() IS 'Positions below this one have been given up since the server started, also for old snapshots';

CREATE OR REPLACE FUNCTION tidings.parse_position(text, OUT tick bigint, OUT n bigint, OUT stamp bigint, OUT snapshot text) RETURNS SETOF record
LANGUAGE c STRICT IMMUTABLE ROWS 1 AS 'MODULE_PATHNAME', 'parse_position_wrapper';

COMMENT ON FUNCTION tidings.parse_position(text) IS 'Takes a position apart';

CREATE OR REPLACE FUNCTION tidings.decode(data bytea, topics text[], OUT n integer, OUT topic text, OUT event text, OUT payload text) RETURNS SETOF record
LANGUAGE c IMMUTABLE AS 'MODULE_PATHNAME', 'decode_wrapper';

COMMENT ON FUNCTION tidings.decode(bytea, text[]) IS 'The events of a segment, those of the given topics only unless that is NULL';

CREATE OR REPLACE FUNCTION tidings.is_readable(data bytea) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM tidings.decode(data, NULL);
    RETURN true;
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END
$$;

COMMENT ON FUNCTION tidings.is_readable(bytea) IS 'Whether a segment can be read: to find the row that an error reports';

CREATE OR REPLACE FUNCTION tidings.relay(OUT pid integer, OUT state text, OUT tick bigint, OUT ticks bigint, OUT events bigint, OUT hints bigint, OUT skipped bigint) RETURNS SETOF record
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'relay_wrapper';

COMMENT ON FUNCTION tidings.relay() IS 'The relay''s process and its counters since the server started';

CREATE OR REPLACE FUNCTION tidings.relay_pid() RETURNS integer
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pid FROM tidings.relay();
END;

COMMENT ON FUNCTION tidings.relay_pid() IS 'The relay''s process id, NULL while none runs: notifications from others are not ours';

CREATE OR REPLACE FUNCTION tidings.channel() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'SELECT channel FROM tidings.secret';

COMMENT ON FUNCTION tidings.channel() IS 'The channel that the relay notifies';

CREATE OR REPLACE FUNCTION tidings.seen(OUT stamp bigint, OUT snapshot text, OUT next bigint) RETURNS SETOF record
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'seen_wrapper';

COMMENT ON FUNCTION tidings.seen() IS
    'The current snapshot, also on a standby, where pg_current_snapshot() omits running transactions; the clock, NULL on a standby; and the number of the next transaction';

CREATE OR REPLACE FUNCTION tidings.covers(later pg_snapshot, earlier pg_snapshot) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT EXISTS (SELECT FROM pg_snapshot_xip(later) AS running WHERE pg_visible_in_snapshot(running, earlier))
       -- Every transaction that had not started at the later snapshot must have been running at the earlier one.
       AND pg_snapshot_xmax(later)::text::bigint
           + (SELECT count(*) FROM pg_snapshot_xip(earlier) AS running WHERE running >= pg_snapshot_xmax(later))
           >= pg_snapshot_xmax(earlier)::text::bigint
$$;

COMMENT ON FUNCTION tidings.covers(pg_snapshot, pg_snapshot) IS 'Whether the first snapshot sees everything that the second one sees';

CREATE OR REPLACE FUNCTION tidings.listen() RETURNS text
LANGUAGE c AS 'MODULE_PATHNAME', 'listen_wrapper';

COMMENT ON FUNCTION tidings.listen() IS
    'Executes LISTEN on the relay''s channel and returns its name; unlike a LISTEN statement, it shows the name to nobody else';

CREATE OR REPLACE FUNCTION tidings.rotate_channel() RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'rotate_channel_wrapper';

COMMENT ON FUNCTION tidings.rotate_channel() IS
    'Gives the channel a new name. Sessions that use tidings.listen(), as the proxies do, are notified and miss nothing';

CREATE OR REPLACE FUNCTION tidings.position() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    SELECT newest.tick || ':' || coalesce(
               s.stamp,
               -- A standby's own clock is unrelated to ticks. The newest stamp that it sees was made since the primary's last start.
               greatest(newest.tick, (SELECT l.stamp FROM tidings.log l ORDER BY l.xid DESC LIMIT 1)))
           || ':' || s.snapshot
    FROM tidings.seen() s, (SELECT t.tick FROM tidings.tick t ORDER BY t.tick DESC LIMIT 1) newest
$$;

COMMENT ON FUNCTION tidings.position() IS
    'The position of the current snapshot: everything that a query with the same snapshot has not seen comes after it';

CREATE OR REPLACE FUNCTION tidings.tick_segments(
    since pg_snapshot, until pg_snapshot,
    OUT first integer, OUT events integer, OUT xid xid8, OUT stamp bigint, OUT data bytea
) RETURNS SETOF record
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    -- New are the transactions that had not started when the last tick was cut, and the stragglers that were running then and are not any
    -- more: a large one must not be read for each tick that it outlasts.
    WITH segment AS (
        SELECT l.* FROM tidings.log l WHERE l.xid >= pg_snapshot_xmax(since) AND l.xid < pg_snapshot_xmax(until)
        UNION ALL
        SELECT l.* FROM tidings.log l
        WHERE l.xid = ANY (ARRAY(SELECT x FROM pg_snapshot_xip(since) AS x WHERE pg_visible_in_snapshot(x, until)))
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

CREATE OR REPLACE FUNCTION tidings.check_retained(after bigint, n bigint) RETURNS void
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
            USING ERRCODE = 'TI001', HINT = 'Read the data again and continue from tidings.position(). tidings.retention sets how long events are kept.';
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.check_retained(bigint, bigint) IS 'Raises TI001 unless all events after a position are retained';

CREATE OR REPLACE FUNCTION tidings.known_tick(tick bigint) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    -- The start of the log is known although its row is gone.
    WITH start AS (SELECT t.previous FROM tidings.tick t ORDER BY t.tick LIMIT 1)
    SELECT CASE
        WHEN $1 = start.previous OR EXISTS (SELECT FROM tidings.tick t WHERE t.tick = $1) THEN $1
        ELSE coalesce((SELECT max(t.tick) FROM tidings.tick t WHERE t.tick < $1), start.previous)
    END
    FROM start
$$;

COMMENT ON FUNCTION tidings.known_tick(bigint) IS
    'The same tick if the log has it, otherwise the greatest tick below it: a failover or a restore has lost this one';

CREATE OR REPLACE FUNCTION tidings.locate(after text) RETURNS text
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    place  record;
    known  bigint;
    newest record;
    here   record;
    seen   pg_snapshot;
BEGIN
    IF after = 'earliest' THEN
        RETURN greatest((SELECT t.previous FROM tidings.tick t ORDER BY t.tick LIMIT 1), tidings.floor())::text;
    END IF;
    SELECT * INTO place FROM tidings.parse_position(after);
    PERFORM tidings.check_retained(place.tick, place.n);
    known := tidings.known_tick(place.tick);
    SELECT t.tick, t.until INTO newest FROM tidings.tick t ORDER BY t.tick DESC LIMIT 1;
    IF known <> place.tick THEN
        -- A standby may not have come so far.
        RETURN CASE WHEN place.tick <= newest.tick OR NOT pg_is_in_recovery() THEN known END;
    END IF;
    IF place.snapshot IS NOT NULL THEN
        seen := place.snapshot::pg_snapshot;
        SELECT s.snapshot::pg_snapshot AS snapshot, s.next INTO here FROM tidings.seen() s;
        -- A standby may see commits before the primary shows them, and may lag behind another server.
        IF (NOT tidings.covers(here.snapshot, seen) OR EXISTS (
                SELECT FROM (
                    SELECT l.xid FROM tidings.log l WHERE l.xid >= pg_snapshot_xmax(newest.until) AND l.xid < pg_snapshot_xmax(seen)
                    UNION ALL
                    SELECT l.xid FROM tidings.log l
                    WHERE l.xid = ANY (ARRAY(SELECT x FROM pg_snapshot_xip(newest.until) AS x WHERE pg_visible_in_snapshot(x, seen)))
                ) unticked
                WHERE pg_visible_in_snapshot(unticked.xid, seen)))
           -- The snapshot is ignored if the server has restarted since (end_former_life in tick.rs).
           AND NOT EXISTS (SELECT FROM tidings.tick t WHERE t.tick > greatest(place.tick, place.stamp) AND t.used & 16384 <> 0) THEN
            IF pg_snapshot_xmax(seen)::text::bigint > here.next AND place.stamp < newest.tick AND NOT pg_is_in_recovery() THEN
                RETURN known::text;
            END IF;
            RETURN NULL;
        END IF;
    END IF;
    RETURN after;
END
$$;

COMMENT ON FUNCTION tidings.locate(text) IS
    'Where to continue from a position: the same position; the greatest known tick at or below it, if what it saw was lost; NULL while something that it saw is not in a tick here yet';

CREATE OR REPLACE FUNCTION tidings.segments(
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
        WHERE k.tick >= place.tick AND (k.tick > place.tick OR place.n < 4294967295)
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

COMMENT ON FUNCTION tidings.segments(text, integer) IS 'The log after a position, in order, in whole segments, for the proxy';

CREATE OR REPLACE FUNCTION tidings.remaining_snapshot(snapshot pg_snapshot, since pg_snapshot) RETURNS text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    -- A transaction that has ended and has no events left to read no longer matters. Neither does one that has not begun,
    -- except on a standby, which may lag behind.
    SELECT pg_snapshot_xmin(snapshot) || ':' || pg_snapshot_xmax(snapshot) || ':' || coalesce(string_agg(running.xid::text, ',' ORDER BY running.xid), '')
    FROM pg_snapshot_xip(snapshot) AS running (xid)
    CROSS JOIN (SELECT s.snapshot::pg_snapshot AS sees, s.next FROM tidings.seen() s) here
    LEFT JOIN LATERAL (SELECT true AS there FROM tidings.log l WHERE l.xid = running.xid LIMIT 1) segment ON true
    WHERE NOT pg_visible_in_snapshot(running.xid, since)
      AND (segment.there
           OR (NOT pg_visible_in_snapshot(running.xid, here.sees) AND (running.xid::text::bigint < here.next OR pg_is_in_recovery())))
$$;

COMMENT ON FUNCTION tidings.remaining_snapshot(pg_snapshot, pg_snapshot) IS
    'The first snapshot without those of its running transactions that have no events which the second one does not see, and never will';

CREATE OR REPLACE FUNCTION tidings.scan(
    after text, topics text[], max_rows integer, max_bytes integer, lost_too boolean,
    OUT "position" text, OUT topic text, OUT event text, OUT payload text, OUT created_at timestamptz, OUT more boolean
) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    place   record;
    known   bigint;
    -- What follows the tick and number of a position while its reader knows only a part of each tick's events.
    suffix  text := '';
    seen    pg_snapshot;
    t       record;
    bytes   bigint;
    reach   integer;
    got     integer;
    found_n integer := 0;
    -- What reading a tick, or a segment, costs beside its bytes, in bytes decoded. "room" is what this call may still read.
    tick_cost    CONSTANT integer := 16384;
    segment_cost CONSTANT integer := 512;
    room    bigint := coalesce(max_bytes, 9223372036854775807);
BEGIN
    IF after = 'earliest' THEN
        after := tidings.locate(after);
    END IF;
    SELECT * INTO place FROM tidings.parse_position(coalesce(after, '')) p;
    PERFORM tidings.check_retained(place.tick, place.n);
    known := tidings.known_tick(place.tick);
    IF known <> place.tick THEN
        -- A standby may not have come so far.
        IF NOT (lost_too OR pg_is_in_recovery()) THEN
            RAISE EXCEPTION 'the tick of the position is not in the log'
                USING ERRCODE = 'TI002', HINT = 'It was lost in a failover or a restore. Read the data again and continue from tidings.position().';
        END IF;
        place.tick := known;
        place.n := 4294967295;
    END IF;
    more := false;
    "position" := split_part(after, ':', 1);
    IF place.snapshot IS NOT NULL THEN
        SELECT tidings.remaining_snapshot(place.snapshot::pg_snapshot, k.since) INTO seen
        FROM tidings.tick k
        WHERE k.tick >= place.tick AND (k.tick > place.tick OR place.n < 4294967295)
        ORDER BY k.tick LIMIT 1;
        seen := coalesce(seen, place.snapshot::pg_snapshot);
        suffix := ':' || place.stamp || ':' || seen;
        "position" := "position" || suffix;
    END IF;
    <<ticks>>
    FOR t IN
        SELECT k.tick, k.since, k.until, k.used FROM tidings.tick k
        WHERE k.tick >= place.tick AND (k.tick > place.tick OR place.n < 4294967295)
        ORDER BY k.tick
    LOOP
        more := room <= 0;
        EXIT WHEN more;
        -- A reader with a snapshot knows a part of each tick's events, until the first tick that begins with everything the snapshot saw.
        IF seen IS NOT NULL AND tidings.covers(t.since, seen) THEN
            seen := NULL;
            suffix := '';
        END IF;
        reach := NULL;
        IF max_bytes IS NOT NULL THEN
            SELECT coalesce(sum(octet_length(s.data) + segment_cost), 0) INTO bytes
            FROM (
                SELECT l.data FROM tidings.log l WHERE l.xid >= pg_snapshot_xmax(t.since) AND l.xid < pg_snapshot_xmax(t.until)
                UNION ALL
                SELECT l.data FROM tidings.log l
                WHERE l.xid = ANY (ARRAY(SELECT x FROM pg_snapshot_xip(t.since) AS x WHERE pg_visible_in_snapshot(x, t.until)))
            ) s;
            IF bytes > room THEN
                -- Reads as far as there is room, but at least one segment; NULL, so no limit, if that is the whole tick.
                SELECT min(s.first) FILTER (WHERE s.bytes_before >= greatest(room, 1)) INTO reach
                FROM (
                    SELECT w.first, sum(octet_length(w.data) + segment_cost) OVER (ROWS UNBOUNDED PRECEDING)
                                    - octet_length(w.data) - segment_cost AS bytes_before
                    FROM tidings.tick_segments(t.since, t.until) w
                    WHERE t.tick > place.tick OR w.first + w.events > place.n
                ) s;
            END IF;
            room := room - tick_cost - bytes;
        END IF;
        -- Segments come in order and are decoded one by one, only as far as rows are wanted: a sort would decode them all.
        RETURN QUERY
            SELECT t.tick || '-' || (s.first + d.n) || suffix, d.topic, d.event, d.payload, to_timestamp(s.stamp / 1000000.0), NULL::boolean
            FROM tidings.tick_segments(t.since, t.until) s
            CROSS JOIN LATERAL tidings.decode(s.data, topics) d
            WHERE (t.tick > place.tick OR s.first + s.events > place.n)
              AND (seen IS NULL OR NOT pg_visible_in_snapshot(s.xid, seen))
              AND (reach IS NULL OR s.first < reach)
              AND (t.tick > place.tick OR s.first + d.n > place.n)
            LIMIT max_rows - found_n;
        GET DIAGNOSTICS got = ROW_COUNT;
        found_n := found_n + got;
        IF found_n >= max_rows THEN
            "position" := NULL;
            more := true;
            EXIT ticks;
        END IF;
        IF reach IS NOT NULL THEN
            "position" := t.tick || '-' || reach || suffix;
            more := true;
            EXIT ticks;
        END IF;
        -- After a restart of the server (tick.rs), transactions may reuse the numbers of lost ones.
        IF t.used & 16384 <> 0 AND t.tick > place.stamp THEN
            seen := NULL;
            suffix := '';
        END IF;
        "position" := t.tick || suffix;
    END LOOP;
    RETURN NEXT;
    PERFORM tidings.check_retained(place.tick, place.n);
END
$$;

COMMENT ON FUNCTION tidings.scan(text, text[], integer, integer, boolean) IS
    'For the proxy: the events after a position in about max_bytes of the log. The last row has no topic: it says where to continue (NULL: after the last of max_rows events) and whether there is more. Fails with TI002 if the position''s tick was lost, unless lost_too';

CREATE OR REPLACE FUNCTION tidings.changes(
    after text, topics text[] DEFAULT NULL, max_rows integer DEFAULT 1000,
    OUT "position" text, OUT topic text, OUT event text, OUT payload text, OUT created_at timestamptz
) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
BEGIN
    IF after IS NULL OR max_rows IS NULL OR max_rows < 1 THEN
        RAISE EXCEPTION 'tidings.changes() needs a position and a number of rows'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Start from earliest or from tidings.position().';
    END IF;
    RETURN QUERY
        SELECT s.position, s.topic, s.event, s.payload, s.created_at
        FROM tidings.scan(after, topics, max_rows, NULL::integer, true) s
        WHERE s.topic IS NOT NULL;
END
$$;

COMMENT ON FUNCTION tidings.changes(text, text[], integer) IS
    'The events after a position, in order, of the given topics or all; fewer than max_rows means that there are no more';

CREATE OR REPLACE VIEW tidings.events AS
SELECT t.tick || '-' || (s.first + d.n) AS position, d.topic, d.event, d.payload, to_timestamp(s.stamp / 1000000.0) AS created_at
FROM tidings.tick t
CROSS JOIN LATERAL tidings.tick_segments(t.since, t.until) s
CROSS JOIN LATERAL tidings.decode(s.data, NULL::text[]) d;

COMMENT ON VIEW tidings.events IS 'The retained events, for a look; tidings.changes() gives them in order';
COMMENT ON COLUMN tidings.events.position IS 'Its place in the order of all events';
COMMENT ON COLUMN tidings.events.topic IS 'Its topic';
COMMENT ON COLUMN tidings.events.event IS 'Its name';
COMMENT ON COLUMN tidings.events.payload IS 'Its payload, JSON unless it was published as text';
COMMENT ON COLUMN tidings.events.created_at IS 'When its segment was written, right before its transaction committed';
