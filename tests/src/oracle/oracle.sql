-- What the oracle keeps in each database. Its triggers fold the changes of watches that do not show every change of a
-- row, as a client does. Postgres decides which of these writes are committed.

CREATE SCHEMA oracle;
CREATE TYPE oracle.mood AS ENUM ('fine', 'bad', 'so_so');
CREATE DOMAIN oracle.positive AS int CHECK (VALUE > 0);
CREATE TYPE oracle.pair AS (a int, b text);

-- What a client holds that has seen every event of a watch.
CREATE TABLE oracle.held (watch text, topic text, key text, record jsonb, PRIMARY KEY (watch, topic, key));

-- The topic of a row: pieces are texts and holes in turn, beginning and ending with a text.
CREATE FUNCTION oracle.topic(pieces jsonb, r jsonb) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    topic     text := pieces ->> 0;
    value     text;
    separator text;
BEGIN
    FOR i IN 1 .. jsonb_array_length(pieces) - 1 BY 2 LOOP
        value := r ->> (pieces ->> i);
        separator := pieces ->> (i + 1);
        IF value IS NULL OR i + 2 < jsonb_array_length(pieces)
                AND strpos(value || separator, separator) <> length(value) + 1 THEN
            RETURN NULL;
        END IF;
        topic := topic || value || separator;
    END LOOP;
    RETURN topic;
END
$$;

CREATE FUNCTION oracle.key(columns jsonb, r jsonb) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN (SELECT jsonb_agg(r -> c ORDER BY n)::text
            FROM jsonb_array_elements_text(columns) WITH ORDINALITY AS c (c, n));

-- The given columns of a row, or all.
CREATE FUNCTION oracle.part(columns jsonb, exclude jsonb, r jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN columns IS NULL THEN r - ARRAY(SELECT jsonb_array_elements_text(coalesce(exclude, '[]')))
                ELSE (SELECT jsonb_object_agg(c, r -> c) FROM jsonb_array_elements_text(columns) c) END;

CREATE FUNCTION oracle.note() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    w      jsonb := TG_ARGV[0];
    before jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    after  jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    -- A topic without columns does not need a row.
    "from" text  := CASE WHEN before IS NOT NULL THEN oracle.topic(w -> 'topic', before) END;
    "to"   text  := CASE WHEN after IS NOT NULL THEN oracle.topic(w -> 'topic', after) END;
BEGIN
    IF TG_OP = 'UPDATE' AND "from" IS NOT DISTINCT FROM "to"
            AND oracle.part(w -> 'columns', w -> 'exclude', before)::text
                = oracle.part(w -> 'columns', w -> 'exclude', after)::text THEN
        RETURN NULL;
    END IF;
    DELETE FROM oracle.held h
    WHERE h.watch = w ->> 'watch' AND h.topic = "from" AND h.key = oracle.key(w -> 'key', before);
    IF "to" IS NOT NULL THEN
        INSERT INTO oracle.held VALUES (
            w ->> 'watch', "to", oracle.key(w -> 'key', after), oracle.part(w -> 'shown', w -> 'hidden', after))
        ON CONFLICT (watch, topic, key) DO UPDATE SET record = excluded.record;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION oracle.note_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM oracle.held h WHERE h.watch = TG_ARGV[0];
    RETURN NULL;
END
$$;

-- A record as it would be if it had been sent after all changes of the table's columns.
CREATE FUNCTION oracle.now(r jsonb, changes jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    c jsonb;
BEGIN
    FOR c IN SELECT * FROM jsonb_array_elements(changes) LOOP
        IF c ? 'added' THEN
            r := jsonb_build_object(c ->> 'added', c -> 'value') || r;
        ELSIF c ? 'dropped' THEN
            r := r - (c ->> 'dropped');
        ELSIF r ? (c ->> 'to') THEN
            -- It was sent after this change.
            r := r - (c ->> 'renamed');
        ELSIF r ? (c ->> 'renamed') THEN
            r := r - (c ->> 'renamed') || jsonb_build_object(c ->> 'to', r -> (c ->> 'renamed'));
        END IF;
    END LOOP;
    RETURN r;
END
$$;
