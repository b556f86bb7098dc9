-- Capture: the trigger function, and the functions that publish an event without a change of a table.

CREATE OR REPLACE FUNCTION tidings.capture() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'tidings_capture';

COMMENT ON FUNCTION tidings.capture() IS
    'The trigger function of a watch. Arguments: topic=..., and optionally event=..., payload=..., old_record=..., and column=... or exclude=..., once for each column. A guard has topic=... and guard=true';

CREATE OR REPLACE FUNCTION tidings.publish_text(topic text, data text, event text DEFAULT 'message') RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'publish_text_wrapper';

COMMENT ON FUNCTION tidings.publish_text(text, text, text) IS
    'Sends a text to the subscribers of a topic when the transaction commits. Does nothing if an argument is NULL';

CREATE OR REPLACE FUNCTION tidings.publish(topic text, payload jsonb, event text DEFAULT 'message') RETURNS void
LANGUAGE sql STRICT
BEGIN ATOMIC
    SELECT tidings.publish_text(topic, payload::text, event);
END;

COMMENT ON FUNCTION tidings.publish(text, jsonb, text) IS
    'Sends a JSON value to the subscribers of a topic when the transaction commits. Does nothing if an argument is NULL';

CREATE OR REPLACE FUNCTION tidings.recheck(topic text) RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'recheck_wrapper';

COMMENT ON FUNCTION tidings.recheck(text) IS
    'The rights of the topic''s subscribers are checked again before they get anything that comes after this in the order of all events. Does nothing if the topic is NULL';
