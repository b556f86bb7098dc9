-- Reading: positions, and the segments of the log in order.
--
-- Every function that reads the log sees each tick as a whole or not at all, whatever is written meanwhile. It fails
-- with SQLSTATE TI001 if the position is older than what is retained, so that there is never a silent gap.
--
-- The tables are never analyzed, and a plan that was made while they were empty must be good for full ones. So
-- sequential scans are off. The just-in-time compiler is off too, because the high cost of plan nodes that are off
-- would start it for each query. In a condition on ticks, the lower bound is outside of any OR: otherwise the index
-- would be read from its beginning.

-- Constants

CREATE OR REPLACE FUNCTION tidings.end_of_tick() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 4294967295;
END;

COMMENT ON FUNCTION tidings.end_of_tick() IS
    'The number that a position has in place of an event''s number if it is after all events of its tick';

CREATE OR REPLACE FUNCTION tidings.epoch_mark() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 16384;
END;

COMMENT ON FUNCTION tidings.epoch_mark() IS
    'The bit of tidings.tick.used that marks the tick which seals the epoch before a start of the server: after it, a snapshot from before the start is ignored';

-- Positions

CREATE OR REPLACE FUNCTION tidings.stamp() RETURNS bigint
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'stamp_wrapper';

COMMENT ON FUNCTION tidings.stamp() IS 'The next reading of the clock that orders segments and numbers ticks';

CREATE OR REPLACE FUNCTION tidings.floor() RETURNS bigint
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'floor_wrapper';

COMMENT ON FUNCTION tidings.floor() IS
    'Positions below this one have lost events since the server started, even if an old snapshot still sees them';

CREATE OR REPLACE FUNCTION tidings.parse_position(text, OUT tick bigint, OUT n bigint, OUT stamp bigint, OUT snapshot text) RETURNS SETOF record
LANGUAGE c STRICT IMMUTABLE ROWS 1 AS 'MODULE_PATHNAME', 'parse_position_wrapper';

COMMENT ON FUNCTION tidings.parse_position(text) IS 'The parts of a position';

CREATE OR REPLACE FUNCTION tidings.position_count(text) RETURNS bigint
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'position_count_wrapper';

COMMENT ON FUNCTION tidings.position_count(text) IS
    'How many events after its tick a position''s snapshot has seen; NULL if the position does not say';

CREATE OR REPLACE FUNCTION tidings.decode(data bytea, topics text[], OUT n integer, OUT topic text, OUT event text, OUT payload text) RETURNS SETOF record
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'decode_wrapper';

COMMENT ON FUNCTION tidings.decode(bytea, text[]) IS
    'The events of a segment that have one of these topics; all events if topics is NULL';

CREATE OR REPLACE FUNCTION tidings.decode_all(data bytea, topics text[], OUT n integer, OUT topic text, OUT event text, OUT payload text) RETURNS SETOF record
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'decode_all_wrapper';

COMMENT ON FUNCTION tidings.decode_all(bytea, text[]) IS
    'The same with the events of guards, which have neither a name nor a payload. The topic of one that is about many topics is their template';

CREATE OR REPLACE FUNCTION tidings.complete(data bytea) RETURNS bytea
LANGUAGE c STRICT STABLE AS 'MODULE_PATHNAME', 'complete_wrapper';

COMMENT ON FUNCTION tidings.complete(bytea) IS
    'The whole of a segment. Segments of version 4 borrow their first outline from an earlier one, whose row must still be in the log';

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

COMMENT ON FUNCTION tidings.is_readable(bytea) IS
    'Whether a segment can be read. It helps to find the row that an error is about';

CREATE OR REPLACE FUNCTION tidings.relay(OUT pid integer, OUT state text, OUT tick bigint, OUT ticks bigint, OUT events bigint, OUT hints bigint, OUT skipped bigint) RETURNS SETOF record
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'relay_wrapper';

COMMENT ON FUNCTION tidings.relay() IS 'The relay''s process and its counters since the server started';

CREATE OR REPLACE FUNCTION tidings.ring(OUT ticks bigint, OUT overflows bigint) RETURNS SETOF record
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'ring_wrapper';

COMMENT ON FUNCTION tidings.ring() IS
    'Since the server started: the ticks that the relay cut without a look at the log, and how often the ring was too small';

CREATE OR REPLACE FUNCTION tidings.relay_pid() RETURNS integer
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pid FROM tidings.relay();
END;

COMMENT ON FUNCTION tidings.relay_pid() IS
    'The relay''s process id, NULL while no relay runs. Notifications from other processes must be ignored';

CREATE OR REPLACE FUNCTION tidings.refuse_subscriber() RETURNS void
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'refuse_subscriber_wrapper';

COMMENT ON FUNCTION tidings.refuse_subscriber() IS
    'Raises an error in code that runs as a subscriber. Without claims, a subscriber has the proxy''s own role, whose rights that code must not have';

CREATE OR REPLACE FUNCTION tidings.channel() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'SELECT s.channel FROM tidings.refuse_subscriber(), tidings.secret s';

COMMENT ON FUNCTION tidings.channel() IS 'The channel that the relay notifies';

CREATE OR REPLACE FUNCTION tidings.seen(OUT snapshot text, OUT next bigint) RETURNS SETOF record
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'seen_wrapper';

COMMENT ON FUNCTION tidings.seen() IS
    'The current snapshot, also on a standby, where pg_current_snapshot() omits running transactions; and the id of the next transaction';

CREATE OR REPLACE FUNCTION tidings.flushed_first() RETURNS text
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'flushed_first_wrapper';

COMMENT ON FUNCTION tidings.flushed_first() IS
    'As JSON: how many ticks were flushed before they were announced since the server started, by the reason';

CREATE OR REPLACE FUNCTION tidings.make_durable() RETURNS void
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'make_durable_wrapper';

COMMENT ON FUNCTION tidings.make_durable() IS
    'Waits until no crash can take back the ticks and events that are visible now. The relay announces a tick before it is flushed, but nothing is read from the log before';

CREATE OR REPLACE FUNCTION tidings.covers(later pg_snapshot, earlier pg_snapshot) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT EXISTS (SELECT FROM pg_snapshot_xip(later) AS running WHERE pg_visible_in_snapshot(running, earlier))
       -- The earlier snapshot must not see any transaction that had not started at the later one.
       AND pg_snapshot_xmax(later)::text::bigint
           + (SELECT count(*) FROM pg_snapshot_xip(earlier) AS running WHERE running >= pg_snapshot_xmax(later))
           >= pg_snapshot_xmax(earlier)::text::bigint
$$;

COMMENT ON FUNCTION tidings.covers(pg_snapshot, pg_snapshot) IS
    'Whether the first snapshot sees everything that the second one sees';

CREATE OR REPLACE FUNCTION tidings.listen() RETURNS text
LANGUAGE c AS 'MODULE_PATHNAME', 'listen_wrapper';

COMMENT ON FUNCTION tidings.listen() IS
    'Executes LISTEN on the relay''s channel and returns its name; unlike a LISTEN statement, it shows the name to nobody else';

CREATE OR REPLACE FUNCTION tidings.rotate_channel() RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'rotate_channel_wrapper';

COMMENT ON FUNCTION tidings.rotate_channel() IS
    'Gives the channel a new name. Sessions that use tidings.listen(), as the proxies do, are notified and miss no events';

CREATE OR REPLACE FUNCTION tidings.position() RETURNS text
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'position_wrapper';

COMMENT ON FUNCTION tidings.position() IS
    'The position of the current snapshot: all changes that a query with the same snapshot does not see come after it';

-- The planner expands a call of this function in place, like a view. So it has no SET: the settings of its caller
-- apply, and every name has its schema. It has no BEGIN ATOMIC either, because then pg_dump would lock the log.
CREATE OR REPLACE FUNCTION tidings.segments_between(
    since pg_snapshot, until pg_snapshot, OUT xid xid8, OUT stamp bigint, OUT ordinal bigint, OUT events integer, OUT data bytea
) RETURNS SETOF record
LANGUAGE sql STABLE
AS $$
    -- The transactions that had not started at the first snapshot, and those that were running then and have ended
    -- since. Only these are read, not all that were running: a large transaction must not be read again for each tick
    -- that it outlasts.
    SELECT l.xid, l.stamp, l.ordinal, l.events, l.data FROM tidings.log l
    WHERE l.xid OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmax(since) AND l.xid OPERATOR(pg_catalog.<) pg_catalog.pg_snapshot_xmax(until)
      AND pg_catalog.pg_visible_in_snapshot(l.xid, until)
    UNION ALL
    SELECT l.xid, l.stamp, l.ordinal, l.events, l.data FROM tidings.log l
    WHERE l.xid OPERATOR(pg_catalog.=) ANY (ARRAY(
        SELECT x FROM pg_catalog.pg_snapshot_xip(since) AS x WHERE pg_catalog.pg_visible_in_snapshot(x, until)))
$$;

COMMENT ON FUNCTION tidings.segments_between(pg_snapshot, pg_snapshot) IS
    'The segments that the second snapshot sees and the first one does not, in no order';

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
    WITH dated AS (
        SELECT s.*, max(s.stamp) OVER (PARTITION BY s.xid) AS last_stamp FROM tidings.segments_between(since, until) s
    )
    -- The order of a tick: transactions by their last stamp, the segments of each by their ordinal. The relay must use
    -- the same order (pg-extension/src/log/order.rs).
    SELECT (sum(d.events) OVER before - d.events)::integer, d.events, d.xid, d.stamp, d.data
    FROM dated d
    WINDOW before AS (ORDER BY d.last_stamp, d.ordinal ROWS UNBOUNDED PRECEDING)
    ORDER BY d.last_stamp, d.ordinal
$$;

COMMENT ON FUNCTION tidings.tick_segments(pg_snapshot, pg_snapshot) IS
    'The segments of a tick, in order, each with the number of events before it';

CREATE OR REPLACE FUNCTION tidings.check_retained(after bigint, n bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    -- The start of the table, and what was removed since this snapshot was taken.
    oldest bigint := greatest((SELECT t.previous FROM tidings.tick t ORDER BY t.tick LIMIT 1), tidings.floor());
BEGIN
    -- Everything that returns events ends with this check.
    PERFORM tidings.refuse_subscriber();
    IF after < oldest OR (after = oldest AND n < tidings.end_of_tick()) THEN
        RAISE EXCEPTION 'the position is older than what is retained'
            USING ERRCODE = 'TI001', HINT = 'Read the data again and continue from tidings.position(). tidings.retention sets how long events are kept.';
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.check_retained(bigint, bigint) IS
    'Raises TI001 unless all events after a position are retained';

-- PL/pgSQL keeps its plans from one page of the log to the next; a function in SQL would be planned for each.
CREATE OR REPLACE FUNCTION tidings.known_tick(tick bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    -- The tick at the start of the log is known, although its row has been removed.
    start bigint := (SELECT t.previous FROM tidings.tick t ORDER BY t.tick LIMIT 1);
BEGIN
    IF known_tick.tick = start OR EXISTS (SELECT FROM tidings.tick t WHERE t.tick = known_tick.tick) THEN
        RETURN known_tick.tick;
    END IF;
    RETURN coalesce((SELECT max(t.tick) FROM tidings.tick t WHERE t.tick < known_tick.tick), start);
END
$$;

COMMENT ON FUNCTION tidings.known_tick(bigint) IS
    'The same tick if the log has it. Otherwise a failover or a restore has lost it, and the result is the greatest tick below it';

CREATE OR REPLACE FUNCTION tidings.end_of(tick bigint) RETURNS pg_snapshot
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    SELECT coalesce(
        (SELECT t.until FROM tidings.tick t WHERE t.tick = $1),
        -- The row of the tick at the start of the log has been removed.
        (SELECT t.since FROM tidings.tick t WHERE t.tick > $1 ORDER BY t.tick LIMIT 1))
$$;

COMMENT ON FUNCTION tidings.end_of(bigint) IS 'The snapshot at the end of a known tick';

CREATE OR REPLACE FUNCTION tidings.events_seen(since pg_snapshot, seen pg_snapshot, stamp bigint) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    -- A transaction with a later stamp has the id of one that was lost.
    SELECT coalesce(sum(s.events), 0)::bigint FROM tidings.segments_between(since, seen) s WHERE s.stamp <= $3
$$;

COMMENT ON FUNCTION tidings.events_seen(pg_snapshot, pg_snapshot, bigint) IS
    'How many events a position''s snapshot and stamp have seen that the first snapshot has not';

CREATE OR REPLACE FUNCTION tidings.locate(after text) RETURNS text
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    place     record;
    known     bigint;
    newest    record;
    here      record;
    seen      pg_snapshot;
    -- How many events after its tick the position has seen, if it says that.
    counted   bigint;
    is_sealed boolean;
    waits     boolean;
BEGIN
    IF after = 'earliest' THEN
        RETURN greatest((SELECT t.previous FROM tidings.tick t ORDER BY t.tick LIMIT 1), tidings.floor())::text;
    END IF;
    SELECT * INTO place FROM tidings.parse_position(after);
    PERFORM tidings.check_retained(place.tick, place.n);
    -- In this order: each statement sees what has been committed by then, and a tick that is replayed between the two must not look as
    -- if it were missing below the newest one.
    SELECT t.tick, t.until INTO newest FROM tidings.tick t ORDER BY t.tick DESC LIMIT 1;
    known := tidings.known_tick(place.tick);
    IF known <> place.tick THEN
        -- A standby may not have replayed the tick yet. A standby may also show a tick before the primary does, where
        -- its commit still waits: then it is the last one that the relay has cut.
        RETURN CASE WHEN place.tick <= newest.tick OR NOT (
                        pg_is_in_recovery()
                        OR EXISTS (SELECT FROM tidings.relay() r WHERE r.tick >= place.tick)) THEN known END;
    END IF;
    IF place.snapshot IS NULL THEN
        RETURN after;
    END IF;
    seen := place.snapshot::pg_snapshot;
    counted := tidings.position_count(after);
    -- Again in this order: what is visible here is there when it is counted.
    SELECT s.snapshot::pg_snapshot AS snapshot, s.next INTO here FROM tidings.seen() s;
    -- The server has restarted since (seal_previous_epoch in relay/tick.rs), so everything that was seen and is left is
    -- in a tick.
    is_sealed := EXISTS (
        SELECT FROM tidings.tick t WHERE t.tick > greatest(place.tick, place.stamp) AND t.used & tidings.epoch_mark() <> 0);
    -- A standby may see commits before the primary shows them, and may lag behind another server.
    waits := NOT is_sealed AND NOT tidings.covers(here.snapshot, seen);
    IF waits AND pg_snapshot_xmax(seen)::text::bigint > here.next AND place.stamp < newest.tick AND NOT pg_is_in_recovery() THEN
        RETURN known::text;
    END IF;
    IF counted IS NULL THEN
        waits := waits OR (NOT is_sealed AND EXISTS (SELECT FROM tidings.segments_between(newest.until, seen)));
    ELSIF tidings.events_seen(tidings.end_of(known), seen, place.stamp) >= counted THEN
        waits := tidings.events_seen(newest.until, seen, place.stamp) > 0;
    ELSIF NOT waits THEN
        -- A failover has lost the others.
        RETURN known::text;
    END IF;
    RETURN CASE WHEN NOT waits THEN after END;
END
$$;

COMMENT ON FUNCTION tidings.locate(text) IS
    'Where to continue from a position: the same position; the greatest known tick at or below it if changes that it saw were lost; NULL while a change that it saw is not in a tick on this server yet';

-- In Rust, because a proxy at a standby calls it for each tick: in SQL, each call would plan its queries again.
CREATE OR REPLACE FUNCTION tidings.segments(
    after text, max_bytes integer DEFAULT 1048576,
    OUT tick bigint, OUT previous bigint, OUT first integer, OUT last boolean, OUT data bytea
) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'segments_wrapper';

COMMENT ON FUNCTION tidings.segments(text, integer) IS
    'For the proxy: the log after a position, in order, in whole segments';

CREATE OR REPLACE FUNCTION tidings.survivors(known bigint, horizon bigint, OUT events bigint, OUT reached text)
RETURNS record
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    newest pg_snapshot := (SELECT t.until FROM tidings.tick t ORDER BY t.tick DESC LIMIT 1);
    t      record;
    here   record;
BEGIN
    -- After a crash, the relay may not have cut a tick yet of what was committed before.
    IF EXISTS (
        SELECT FROM (SELECT l.xid, l.stamp FROM tidings.log l WHERE l.xid >= pg_snapshot_xmax(newest)
                     UNION ALL
                     SELECT l.xid, l.stamp FROM tidings.log l
                     WHERE l.xid = ANY (ARRAY(SELECT pg_snapshot_xip(newest)))) l
        GROUP BY l.xid HAVING max(l.stamp) <= horizon) THEN
        RETURN;
    END IF;
    events := 0;
    reached := known::text;
    FOR t IN SELECT k.tick, k.since, k.until FROM tidings.tick k WHERE k.tick > known ORDER BY k.tick LOOP
        SELECT coalesce(sum(s.events), 0) AS events,
               coalesce(sum(s.events) FILTER (WHERE s.last_stamp <= horizon), 0) AS old INTO here
        FROM (SELECT l.events, max(l.stamp) OVER (PARTITION BY l.xid) AS last_stamp
              FROM tidings.segments_between(t.since, t.until) l) s;
        CONTINUE WHEN here.events = 0;
        -- The old ones come first: transactions are in the order of their last stamps.
        EXIT WHEN here.old = 0;
        events := events + here.old;
        reached := t.tick || CASE WHEN here.old < here.events THEN '-' || here.old ELSE '' END;
        EXIT WHEN here.old < here.events;
    END LOOP;
END
$$;

COMMENT ON FUNCTION tidings.survivors(bigint, bigint) IS
    'For a proxy whose last tick, the horizon, was lost in a crash: how many events after a known tick are of transactions that ended before the horizon, and where in the log they end. NULL while the relay has not cut all of them';

