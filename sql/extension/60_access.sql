-- Access: who may subscribe to what. The database decides, with the row-level security that already guards its tables.
--
-- A rule is a topic template and a query; the template's holes are the query's text parameters. A subscription is allowed
-- if some rule whose template matches finds a row when its query runs as the subscriber: with the role of the claims,
-- with request.jwt.claims set as PostgREST sets it, read-only.

CREATE OR REPLACE VIEW tidings.rules AS SELECT topic, using_query FROM tidings.rule;

COMMENT ON VIEW tidings.rules IS 'The subscription rules';
COMMENT ON COLUMN tidings.rules.topic IS 'The topic template';
COMMENT ON COLUMN tidings.rules.using_query IS 'The query that must find a row';

CREATE OR REPLACE FUNCTION tidings.match_topic(template text, topic text) RETURNS text[]
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'match_topic_wrapper';

COMMENT ON FUNCTION tidings.match_topic(text, text) IS 'The values of a template''s holes in a topic, in order; NULL if the topic does not match';

CREATE OR REPLACE FUNCTION tidings.bind_holes(template text, using_query text) RETURNS text
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'bind_holes_wrapper';

COMMENT ON FUNCTION tidings.bind_holes(text, text) IS 'A rule''s query with each {hole} replaced by the parameter that it stands for';

CREATE OR REPLACE FUNCTION tidings.rules_for(topics text[], OUT topic text, OUT query text, OUT holes text[], OUT search_path text) RETURNS SETOF record
LANGUAGE sql STABLE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.topic, tidings.bind_holes(r.topic, r.using_query), m.holes, r.search_path
    FROM unnest(topics) AS t (topic)
    CROSS JOIN tidings.rule r
    CROSS JOIN LATERAL tidings.match_topic(r.topic, t.topic) AS m (holes)
    WHERE m.holes IS NOT NULL
$$;

COMMENT ON FUNCTION tidings.rules_for(text[]) IS 'The rules that match each topic, ready to run';

CREATE OR REPLACE FUNCTION tidings.allow(topic text, using_query text) RETURNS void
LANGUAGE plpgsql STRICT
AS $$
BEGIN
    -- Whatever is wrong with the query is an error now, not at the first subscription.
    EXECUTE 'SELECT EXISTS (' OPERATOR(pg_catalog.||) tidings.bind_holes(topic, using_query) OPERATOR(pg_catalog.||) E'\n) WHERE false'
        USING pg_catalog.array_fill(NULL::pg_catalog.text, ARRAY[0]);
    INSERT INTO tidings.rule AS r VALUES (topic, using_query, pg_catalog.current_setting('search_path'))
        ON CONFLICT ON CONSTRAINT rule_pkey
        DO UPDATE SET using_query = excluded.using_query, search_path = excluded.search_path;
END
$$;

COMMENT ON FUNCTION tidings.allow(text, text) IS
    'Allows the subscription to topics of this form to those for whom the query finds a row; replaces the rule of the same form';

CREATE OR REPLACE FUNCTION tidings.disallow(topic text) RETURNS boolean
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    DELETE FROM tidings.rule r WHERE r.topic = topic;
    RETURN FOUND;
END
$$;

COMMENT ON FUNCTION tidings.disallow(text) IS 'Takes a rule back; false if there was none for this template';

CREATE OR REPLACE FUNCTION tidings.check_subscription(claims jsonb, topics text[], OUT topic text, OUT allowed boolean, OUT reason text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    role_claim text := claims ->> 'role';
    refused    text;
    rule       record;
    rule_rows  refcursor;
    first_row  record;
    found_row  boolean;
BEGIN
    refused := CASE
        WHEN jsonb_typeof(claims -> 'role') IS DISTINCT FROM 'string' THEN 'the claims name no role'
        WHEN role_claim = session_user THEN 'the role is the proxy''s own'
        WHEN NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = role_claim AND NOT r.rolsuper) THEN 'there is no such role for subscribers'
        WHEN NOT pg_has_role(session_user, role_claim, 'MEMBER') THEN 'the proxy may not take the role'
    END;
    FOREACH topic IN ARRAY topics LOOP
        allowed := false;
        reason := coalesce(refused, 'no rule matches');
        IF refused IS NULL THEN
            FOR rule IN SELECT r.* FROM tidings.rules_for(ARRAY[topic]) r LOOP
                found_row := NULL;
                rule_rows := NULL;
                -- The inner block is always rolled back, and with it whatever the query did to the session.
                BEGIN
                    PERFORM set_config('request.jwt.claims', claims::text, true);
                    PERFORM set_config('search_path', rule.search_path, true);
                    PERFORM set_config('transaction_read_only', 'on', true);
                    PERFORM set_config('role', role_claim, true);
                    -- The first row is really fetched: inside of EXISTS, what the query selects would not be evaluated, and a
                    -- function that refuses by raising an error would never be called.
                    OPEN rule_rows FOR EXECUTE rule.query USING rule.holes;
                    FETCH rule_rows INTO first_row;
                    found_row := FOUND;
                    RAISE EXCEPTION USING ERRCODE = CASE WHEN found_row THEN 'TI010' ELSE 'TI011' END;
                EXCEPTION
                    WHEN SQLSTATE 'TI010' THEN
                        -- Not if the query has raised it by itself.
                        allowed := coalesce(found_row, false);
                        reason := CASE WHEN NOT allowed THEN 'its rule fails' END;
                    WHEN SQLSTATE 'TI011' THEN
                        reason := 'its rule finds no row';
                    WHEN OTHERS THEN
                        reason := format('its rule fails: %s (%s)', SQLERRM, SQLSTATE);
                END;
                EXIT WHEN allowed;
            END LOOP;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

COMMENT ON FUNCTION tidings.check_subscription(jsonb, text[]) IS
    'For each topic whether the claims may subscribe to it, and if not why not. The reason is for the log, not for the subscriber';

CREATE OR REPLACE FUNCTION tidings.authorize(claims jsonb, topics text[]) RETURNS text[]
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(c.topic), '{}') FROM tidings.check_subscription(claims, topics) c WHERE NOT c.allowed
$$;

COMMENT ON FUNCTION tidings.authorize(jsonb, text[]) IS 'Those of the topics that the claims may not subscribe to';
