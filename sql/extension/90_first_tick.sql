-- The first tick, without events. A position from before it belongs to another database. Everything in the log comes after it, also
-- what transactions with older ids will write.
INSERT INTO tidings.tick (slot, tick, previous, since, until, used)
SELECT 0, first, first, '3:3:', '3:3:', 0 FROM tidings.stamp() AS first;

SELECT tidings.installed();
