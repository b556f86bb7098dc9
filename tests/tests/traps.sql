-- Run by foreign_objects.rs, in a session whose path is pg_catalog alone: trap.schema is where, trap.words is what our SQL names.
DO $traps$
DECLARE
    place    text      := current_setting('trap.schema');
    words    text[]    := current_setting('trap.words');
    -- What a value of ours may be, where anything may stand.
    kinds    regtype[] := '{text,name,int2,int4,int8,regclass,jsonb,"\"char\"",xid8,timestamptz,bool,oid,bytea,pg_snapshot,regprocedure,regrole}';
    -- What may stand where another type is asked for: such a call is inexact.
    kin      jsonb     := '{"text": ["name", "varchar", "anyelement"], "name": ["text"], "regclass": ["oid", "anyelement"],
                            "jsonb": ["json", "text", "anyelement"], "integer": ["int8", "int2"], "bigint": ["int4", "numeric"],
                            "text[]": ["varchar[]", "name[]", "anyarray"], "integer[]": ["int8[]"], "name[]": ["text[]"],
                            "pg_snapshot": ["text", "anyelement"], "bytea": ["text"], "interval": ["text"], "oid": ["regrole", "int8"],
                            "regrole": ["oid", "text"], "regprocedure[]": ["text[]", "oid[]"]}';
    f        record;
    variants text[];
    variant  text;
    s        text;
    i        int;
BEGIN
    -- Functions of Postgres and of the extension: as they are, with any one argument of another type, with one argument fewer.
    FOR f IN
        SELECT DISTINCT p.proname, p.proretset, p.provariadic = '"any"'::regtype AS takes_more,
               ARRAY(SELECT format_type(u.type, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS u (type, n) ORDER BY n) AS arguments
        FROM pg_proc p
        WHERE p.prokind IN ('f', 'a', 'w') AND NOT 'internal'::regtype = ANY (p.proargtypes) AND NOT 'cstring'::regtype = ANY (p.proargtypes)
          AND (p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (words)
            OR p.pronamespace = (SELECT n.oid FROM pg_namespace n WHERE n.nspname = 'tidings') AND p.prosrc !~ 'TRAPPED')
    LOOP
        variants := ARRAY[array_to_string(f.arguments, ', '), array_to_string(trim_array(f.arguments, least(1, cardinality(f.arguments))), ', ')];
        FOR i IN 1 .. cardinality(f.arguments) LOOP
            FOR s IN
                SELECT t::text FROM unnest(kinds) t WHERE f.arguments[i] ~ '^"?any' AND f.arguments[i] !~ 'array$'
                UNION ALL SELECT t::text || '[]' FROM unnest(kinds) t WHERE f.arguments[i] ~ '^any.*array$'
                UNION ALL SELECT jsonb_array_elements_text(kin -> f.arguments[i])
            LOOP
                variant := array_to_string(f.arguments[: i - 1] || s || f.arguments[i + 1 :], ', ');
                variants := variants || variant;
                IF f.takes_more THEN
                    variants := variants || (variant || ', ' || s) || (variant || ', text');
                END IF;
            END LOOP;
        END LOOP;
        FOREACH variant IN ARRAY variants LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', place, f.proname, variant,
                    CASE WHEN f.proretset THEN 'SETOF text' ELSE 'text' END,
                    format('BEGIN RAISE LOG ''TRAPPED: %s.%s(%s)''; RETURN%s; END', place, f.proname, variant,
                        CASE WHEN NOT f.proretset THEN ' NULL' ELSE '' END));
            EXCEPTION WHEN duplicate_function OR invalid_function_definition OR feature_not_supported THEN
                NULL;  -- It is ours, or there already; or Postgres has a pseudotype that no function can take.
            END;
        END LOOP;
    END LOOP;

    -- Operators of all that these are in Postgres for.
    FOR f IN
        SELECT DISTINCT o.oprname, l.type AS l, r.type AS r
        FROM pg_operator o
        CROSS JOIN LATERAL (
            SELECT o.oprleft::regtype::text WHERE o.oprleft = ANY (kinds)
            UNION ALL SELECT t::text FROM unnest(kinds) t WHERE o.oprleft::regtype::text ~ '^any' AND o.oprleft::regtype::text !~ 'array$'
            UNION ALL SELECT t || '[]' FROM unnest('{text,int4,int8}'::text[]) t WHERE o.oprleft::regtype::text ~ '^any.*array$') AS l (type)
        CROSS JOIN LATERAL (
            SELECT o.oprright::regtype::text WHERE o.oprright = ANY (kinds)
            UNION ALL SELECT t::text FROM unnest(kinds) t WHERE o.oprright::regtype::text ~ '^any' AND o.oprright::regtype::text !~ 'array$'
            UNION ALL SELECT t || '[]' FROM unnest('{text,int4,int8}'::text[]) t WHERE o.oprright::regtype::text ~ '^any.*array$') AS r (type)
        WHERE o.oprname = ANY ('{=,<>,<,>,<=,>=,||,->,->>,&,|,<<,+,-,*,/,@>,<@,&&,~,!~,~~}')
        UNION SELECT '||', 'text', 'int4' UNION SELECT '=', 'int4', 'int4'
    LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION %I.trapped(%s, %s) RETURNS bool LANGUAGE plpgsql AS %L', place, f.l, f.r,
                format('BEGIN RAISE LOG ''TRAPPED: an operator of %s, %s in %s''; RETURN true; END', f.l, f.r, place));
        EXCEPTION WHEN duplicate_function THEN
            NULL;
        END;
        BEGIN
            EXECUTE format('CREATE OPERATOR %I.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = %I.trapped)', place, f.oprname, f.l, f.r, place);
        EXCEPTION WHEN duplicate_function THEN
            NULL;  -- There already.
        END;
    END LOOP;

    -- Types, which are looked up likewise.
    FOREACH s IN ARRAY '{text,name,int2,int4,int8,regclass,jsonb,xid8,bool,oid,bytea,pg_snapshot,regprocedure,regrole}'::text[] LOOP
        EXECUTE format('CREATE FUNCTION %I.trapped(pg_catalog.%I) RETURNS bool LANGUAGE plpgsql AS %L', place, s,
            format('BEGIN RAISE LOG ''TRAPPED: the type %s.%s''; RETURN true; END', place, s));
        EXECUTE format('CREATE DOMAIN %I.%I AS pg_catalog.%I CHECK (%I.trapped(VALUE))', place, s, s, place);
    END LOOP;
END
$traps$;
