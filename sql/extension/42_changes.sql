-- Reading: the events after a position, and those of the running transaction.
--
-- What 40_read.sql says about ticks, positions, sequential scans and the just-in-time compiler holds here too.

CREATE OR REPLACE FUNCTION tidings.remaining_snapshot(snapshot pg_snapshot, since pg_snapshot) RETURNS text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    -- A transaction that has ended and has no more events to read does not matter any more. Neither does one that has
    -- not begun, except on a standby, which may lag behind the server where the snapshot was taken.
    SELECT pg_snapshot_xmin(snapshot) || ':' || pg_snapshot_xmax(snapshot) || ':' || coalesce(string_agg(running.xid::text, ',' ORDER BY running.xid), '')
    FROM pg_snapshot_xip(snapshot) AS running (xid)
    CROSS JOIN (SELECT s.snapshot::pg_snapshot AS sees, s.next FROM tidings.seen() s) here
    LEFT JOIN LATERAL (SELECT true AS there FROM tidings.log l WHERE l.xid = running.xid LIMIT 1) segment ON true
    WHERE NOT pg_visible_in_snapshot(running.xid, since)
      AND (segment.there
           OR (NOT pg_visible_in_snapshot(running.xid, here.sees) AND (running.xid::text::bigint < here.next OR pg_is_in_recovery())))
$$;

COMMENT ON FUNCTION tidings.remaining_snapshot(pg_snapshot, pg_snapshot) IS
    'The first snapshot without those running transactions that can have no events outside of the second snapshot, now or later';

CREATE OR REPLACE FUNCTION tidings.start_of_page(
    after text, lost_too boolean, OUT tick bigint, OUT n bigint, OUT stamp bigint, OUT seen pg_snapshot, OUT counted bigint
) RETURNS record
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    place record;
    known bigint;
BEGIN
    SELECT * INTO place FROM tidings.parse_position(after) p;
    PERFORM tidings.check_retained(place.tick, place.n);
    tick := place.tick;
    n := place.n;
    stamp := place.stamp;
    counted := tidings.position_count(after);
    known := tidings.known_tick(tick);
    IF known <> tick THEN
        -- A standby may not have replayed the tick yet.
        IF NOT (lost_too OR pg_is_in_recovery()) THEN
            RAISE EXCEPTION 'the tick of the position is not in the log'
                USING ERRCODE = 'TI002', HINT = 'It was lost in a failover or a restore. Read the data again and continue from tidings.position().';
        END IF;
        tick := known;
        n := tidings.end_of_tick();
        counted := NULL;
    END IF;
    IF place.snapshot IS NOT NULL THEN
        SELECT tidings.remaining_snapshot(place.snapshot::pg_snapshot, k.since) INTO seen
        FROM tidings.tick k
        WHERE k.tick >= start_of_page.tick AND (k.tick > start_of_page.tick OR start_of_page.n < tidings.end_of_tick())
        ORDER BY k.tick LIMIT 1;
        seen := coalesce(seen, place.snapshot::pg_snapshot);
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.start_of_page(text, boolean) IS
    'Where to read the log for a position, and what its reader has seen of that part. Fails with TI001 or TI002 if the position can''t be served';

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
    -- The end of each position while the reader knows only some of the events of each tick: the stamp and the snapshot.
    suffix  text;
    seen    pg_snapshot;
    -- How many events after the tick the snapshot has seen; NULL if the position does not say.
    counted bigint;
    t       record;
    bytes   bigint;
    reach   integer;
    got     integer;
    found_n integer := 0;
    -- The cost of reading a tick or a segment in addition to its bytes, as a number of bytes. "room" is what this call
    -- may still read.
    tick_cost    CONSTANT integer := 16384;
    segment_cost CONSTANT integer := 512;
    -- Only a proxy, which reads in short pages, wants the events of guards.
    rechecks CONSTANT boolean := max_bytes IS NOT NULL;
    room    bigint := coalesce(max_bytes, 9223372036854775807);
BEGIN
    IF after = 'earliest' THEN
        after := tidings.locate(after);
    END IF;
    SELECT * INTO place FROM tidings.start_of_page(coalesce(after, ''), lost_too) p;
    more := false;
    seen := place.seen;
    counted := place.counted;
    suffix := coalesce(':' || place.stamp || ':' || seen, '');
    "position" := split_part(after, ':', 1) || suffix;
    <<ticks>>
    FOR t IN
        SELECT k.tick, k.since, k.until, k.used FROM tidings.tick k
        WHERE k.tick >= place.tick AND (k.tick > place.tick OR place.n < tidings.end_of_tick())
        ORDER BY k.tick
    LOOP
        more := room <= 0;
        EXIT WHEN more;
        -- A reader with a snapshot knows some of the events of each tick, until the first tick that begins with
        -- everything that the snapshot saw.
        IF seen IS NOT NULL AND ((counted = 0 AND t.tick > place.tick) OR tidings.covers(t.since, seen)) THEN
            seen := NULL;
            suffix := '';
        ELSIF counted IS NOT NULL AND seen IS NOT NULL AND t.tick > place.tick THEN
            SELECT greatest(counted - coalesce(sum(s.events), 0), 0) INTO counted
            FROM tidings.segments_between(t.since, t.until) s
            WHERE pg_visible_in_snapshot(s.xid, seen) AND s.stamp <= place.stamp;
        END IF;
        reach := NULL;
        IF max_bytes IS NOT NULL THEN
            SELECT coalesce(sum(octet_length(s.data) + segment_cost), 0) INTO bytes
            FROM tidings.segments_between(t.since, t.until) s;
            IF bytes > room THEN
                -- Reads as many segments as there is room for, but at least one. NULL, which means no limit, if that is
                -- the whole tick.
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
        -- Segments are in order and are decoded one by one, until there are enough rows. A sort of the events would
        -- decode them all.
        RETURN QUERY
            SELECT t.tick || '-' || (s.first + d.n) || suffix, d.topic, d.event, d.payload, to_timestamp(s.stamp / 1000000.0), NULL::boolean
            FROM tidings.tick_segments(t.since, t.until) s
            CROSS JOIN LATERAL tidings.decode_all(s.data, topics) d
            WHERE (t.tick > place.tick OR s.first + s.events > place.n)
              AND (rechecks OR d.event IS NOT NULL)
              AND (seen IS NULL OR NOT pg_visible_in_snapshot(s.xid, seen)
                   -- A later stamp: the transaction has the id of one that was seen and lost.
                   OR (counted IS NOT NULL AND s.stamp > place.stamp))
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
        -- Nothing that was seen comes later. Without a count, that is known after a restart of the server
        -- (seal_previous_epoch in relay/tick.rs), when transactions may have the ids of lost ones.
        IF coalesce(counted = 0, t.used & tidings.epoch_mark() <> 0 AND t.tick > place.stamp) THEN
            seen := NULL;
            suffix := '';
        END IF;
        -- After a tick, a position has the count in its number: see wire/src/position.rs. Within a tick, proxies that are
        -- older than 0.2.0 would not understand it.
        "position" := t.tick
                      || coalesce('-' || (tidings.end_of_tick() - CASE WHEN seen IS NOT NULL THEN counted END), '') || suffix;
    END LOOP;
    RETURN NEXT;
    PERFORM tidings.check_retained(place.tick, place.n);
    PERFORM tidings.make_durable();
END
$$;

COMMENT ON FUNCTION tidings.scan(text, text[], integer, integer, boolean) IS
    'For the proxy: the events after a position in about max_bytes of the log; those of guards have no name. The last row has no topic: it says where to continue (NULL: after the last of max_rows events) and whether there is more. Fails with TI002 if the position''s tick was lost, unless lost_too';

CREATE OR REPLACE FUNCTION tidings.read_page(
    after text, topics text[], max_bytes integer, max_cost integer, OUT segments bytea, OUT seen text, OUT reached text, OUT more boolean
) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT ROWS 1 AS 'MODULE_PATHNAME', 'read_page_wrapper';

COMMENT ON FUNCTION tidings.read_page(text, text[], integer, integer) IS
    'The segments after a position, like tidings.page, but without its checks';

CREATE OR REPLACE FUNCTION tidings.page(
    after text, topics text[], max_bytes integer, max_cost integer, OUT segments bytea, OUT seen text, OUT reached text, OUT more boolean
) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE STRICT ROWS 1 SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place  record;
    start  text;
    -- What the reader has seen beyond its place, as a position ends with it.
    suffix text;
BEGIN
    SELECT * INTO place FROM tidings.start_of_page(after, false) p;
    IF place.n < tidings.end_of_tick() THEN
        start := place.tick || '-' || place.n;
        suffix := coalesce(':' || place.stamp || ':' || place.seen || coalesce(':' || place.counted, ''), '');
    ELSE
        -- Here the number has the count: see wire/src/position.rs.
        start := place.tick || coalesce('-' || (tidings.end_of_tick() - nullif(place.counted, 0)), '');
        suffix := coalesce(':' || place.stamp || ':' || place.seen, '');
    END IF;
    start := start || suffix;
    RETURN QUERY
        SELECT p.segments, p.seen,
               -- A standby that has not replayed the position's tick yet must not lead its reader back.
               CASE WHEN p.reached = start THEN split_part(after, ':', 1) || suffix ELSE p.reached END,
               p.more
        FROM tidings.read_page(start, topics, max_bytes, max_cost) p;
    PERFORM tidings.check_retained(place.tick, place.n);
    PERFORM tidings.make_durable();
END
$$;

COMMENT ON FUNCTION tidings.page(text, text[], integer, integer) IS
    'For the proxy: the segments after a position that have an event of these topics or of a guard, about max_bytes in total, where to continue, and whether there is more. Fails with TI002 if the position''s tick was lost';

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
    'The events after a position, in order, that have one of these topics; all events if topics is NULL. Fewer than max_rows events mean that there are no more';

CREATE OR REPLACE VIEW tidings.events AS
SELECT t.tick || '-' || (s.first + d.n) AS position, d.topic, d.event, d.payload, to_timestamp(s.stamp / 1000000.0) AS created_at
FROM tidings.tick t
CROSS JOIN LATERAL tidings.tick_segments(t.since, t.until) s
CROSS JOIN LATERAL tidings.decode(s.data, NULL::text[]) d;

COMMENT ON VIEW tidings.events IS
    'All retained events, in no order, for debugging; tidings.changes() returns them in order';
COMMENT ON COLUMN tidings.events.position IS 'The event''s place in the order of all events';
COMMENT ON COLUMN tidings.events.topic IS 'The event''s topic';
COMMENT ON COLUMN tidings.events.event IS 'The event''s name';
COMMENT ON COLUMN tidings.events.payload IS 'The event''s payload: JSON, unless it was published as text';
COMMENT ON COLUMN tidings.events.created_at IS
    'When its segment was written: right before its transaction committed, or earlier in a large transaction';

-- For tests of applications that never commit

CREATE OR REPLACE FUNCTION tidings.unwritten(OUT ordinal bigint, OUT data bytea) RETURNS SETOF record
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'unwritten_wrapper';

COMMENT ON FUNCTION tidings.unwritten() IS
    'The segments that the running transaction has in memory, each with its order in the transaction';

-- A transaction with many events has written some of them to the log already. The body is a text, because pg_dump would
-- lock the log to print a parsed one.
CREATE OR REPLACE FUNCTION tidings.pending(OUT topic text, OUT event text, OUT payload text) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
    SELECT d.topic, d.event, d.payload
    FROM (SELECT u.ordinal, u.data FROM tidings.unwritten() u
          UNION ALL
          SELECT l.ordinal, l.data FROM tidings.log l WHERE l.xid OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id_if_assigned()) s
    CROSS JOIN LATERAL tidings.decode(s.data, NULL::pg_catalog.text[]) d
    ORDER BY s.ordinal, d.n;
$$;

COMMENT ON FUNCTION tidings.pending() IS
    'The events that the running transaction has captured so far, in order: for tests that roll back';
