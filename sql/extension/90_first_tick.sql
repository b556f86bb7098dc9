-- The first tick, without events: a position from before it is one of another database. Whatever is in the log is in a later
-- one, also what transactions with older ids are going to write.
INSERT INTO tidings.tick (slot, tick, previous, since, until, used)
SELECT 0, first, first, '3:3:', '3:3:', 0 FROM tidings.stamp() AS first;

SELECT tidings.installed();
