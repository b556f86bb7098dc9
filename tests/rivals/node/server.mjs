// Events from Postgres to EventSource as they are commonly made with Node: one connection LISTENs on one channel, whose
// messages name a topic; better-sse has a channel for each topic that somebody follows.
//
//   node server.mjs PORT, with the database in DATABASE_URL
//
//   GET /events?topic=T        the stream
//   GET /page?board=N          the rows of list_items as one event, then the stream of list_N
//   NOTIFY events, '{"topic": "T", "data": "…"}'

import { createServer } from "node:http";
import { createChannel, createSession } from "better-sse";
import pg from "pg";

const channels = new Map();

// By topic: the events that have come since a page's query began, one list for each page.
const waiting = new Map();

function channel(topic) {
  let found = channels.get(topic);
  if (!found) {
    found = createChannel();
    found.on("session-deregistered", () => {
      if (found.sessionCount === 0) channels.delete(topic);
    });
    channels.set(topic, found);
  }
  return found;
}

const database = new pg.Client({ connectionString: process.env.DATABASE_URL });
database.on("notification", ({ payload }) => {
  const { topic, data } = JSON.parse(payload);
  channels.get(topic)?.broadcast(data, "message");
  for (const events of waiting.get(topic) ?? []) events.push(data);
});
await database.connect();
await database.query("LISTEN events");

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });

const server = createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  const board = pathname === "/page" ? searchParams.get("board") : null;
  const topic = board ? `list_${board}` : searchParams.get("topic");
  if (!topic) {
    response.writeHead(404).end();
    return;
  }
  // The data is text already.
  const session = await createSession(request, response, { keepAlive: 20_000, serializer: (data) => data });
  if (board) {
    // The connection listens already, so an event that the rows don't contain yet comes during the query or later. An
    // event that they contain may come again, and the page has to cope with that.
    const events = [];
    waiting.set(topic, (waiting.get(topic) ?? new Set()).add(events));
    try {
      const { rows } = await pool.query("SELECT * FROM list_items WHERE board_id = $1", [board]);
      session.push(JSON.stringify(rows), "rows");
    } finally {
      waiting.get(topic).delete(events);
      if (waiting.get(topic).size === 0) waiting.delete(topic);
    }
    if (!session.isConnected) return;
    for (const data of events) session.push(data, "message");
  }
  channel(topic).register(session);
});
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
