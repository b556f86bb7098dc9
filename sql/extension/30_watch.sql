-- Watches: functions that create, drop and list their triggers. There is no table of watches: the triggers are the
-- configuration.

CREATE OR REPLACE FUNCTION tidings.check_watch(relation regclass, name text) RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'check_watch_wrapper';

COMMENT ON FUNCTION tidings.check_watch(regclass, text) IS 'Raises an error if the triggers of a watch would fail';

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
    other          regclass;
    statements     text[] := '{}';
BEGIN
    IF relation IS NULL OR topic IS NULL OR event IS NULL OR operations IS NULL OR old_record IS NULL OR name IS NULL THEN
        RAISE EXCEPTION 'only payload, columns, exclude and condition of tidings.watch() may be NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Omit an argument to get its default.';
    END IF;
    IF 1 < ANY (ARRAY[array_ndims(columns), array_ndims(exclude), array_ndims(operations)]) THEN
        RAISE EXCEPTION 'columns, exclude or operations is a nested list'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give a one-dimensional array of names.';
    END IF;
    IF array_position(columns, NULL) IS NOT NULL OR array_position(exclude, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'the name of a column is NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'columns and exclude are lists of names.';
    END IF;
    IF columns = '{}' THEN
        RAISE EXCEPTION 'no column is left to capture'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Omit columns to capture all columns.';
    END IF;
    IF name = '' OR octet_length(name) > 46 OR right(name, 9) = '_truncate' THEN
        RAISE EXCEPTION 'the name of a watch must have 1 to 46 bytes and must not end in _truncate'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'The triggers of the watch are called tidings_<name> and tidings_<name>_truncate.';
    END IF;
    operations := ARRAY(SELECT upper(o COLLATE "C") FROM unnest(operations) o);
    IF operations = '{}' OR NOT operations <@ '{INSERT,UPDATE,DELETE,TRUNCATE}' THEN
        RAISE EXCEPTION 'invalid operations: %', operations
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give one or more of INSERT, UPDATE, DELETE and TRUNCATE.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = relation AND c.relkind IN ('r', 'p')) THEN
        RAISE EXCEPTION '% is not a table', relation
            USING ERRCODE = 'wrong_object_type', HINT = 'Instead of a view, watch the tables that it reads.';
    END IF;

    IF topic !~ '[{]' AND topic ~ '[:$][A-Za-z_]' THEN
        RAISE NOTICE 'the topic "%" names no column, so all rows have this one topic', topic
            USING HINT = 'If it was meant to: columns are written in braces, as in boards_{board_id}.';
    END IF;

    SELECT string_agg(quote_literal(a), ', ') INTO list FROM unnest(
        ARRAY['topic=' || topic, 'event=' || event, 'old_record=' || old_record]
        || CASE WHEN payload IS NULL THEN '{}' ELSE ARRAY['payload=' || payload::text] END
        || ARRAY(SELECT 'column=' || c FROM unnest(columns) c)
        || ARRAY(SELECT 'exclude=' || c FROM unnest(exclude) c)) a;

    row_operations := ARRAY(SELECT DISTINCT o FROM unnest(operations) o WHERE o <> 'TRUNCATE');
    IF row_operations <> '{}' THEN
        -- A partition inherits the row triggers of its partitioned table.
        SELECT whole.tgrelid::regclass INTO other
        FROM pg_trigger t JOIN pg_trigger whole ON whole.oid = t.tgparentid
        WHERE t.tgrelid = relation AND t.tgname = 'tidings_' || name;
        IF FOUND THEN
            RAISE EXCEPTION '% is a partition of %, whose watch "%" captures its changes', relation, other, name
                USING ERRCODE = 'duplicate_object', HINT = 'Give the partition''s watch another name, or remove the watch of the partitioned table.';
        END IF;
        SELECT t.tgrelid::regclass INTO other
        FROM pg_partition_tree(relation) part JOIN pg_trigger t ON t.tgrelid = part.relid
        WHERE part.relid <> relation AND t.tgparentid = 0 AND t.tgname = 'tidings_' || name
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION '% is a partition of % and has its own watch "%"', other, relation, name
                USING ERRCODE = 'duplicate_object', HINT = format('Remove that watch first (SELECT tidings.unwatch(%L, %L)), or give this one another name.', other, name);
        END IF;
        statements := statements || format(
            'CREATE TRIGGER %I AFTER %s ON %s FOR EACH ROW %s EXECUTE FUNCTION tidings.capture(%s)',
            'tidings_' || name, array_to_string(row_operations, ' OR '), relation,
            CASE WHEN condition IS NULL THEN '' ELSE 'WHEN (' || condition || E'\n)' END, list);  -- The newline ends a comment at the end of the condition.
    ELSIF condition IS NOT NULL THEN
        RAISE EXCEPTION 'a watch of TRUNCATE cannot have a condition'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'A condition is about a row, and TRUNCATE has none.';
    END IF;
    IF 'TRUNCATE' = ANY (operations) THEN
        statements := statements || format(
            'CREATE TRIGGER %I AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION tidings.capture(%s)',
            'tidings_' || name || '_truncate', relation, list);
    END IF;
    RETURN statements;
END
$$;

COMMENT ON FUNCTION tidings.watch_statements(regclass, text, text, jsonb, text[], text[], text[], text, text, text) IS
    'The CREATE TRIGGER statements of a watch';

-- This function sets no search_path, because names in the condition are looked up with that of the caller. So every
-- name below has its schema.
CREATE OR REPLACE FUNCTION tidings.watch(
    relation   regclass,
    topic      text,
    event      text    DEFAULT 'changed',
    payload    jsonb   DEFAULT NULL,
    columns    text[]  DEFAULT NULL,
    exclude    text[]  DEFAULT NULL,
    operations text[]  DEFAULT '{INSERT,UPDATE,DELETE}',
    condition  text    DEFAULT NULL,
    old_record text    DEFAULT 'changed',
    name       text    DEFAULT 'default'
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    statements pg_catalog.text[] := tidings.watch_statements(
        relation, topic, event, payload, columns, exclude, operations, condition, old_record, name);
    statement  pg_catalog.text;
BEGIN
    PERFORM tidings.unwatch(relation, name);
    FOREACH statement IN ARRAY statements LOOP
        EXECUTE statement;
    END LOOP;
    PERFORM tidings.check_watch(relation, name);
    -- Roles that were granted the functions of watches one by one, before there was this one, get no notice.
    IF pg_catalog.has_function_privilege('tidings.note_missing_index(pg_catalog.regclass, pg_catalog.text, pg_catalog.text[])', 'EXECUTE') THEN
        PERFORM tidings.note_missing_index(relation, topic, operations);
    END IF;
END
$$;

COMMENT ON FUNCTION tidings.watch(regclass, text, text, jsonb, text[], text[], text[], text, text, text) IS
    'Captures the changes of a table. Each becomes an event with the topic that the template makes from the row';

-- As in watch(), names in the condition are looked up with the search_path of the caller.
CREATE OR REPLACE FUNCTION tidings.guard(
    relation   regclass,
    topic      text,
    operations text[] DEFAULT '{UPDATE,DELETE}',
    condition  text   DEFAULT NULL,
    name       text   DEFAULT 'guard'
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    -- The statements are those of a watch with other arguments, which are at their end.
    watch_end  pg_catalog.text := pg_catalog.format(
        '%L, %L, %L)', pg_catalog.concat('topic=', topic), 'event=changed', 'old_record=changed');
    guard_end  pg_catalog.text := pg_catalog.format('%L, %L)', pg_catalog.concat('topic=', topic), 'guard=true');
    statements pg_catalog.text[];
    statement  pg_catalog.text;
BEGIN
    -- TRUNCATE takes away the rights of all rows, as a DELETE of them would.
    IF 'DELETE' OPERATOR(pg_catalog.=) ANY (pg_catalog.upper(operations::pg_catalog.text)::pg_catalog.text[]) THEN
        operations := pg_catalog.array_append(operations, 'TRUNCATE');
    END IF;
    statements := tidings.watch_statements(
        relation, topic, 'changed', NULL, NULL, NULL, operations, condition, 'changed', name);
    PERFORM tidings.unwatch(relation, name);
    FOREACH statement IN ARRAY statements LOOP
        EXECUTE pg_catalog.concat(
            pg_catalog.left(statement, OPERATOR(pg_catalog.-) pg_catalog.length(watch_end)), guard_end);
    END LOOP;
    PERFORM tidings.check_watch(relation, name);
END
$$;

COMMENT ON FUNCTION tidings.guard(regclass, text, text[], text, text) IS
    'Guards a right: after a change of this table, the rights of the topic''s subscribers are checked again before they get anything that comes later in the order of all events';

CREATE OR REPLACE FUNCTION tidings.unwatch(relation regclass, name text DEFAULT 'default') RETURNS boolean
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    found_any boolean := false;
    dropped   name;
BEGIN
    FOR dropped IN
        SELECT t.tgname FROM pg_trigger t
        WHERE t.tgrelid = relation AND t.tgparentid = 0 AND t.tgfoid = 'tidings.capture()'::regprocedure
          AND t.tgname IN ('tidings_' || name, 'tidings_' || name || '_truncate')
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', dropped, relation);
        found_any := true;
    END LOOP;
    RETURN found_any;
END
$$;

COMMENT ON FUNCTION tidings.unwatch(regclass, text) IS
    'Removes a watch or a guard. Returns false if the table has none with this name';

CREATE OR REPLACE VIEW tidings.watches AS
SELECT w.tgrelid::regclass AS relation,
       w.name,
       (SELECT substr(a, 7) FROM unnest(w.list) a WHERE a LIKE 'topic=%') AS topic,
       CASE WHEN 'guard=true' <> ALL (w.list)
            THEN coalesce((SELECT substr(a, 7) FROM unnest(w.list) a WHERE a LIKE 'event=%'), 'changed') END AS event,
       (SELECT substr(a, 9) FROM unnest(w.list) a WHERE a LIKE 'payload=%') AS payload,
       nullif(ARRAY(SELECT substr(a, 8) FROM unnest(w.list) a WHERE a LIKE 'column=%'), '{}') AS columns,
       nullif(ARRAY(SELECT substr(a, 9) FROM unnest(w.list) a WHERE a LIKE 'exclude=%'), '{}') AS exclude,
       array_remove(ARRAY[
           CASE WHEN bit_or(w.tgtype) & 4 <> 0 THEN 'INSERT' END,
           CASE WHEN bit_or(w.tgtype) & 16 <> 0 THEN 'UPDATE' END,
           CASE WHEN bit_or(w.tgtype) & 8 <> 0 THEN 'DELETE' END,
           CASE WHEN bit_or(w.tgtype) & 32 <> 0 THEN 'TRUNCATE' END], NULL) AS operations,
       max(substring(pg_get_triggerdef(w.oid) FROM ' WHEN [(](.*)[)] EXECUTE FUNCTION ')) AS condition,
       CASE WHEN 'guard=true' <> ALL (w.list)
            THEN coalesce((SELECT substr(a, 12) FROM unnest(w.list) a WHERE a LIKE 'old_record=%'), 'changed') END AS old_record,
       bool_and(w.tgenabled <> 'D') AS enabled,
       'guard=true' = ANY (w.list) AS is_guard
FROM (
    -- The arguments are stored one after the other, each ending with a zero byte. A regular expression would take time
    -- quadratic in their length. In escape format a zero byte is \000. Backslashes are replaced first, so that nothing
    -- else looks like that.
    SELECT t.oid, t.tgrelid, t.tgtype, t.tgenabled,
           coalesce(substring(t.tgname FROM CASE WHEN t.tgtype & 32 <> 0 THEN '^tidings_(.*)_truncate$' ELSE '^tidings_(.*)$' END), t.tgname) AS name,
           (SELECT array_agg(convert_from(decode(a.escaped, 'escape'), 'UTF8') ORDER BY a.n)
            FROM unnest(string_to_array(replace(encode(t.tgargs, 'escape'), E'\\\\', E'\\134'), E'\\000')) WITH ORDINALITY AS a (escaped, n)
            WHERE a.n <= t.tgnargs) AS list
    FROM pg_catalog.pg_trigger t
    WHERE t.tgfoid = 'tidings.capture()'::regprocedure AND t.tgparentid = 0
) w
-- A watch of rows and of TRUNCATE has two triggers.
GROUP BY w.tgrelid, w.name, w.list;

COMMENT ON VIEW tidings.watches IS 'All watches and guards, read from their triggers';
COMMENT ON COLUMN tidings.watches.relation IS 'The watched table';
COMMENT ON COLUMN tidings.watches.name IS 'The name of the watch; its trigger is called tidings_<name>';
COMMENT ON COLUMN tidings.watches.topic IS 'The template of the topic';
COMMENT ON COLUMN tidings.watches.event IS 'The name of its events, NULL for a guard';
COMMENT ON COLUMN tidings.watches.payload IS 'The payload with its placeholders, NULL for the default one';
COMMENT ON COLUMN tidings.watches.columns IS 'The columns that are captured, NULL for all';
COMMENT ON COLUMN tidings.watches.exclude IS 'The columns that are left out, NULL for none';
COMMENT ON COLUMN tidings.watches.operations IS
    'The operations that are captured, of INSERT, UPDATE, DELETE and TRUNCATE';
COMMENT ON COLUMN tidings.watches.condition IS 'The condition on OLD and NEW, NULL for none';
COMMENT ON COLUMN tidings.watches.old_record IS
    'The part of the old row that an UPDATE includes: changed, full or none; NULL for a guard';
COMMENT ON COLUMN tidings.watches.enabled IS 'Whether its triggers are enabled';
COMMENT ON COLUMN tidings.watches.is_guard IS 'Whether it is a guard, whose events reach no client';
