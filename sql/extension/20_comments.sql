-- Comments on the tables and indexes of 10_tables.sql. They are in a file of their own because this one also runs at an upgrade.

COMMENT ON TABLE tidings.log IS 'The captured events. Each row is a segment: the events of a transaction, or of a part of a large one';
COMMENT ON COLUMN tidings.log.slot IS 'The partition';
COMMENT ON COLUMN tidings.log.xid IS 'The transaction that captured the events';
COMMENT ON COLUMN tidings.log.stamp IS 'When the segment was written: microseconds since the Unix epoch. No two segments have the same stamp';
COMMENT ON COLUMN tidings.log.ordinal IS 'The segment''s order in its transaction: the command that made the changes, and the number of events captured before it';
COMMENT ON COLUMN tidings.log.events IS 'The number of events in the segment';
COMMENT ON COLUMN tidings.log.data IS 'The events, encoded; see tidings.events';
COMMENT ON INDEX tidings.log_xid_idx IS 'Finds the segments of a tick: those of new transactions, and of transactions that were still running at the previous tick';

COMMENT ON TABLE tidings.tick IS 'The order of the log: a tick has the segments that one snapshot sees and the previous one does not';
COMMENT ON COLUMN tidings.tick.slot IS 'The partition';
COMMENT ON COLUMN tidings.tick.tick IS 'The number of the tick: when it was cut, in microseconds since the Unix epoch';
COMMENT ON COLUMN tidings.tick.previous IS 'The number of the previous tick';
COMMENT ON COLUMN tidings.tick.since IS 'Segments that this snapshot sees are in earlier ticks';
COMMENT ON COLUMN tidings.tick.until IS 'Segments that this snapshot does not see are in later ticks';
COMMENT ON COLUMN tidings.tick.used IS 'The partitions of the log that contain its segments: bit n stands for log_n. Bit 14 marks the tick that seals the epoch before a start of the server';
COMMENT ON INDEX tidings.tick_tick_idx IS 'Finds the ticks after a position';

COMMENT ON TABLE tidings.secret IS 'The name of the channel, which only granted roles may know. It is not dumped, because each database has its own';
COMMENT ON COLUMN tidings.secret.channel IS 'The channel that the relay notifies. Any role can listen on a channel whose name it knows';

COMMENT ON TABLE tidings.rule IS 'The subscription rules; see tidings.allow()';
COMMENT ON COLUMN tidings.rule.topic IS 'A topic template';
COMMENT ON COLUMN tidings.rule.using_query IS 'A query, in which {name} stands for the value of that hole, as text';
COMMENT ON COLUMN tidings.rule.search_path IS 'The search_path with which the query runs: that of the session that created the rule, as far as the query needs it';

COMMENT ON TABLE tidings.proxy IS 'The proxies that have reported subscribers, and how long their reports are valid';
COMMENT ON COLUMN tidings.proxy.proxy IS 'The name that the proxy has chosen for itself';
COMMENT ON COLUMN tidings.proxy.until IS 'When its reports become invalid, unless it renews them';

COMMENT ON TABLE tidings.open_topic IS 'The topics that have subscribers, by proxy';
COMMENT ON COLUMN tidings.open_topic.proxy IS 'The proxy';
COMMENT ON COLUMN tidings.open_topic.topic IS 'The topic';
COMMENT ON COLUMN tidings.open_topic.subscribers IS 'The number of subscribers of the topic at this proxy';
COMMENT ON COLUMN tidings.open_topic.since IS 'Since when the topic has had subscribers at this proxy';
COMMENT ON INDEX tidings.open_topic_proxy_idx IS 'Finds the topics of a proxy whose reports have become invalid';

DO $$
DECLARE
    part regclass;
BEGIN
    FOR part IN
        SELECT inhrelid FROM pg_catalog.pg_inherits
        WHERE inhparent IN ('tidings.log'::regclass, 'tidings.tick'::regclass)
    LOOP
        EXECUTE format('COMMENT ON TABLE %s IS %L', part, 'A partition. It is emptied as a whole, when the retention time of everything in it is over');
    END LOOP;
END
$$;
