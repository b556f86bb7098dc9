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

CREATE OR REPLACE FUNCTION tidings.watch_statements(
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
