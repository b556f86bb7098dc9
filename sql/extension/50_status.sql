-- Status: the relay, the log, and the topics with subscribers.

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
       pg_notification_queue_usage() AS notify_queue_usage,
       greatest(to_timestamp(newest.tick / 1000000.0) - clock_timestamp(), interval '0') AS clock_ahead,
       ring.ticks AS ring_ticks, ring.overflows AS ring_overflows,
       tidings.flushed_first()::jsonb AS flushed_first
FROM tidings.relay() r
CROSS JOIN tidings.ring() ring
-- The last tick is read from the table, so that it is right even if no relay runs or it has just started.
LEFT JOIN (SELECT k.tick, k.until FROM tidings.tick k ORDER BY k.tick DESC LIMIT 1) newest ON true;

COMMENT ON VIEW tidings.status IS 'The relay, its lag and counters, and the size of the log';
COMMENT ON COLUMN tidings.status.relay_pid IS 'The relay''s process id, NULL while no relay runs';
COMMENT ON COLUMN tidings.status.relay_state IS
    'wanted, starting or running; paused while a statement such as CREATE DATABASE ... TEMPLATE needs the database alone; standby on a standby; unknown until the launcher has checked the database; no place if too many databases of the server have the extension';
COMMENT ON COLUMN tidings.status.last_tick IS 'The number of the last tick, in microseconds since the Unix epoch';
COMMENT ON COLUMN tidings.status.last_tick_at IS 'The same as a time';
COMMENT ON COLUMN tidings.status.waiting_since IS
    'When the oldest committed event that is in no tick yet was written; NULL if there is none';
COMMENT ON COLUMN tidings.status.ticks IS 'Ticks since the server started';
COMMENT ON COLUMN tidings.status.inline_events IS
    'Events that were sent inside of notifications since the server started';
COMMENT ON COLUMN tidings.status.hints IS
    'Ticks since the server started that were only announced, so that proxies read them from the log';
COMMENT ON COLUMN tidings.status.skipped IS
    'Changes since the server started that were not sent, because they had no valid topic';
COMMENT ON COLUMN tidings.status.log_bytes IS 'The size of log and ticks on disk, including indexes';
COMMENT ON COLUMN tidings.status.oldest_position IS
    'The start of the retained events: positions before it fail with TI001';
COMMENT ON COLUMN tidings.status.retention IS 'The setting tidings.retention';
COMMENT ON COLUMN tidings.status.clock_ahead IS
    'How far the numbers of ticks are ahead of the server''s clock: more than zero if the clock was set back';
COMMENT ON COLUMN tidings.status.ring_ticks IS
    'Ticks since the server started whose segments the relay found in shared memory, and not in the log';
COMMENT ON COLUMN tidings.status.ring_overflows IS
    'How often since the server started the relay was too late for segments in shared memory, and searched the log instead: see tidings.ring_size';
COMMENT ON COLUMN tidings.status.flushed_first IS
    'Ticks since the server started that were flushed before they were announced, by the reason. All others are announced before, so that clients get them sooner';
COMMENT ON COLUMN tidings.status.notify_queue_usage IS 'How full the queue of notifications is, from 0 to 1';

CREATE OR REPLACE FUNCTION tidings.report(proxy text, topics text[], subscribers integer[], lease interval DEFAULT '30 seconds') RETURNS void
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
    'Called by a proxy: reports the number of subscribers of topics (0 removes a topic), and renews all its reports for the time of the lease';

CREATE OR REPLACE VIEW tidings.open_topics AS
SELECT o.topic, least(sum(o.subscribers), 2147483647)::integer AS subscribers, array_agg(o.proxy ORDER BY o.proxy) AS proxies, min(o.since) AS since
FROM tidings.open_topic o JOIN tidings.proxy p USING (proxy)
WHERE p.until > now()
GROUP BY o.topic;

COMMENT ON VIEW tidings.open_topics IS 'The topics that have subscribers now';
COMMENT ON COLUMN tidings.open_topics.topic IS 'The topic';
COMMENT ON COLUMN tidings.open_topics.subscribers IS 'The number of subscribers at all proxies together';
COMMENT ON COLUMN tidings.open_topics.proxies IS 'The proxies that have reported these subscribers';
COMMENT ON COLUMN tidings.open_topics.since IS 'Since when the topic has had subscribers';
