-- Rights: nothing for PUBLIC, and exactly what a proxy needs for a proxy.

CREATE OR REPLACE FUNCTION tidings.grant_proxy(role regrole) RETURNS void
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    function regprocedure;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA tidings TO %s', role);
    FOREACH function IN ARRAY ARRAY[
        'tidings.channel()', 'tidings.relay()', 'tidings.relay_pid()', 'tidings.position()', 'tidings.locate(text)',
        'tidings.segments(text, integer)', 'tidings.changes(text, text[], integer)',
        'tidings.report(text, text[], integer[], interval)', 'tidings.rules_for(text[])',
        'tidings.check_subscription(jsonb, text[])', 'tidings.authorize(jsonb, text[])'
    ]::regprocedure[] LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', function, role);
    END LOOP;
END
$$;

COMMENT ON FUNCTION tidings.grant_proxy(regrole) IS 'Grants a proxy''s login role what it needs, and nothing more';

CREATE OR REPLACE FUNCTION tidings.installed() RETURNS void
LANGUAGE c AS 'MODULE_PATHNAME', 'installed_wrapper';

COMMENT ON FUNCTION tidings.installed() IS 'Called once by the install script: the relay starts when the transaction commits';

REVOKE ALL ON ALL TABLES IN SCHEMA tidings FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tidings FROM PUBLIC;
