-- The tables: the log and the ticks that order it, the rules, and who is subscribed.
--
-- Log and ticks have four partitions that are used in turn and emptied by TRUNCATE (see retention.rs). Writers insert into a
-- partition of the log directly; the index on xid is the only one on their path. The relay alone writes ticks.
--
-- This file runs at installation only. The files between it and the last one also run at an upgrade, after the script in
-- sql/upgrade. So they use CREATE OR REPLACE, and an upgraded database ends up with the same objects as a new one.

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
COMMENT ON COLUMN tidings.log.ordinal IS 'The segment''s order in its transaction: the command that made the changes, and the number of events captured before it';
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
