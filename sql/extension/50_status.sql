-- What is going on: the relay, the log, and who is subscribed.

CREATE VIEW tidings.status AS
SELECT r.pid AS relay_pid,
       r.state AS relay_state,
       r.tick AS last_tick,
       to_timestamp(r.tick / 1000000.0) AS last_tick_at,
       (SELECT to_timestamp(min(l.stamp) / 1000000.0)
        FROM (SELECT k.until FROM tidings.tick k ORDER BY k.tick DESC LIMIT 1) newest
        JOIN tidings.log l ON l.xid >= pg_snapshot_xmax(newest.until)) AS waiting_since,
       r.ticks, r.events AS inline_events, r.hints, r.skipped,
       (SELECT sum(pg_total_relation_size(i.inhrelid)) FROM pg_catalog.pg_inherits i
        WHERE i.inhparent IN ('tidings.log'::regclass, 'tidings.tick'::regclass))::bigint AS log_bytes,
       (SELECT min(k.previous) FROM tidings.tick k) AS oldest_position,
       current_setting('tidings.retention')::interval AS retention,
       pg_notification_queue_usage() AS notify_queue_usage
FROM tidings.relay() r;

COMMENT ON VIEW tidings.status IS 'The relay, its lag and counters, and the size of the log';

CREATE UNLOGGED TABLE tidings.proxy (
    proxy text PRIMARY KEY,
    until timestamptz NOT NULL
);

COMMENT ON TABLE tidings.proxy IS 'The proxies that have reported, and how long their reports hold';

CREATE UNLOGGED TABLE tidings.open_topic (
    proxy       text        NOT NULL REFERENCES tidings.proxy ON DELETE CASCADE,
    topic       text        NOT NULL,
    subscribers integer     NOT NULL CHECK (subscribers > 0),
    since       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, proxy)
);

CREATE INDEX open_topic_proxy_idx ON tidings.open_topic (proxy);

COMMENT ON TABLE tidings.open_topic IS 'How many subscribers each proxy has for a topic';
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
