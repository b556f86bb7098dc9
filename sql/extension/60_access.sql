-- Access: who may subscribe to which topics. The database decides, with the row-level security that already guards its
-- tables.
--
-- A rule is a topic template and a query; the template's holes are text parameters of the query. A subscription is
-- allowed if the topic matches the template of some rule whose query finds a row. The query runs as the subscriber:
-- with the role in the claims, with request.jwt.claims set as PostgREST sets it, and read-only.

CREATE OR REPLACE VIEW tidings.rules AS SELECT topic, using_query FROM tidings.rule;

COMMENT ON VIEW tidings.rules IS 'The subscription rules';
COMMENT ON COLUMN tidings.rules.topic IS 'The topic template';
COMMENT ON COLUMN tidings.rules.using_query IS 'The query, which must find a row';

CREATE OR REPLACE FUNCTION tidings.match_topic(template text, topic text) RETURNS text[]
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'match_topic_wrapper';

COMMENT ON FUNCTION tidings.match_topic(text, text) IS
    'The values of a template''s holes in a topic, in order; NULL if the topic does not match';

CREATE OR REPLACE FUNCTION tidings.bind_holes(template text, using_query text) RETURNS text
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'bind_holes_wrapper';

COMMENT ON FUNCTION tidings.bind_holes(text, text) IS
    'The query of a rule, with each {hole} replaced by the parameter that it stands for';

CREATE OR REPLACE FUNCTION tidings.can_bind(template text, using_query text) RETURNS boolean
LANGUAGE c STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'can_bind_wrapper';

COMMENT ON FUNCTION tidings.can_bind(text, text) IS
    'Whether a rule''s query uses only the holes of its template, and both can be parsed';

CREATE OR REPLACE FUNCTION tidings.rules_for(topics text[], OUT topic text, OUT query text, OUT holes text[], OUT search_path text) RETURNS SETOF record
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.topic, tidings.bind_holes(r.topic, r.using_query), m.holes, r.search_path
    FROM unnest(topics) AS t (topic)
    CROSS JOIN tidings.rule r
    CROSS JOIN LATERAL tidings.match_topic(r.topic, t.topic) AS m (holes)
    -- allow() refuses other rules, but INSERT does not. Such a rule allows nothing, and must not fail the others that
    -- match.
    WHERE m.holes IS NOT NULL AND tidings.can_bind(r.topic, r.using_query)
$$;

COMMENT ON FUNCTION tidings.rules_for(text[]) IS 'The rules whose templates match the topics, ready to run';

CREATE OR REPLACE FUNCTION tidings.plan_rule(query text, path text) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
SET request.jwt.claims = '{}'
AS $$
BEGIN
    PERFORM set_config('search_path', path, true);
    EXECUTE 'SELECT EXISTS (' OPERATOR(pg_catalog.||) query OPERATOR(pg_catalog.||) E'\n) WHERE false'
        USING pg_catalog.array_fill(NULL::pg_catalog.text, ARRAY[0]);
END
$$;

COMMENT ON FUNCTION tidings.plan_rule(text, text) IS
    'Plans the query of a rule with this search_path and with empty claims, without running it. Fails if the query is invalid';

CREATE OR REPLACE FUNCTION tidings.others_who_create(schemas name[]) RETURNS name[]
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(s.nspname ORDER BY s.nspname), '{}')
    FROM pg_namespace s
    WHERE s.nspname = ANY (schemas) AND s.nspname <> 'pg_catalog' AND (
        has_schema_privilege('public', s.oid, 'CREATE')
        -- pg_database_owner is left out: its only member, the database's owner, is found directly.
        OR EXISTS (SELECT FROM pg_roles r WHERE NOT r.rolsuper AND r.rolname <> 'pg_database_owner'
            AND has_schema_privilege(r.oid, s.oid, 'CREATE') AND NOT pg_has_role(r.oid, current_user, 'MEMBER')))
$$;

COMMENT ON FUNCTION tidings.others_who_create(name[]) IS
    'The schemas in which roles other than superusers and the current role may create objects';

CREATE OR REPLACE FUNCTION tidings.query_path(what text, topic text, query text, schemas name[]) RETURNS text
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    bound    text := tidings.bind_holes(topic, query);
    path     text := 'pg_catalog, pg_temp';
    writable text[];
BEGIN
    -- An invalid query fails now, not at the first subscription. If a query needs only pg_catalog, its path has no
    -- other schema, so that no role can shadow its names.
    BEGIN
        PERFORM tidings.plan_rule(bound, path);
    EXCEPTION WHEN OTHERS THEN
        -- The schemas that the session's path resolves to now. Temporary objects come last, where they can't shadow
        -- others.
        SELECT coalesce(string_agg(quote_ident(s.name), ', ' ORDER BY s.n) || ', pg_temp', 'pg_temp') INTO path
            FROM unnest(schemas) WITH ORDINALITY AS s (name, n) WHERE NOT starts_with(s.name::text, 'pg_temp_');
        PERFORM tidings.plan_rule(bound, path);
        writable := tidings.others_who_create(schemas);
        IF writable <> '{}' THEN
            RAISE WARNING 'the % for "%" looks up names in schemas where others may create objects: %',
                what, topic, array_to_string(writable, ', ')
                USING HINT = 'Such objects can shadow names in the query. Write each name with its schema, as in public.boards or OPERATOR(public.=), or revoke CREATE on these schemas.';
        END IF;
    END;
    RETURN path;
END
$$;

COMMENT ON FUNCTION tidings.query_path(text, text, text, name[]) IS
    'Checks the query of a rule or snapshot and returns the search_path that it needs. If pg_catalog is not enough, names are looked up in these schemas';

CREATE OR REPLACE FUNCTION tidings.keep_rule(topic text, using_query text, schemas name[]) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    INSERT INTO tidings.rule AS r VALUES (topic, using_query, tidings.query_path('rule', topic, using_query, schemas))
        ON CONFLICT ON CONSTRAINT rule_pkey
        DO UPDATE SET using_query = excluded.using_query, search_path = excluded.search_path;
END
$$;

COMMENT ON FUNCTION tidings.keep_rule(text, text, name[]) IS
    'Checks a rule and stores it. If its query needs more than pg_catalog, names are looked up in these schemas';

CREATE OR REPLACE FUNCTION tidings.allow(topic text, using_query text) RETURNS void
LANGUAGE plpgsql STRICT
AS $$
BEGIN
    -- This reads the caller's search_path, but depends on it for nothing else.
    PERFORM tidings.keep_rule(topic, using_query, pg_catalog.current_schemas(false));
END
$$;

COMMENT ON FUNCTION tidings.allow(text, text) IS
    'Allows subscriptions to topics that match the template, if the query finds a row for the subscriber. Replaces an earlier rule of the same template';

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

COMMENT ON FUNCTION tidings.disallow(text) IS 'Removes a rule. Returns false if there is none for this template';

CREATE OR REPLACE FUNCTION tidings.ask_rule(role oid, claims text, query text, holes text[], search_path text)
RETURNS text
-- Not STRICT, because NULL means that access is allowed, which a NULL argument must not cause.
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'ask_rule_wrapper';

COMMENT ON FUNCTION tidings.ask_rule(oid, text, text, text[], text) IS
    'Why a rule denies access to the role, or NULL if it allows access. The query runs as the role and cannot leave it, read-only, in a subtransaction that is rolled back';

CREATE OR REPLACE FUNCTION tidings.no_subscriber(role_claim text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN role_claim IS NULL THEN 'the claims name no role'
        WHEN role_claim = session_user THEN 'the role is the proxy''s own'
        WHEN NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = role_claim AND NOT r.rolsuper) THEN 'there is no such role for subscribers'
        -- The login roles with which proxies listen: a proxy may have two, and there may be several proxies.
        WHEN has_function_privilege(role_claim, 'tidings.channel()', 'EXECUTE') THEN 'the role is a proxy''s own'
        WHEN NOT pg_has_role(session_user, role_claim,
            CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN 'the proxy may not take the role'
    END
$$;

COMMENT ON FUNCTION tidings.no_subscriber(text) IS
    'Why the login role may not check access for a role, or NULL if it may';

-- This function reads the rules, so it runs as the extension's owner, but it reveals only whether access is allowed.
-- The queries of the rules run as the subscriber.
CREATE OR REPLACE FUNCTION tidings.check_subscription(claims jsonb, topics text[], OUT topic text, OUT allowed boolean, OUT reason text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    role_claim text := CASE WHEN jsonb_typeof(claims -> 'role') = 'string' THEN claims ->> 'role' END;
    role       oid  := (SELECT r.oid FROM pg_roles r WHERE r.rolname = role_claim);
    refused    text := tidings.no_subscriber(role_claim);
    rule       record;
BEGIN
    PERFORM tidings.refuse_subscriber();
    -- Roles may be created, dropped and renamed meanwhile. The rules must run as the role that was checked.
    IF refused IS NULL AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = role AND r.rolname = role_claim) THEN
        refused := 'there is no such role for subscribers';
    END IF;
    FOREACH topic IN ARRAY topics LOOP
        allowed := false;
        reason := coalesce(refused, 'no rule matches');
        IF refused IS NULL THEN
            FOR rule IN SELECT r.* FROM tidings.rules_for(ARRAY[topic]) r LOOP
                reason := tidings.ask_rule(role, claims::text, rule.query, rule.holes, rule.search_path);
                allowed := reason IS NULL;
                EXIT WHEN allowed;
            END LOOP;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

COMMENT ON FUNCTION tidings.check_subscription(jsonb, text[]) IS
    'For each topic, whether a subscriber with these claims may subscribe to it, and if not, why. The reason is for the log, not for the subscriber';

CREATE OR REPLACE FUNCTION tidings.authorize(claims jsonb, topics text[]) RETURNS text[]
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(c.topic), '{}') FROM tidings.check_subscription(claims, topics) c WHERE NOT c.allowed
$$;

COMMENT ON FUNCTION tidings.authorize(jsonb, text[]) IS
    'The topics that a subscriber with these claims may not subscribe to';
