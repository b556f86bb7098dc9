-- The tables: the log and the ticks that order it, the rules, the queries of snapshots, and the subscribers of each proxy.
--
-- The log and the ticks have four partitions each, which are used in turn and emptied by TRUNCATE (see relay/retention.rs). Writers
-- insert directly into a partition of the log, so the index on xid is the only one that they maintain. Only the relay writes ticks.
--
-- This file runs at installation only. The files between it and the last one also run at an upgrade, after the script in
-- sql/upgrade. So they use CREATE OR REPLACE, and an upgraded database ends up with the same objects as a new one. The comments on
-- the tables, which say what each column is, are in such a file: 20_comments.sql.

CREATE TABLE tidings.log (
    slot    smallint NOT NULL,
    xid     xid8     NOT NULL,
    stamp   bigint   NOT NULL,
    ordinal bigint   NOT NULL,
    events  integer  NOT NULL,
    data    bytea    NOT NULL
) PARTITION BY LIST (slot);

CREATE TABLE tidings.tick (
    slot     smallint    NOT NULL,
    tick     bigint      NOT NULL,
    previous bigint      NOT NULL,
    since    pg_snapshot NOT NULL,
    until    pg_snapshot NOT NULL,
    used     smallint    NOT NULL
) PARTITION BY LIST (slot);

CREATE TABLE tidings.log_0 PARTITION OF tidings.log FOR VALUES IN (0);
CREATE TABLE tidings.log_1 PARTITION OF tidings.log FOR VALUES IN (1);
CREATE TABLE tidings.log_2 PARTITION OF tidings.log FOR VALUES IN (2);
CREATE TABLE tidings.log_3 PARTITION OF tidings.log FOR VALUES IN (3);
CREATE TABLE tidings.tick_0 PARTITION OF tidings.tick FOR VALUES IN (0);
CREATE TABLE tidings.tick_1 PARTITION OF tidings.tick FOR VALUES IN (1);
CREATE TABLE tidings.tick_2 PARTITION OF tidings.tick FOR VALUES IN (2);
CREATE TABLE tidings.tick_3 PARTITION OF tidings.tick FOR VALUES IN (3);

-- Rows are never updated, and they are removed with their whole partition, so vacuum is needed only against wraparound. Large
-- segments are compressed, with lz4 if the server supports it.
DO $$
DECLARE
    part regclass;
BEGIN
    FOR part IN
        SELECT inhrelid FROM pg_catalog.pg_inherits
        WHERE inhparent IN ('tidings.log'::regclass, 'tidings.tick'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off, toast.autovacuum_enabled = off)', part);
    END LOOP;
    -- The relay deletes ticks. A publication of all tables would not allow that without a replica identity.
    FOR part IN SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = 'tidings.tick'::regclass LOOP
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', part);
    END LOOP;
    FOR part IN SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = 'tidings.log'::regclass LOOP
        BEGIN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN data SET COMPRESSION lz4', part);
        EXCEPTION WHEN feature_not_supported THEN
            NULL;  -- This server was built without lz4, so the default, pglz, is used.
        END;
    END LOOP;
END
$$;

CREATE INDEX log_xid_idx ON tidings.log (xid);
CREATE INDEX tick_tick_idx ON tidings.tick (tick);

CREATE TABLE tidings.secret (
    channel text NOT NULL
);

INSERT INTO tidings.secret VALUES ('tidings_' || replace(gen_random_uuid()::text, '-', ''));

CREATE TABLE tidings.rule (
    topic       text PRIMARY KEY,
    using_query text NOT NULL,
    search_path text NOT NULL
);

CREATE TABLE tidings.snapshot_query (
    topic       text PRIMARY KEY,
    query       text NOT NULL,
    event       text NOT NULL,
    search_path text NOT NULL
);

COMMENT ON TABLE tidings.snapshot_query IS 'The queries whose rows streams start with; see tidings.snapshot()';
COMMENT ON COLUMN tidings.snapshot_query.topic IS 'A topic template';
COMMENT ON COLUMN tidings.snapshot_query.query IS 'A query, in which {name} stands for the value of that hole, as text';
COMMENT ON COLUMN tidings.snapshot_query.event IS 'The name of the events that its rows become';
COMMENT ON COLUMN tidings.snapshot_query.search_path IS 'The search_path under which the query was written, and under which it runs';

-- Only the rules and these queries are included in a dump.
SELECT pg_catalog.pg_extension_config_dump('tidings.rule', '');
SELECT pg_catalog.pg_extension_config_dump('tidings.snapshot_query', '');

CREATE UNLOGGED TABLE tidings.proxy (
    proxy text PRIMARY KEY,
    until timestamptz NOT NULL
);

CREATE UNLOGGED TABLE tidings.open_topic (
    proxy       text        NOT NULL REFERENCES tidings.proxy ON DELETE CASCADE,
    topic       text        NOT NULL,
    subscribers integer     NOT NULL CHECK (subscribers > 0),
    since       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, proxy)
);

CREATE INDEX open_topic_proxy_idx ON tidings.open_topic (proxy);

