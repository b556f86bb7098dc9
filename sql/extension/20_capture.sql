-- Capture: the trigger function and what one can say by hand.

CREATE OR REPLACE FUNCTION tidings.capture() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'tidings_capture';

COMMENT ON FUNCTION tidings.capture() IS
    'Trigger function of a watch. Arguments: topic=..., and optionally event=..., payload=..., old_record=..., column=... or exclude=... (repeated)';

CREATE OR REPLACE FUNCTION tidings.publish_text(topic text, data text, event text DEFAULT 'message') RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'publish_text_wrapper';

COMMENT ON FUNCTION tidings.publish_text(text, text, text) IS
    'Sends a text to the subscribers of a topic when the transaction commits; nothing if an argument is NULL';

CREATE OR REPLACE FUNCTION tidings.publish(topic text, payload jsonb, event text DEFAULT 'message') RETURNS void
LANGUAGE sql STRICT
BEGIN ATOMIC
    SELECT tidings.publish_text(topic, payload::text, event);
END;

COMMENT ON FUNCTION tidings.publish(text, jsonb, text) IS
    'Sends a JSON value to the subscribers of a topic when the transaction commits; nothing if an argument is NULL';
