-- From 0.1.0 to 0.1.1: run by ALTER EXTENSION tidings UPDATE, after a restart with the new library.

\echo Use "ALTER EXTENSION tidings UPDATE" to load this file. \quit

CREATE OR REPLACE VIEW tidings.status AS
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

COMMENT ON COLUMN tidings.status.relay_pid IS 'The relay''s process id, NULL while none runs';
