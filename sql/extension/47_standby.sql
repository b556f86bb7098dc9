-- Hot standbys: nothing can be notified there, so a reader waits on the server until the next tick has been replayed.

CREATE OR REPLACE PROCEDURE tidings.await_tick(after text, wait interval)
LANGUAGE c AS 'MODULE_PATHNAME', 'await_tick_wrapper';

COMMENT ON PROCEDURE tidings.await_tick(text, interval) IS
    'Waits on a standby until tidings.segments() has something after a position, for that long at most. It holds no snapshot and no lock, so it never blocks the replay';

CREATE OR REPLACE FUNCTION tidings.tick_is_there(after text, wait interval) RETURNS boolean
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'await_tick_wrapper';

COMMENT ON FUNCTION tidings.tick_is_there(text, interval) IS
    'The same inside a query, whose snapshot may block the replay: so it also returns when the replay stands still';

CREATE OR REPLACE FUNCTION tidings.follow(
    after text, wait interval, max_bytes integer DEFAULT 1048576,
    OUT tick bigint, OUT previous bigint, OUT first integer, OUT last boolean, OUT data bytea
) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM tidings.tick_is_there(after, wait);
    -- A new statement, so that its snapshot sees the tick.
    RETURN QUERY SELECT s.tick, s.previous, s.first, s.last, s.data FROM tidings.segments(after, max_bytes) s;
END
$$;

COMMENT ON FUNCTION tidings.follow(text, interval, integer) IS
    'On a standby: what tidings.segments() returns, as soon as there is something, or nothing after that time. Proxies call tidings.await_tick() before tidings.segments() instead';

CREATE OR REPLACE FUNCTION tidings.standby(OUT streams boolean, OUT replayed bigint, OUT behind_bytes bigint, OUT behind_ms bigint) RETURNS SETOF record
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'standby_wrapper';

COMMENT ON FUNCTION tidings.standby() IS
    'Whether this standby is connected to its primary, up to where it has replayed, and how much it has received but not replayed; no row on a primary';
