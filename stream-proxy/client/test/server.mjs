// A server whose answers a test writes by hand, and what tests wait with.

import assert from "node:assert/strict";
import http from "node:http";

/** How long a condition may take before the test has failed, in milliseconds. A verdict, not a wait. */
const DEADLINE = 10_000;

/** Waits until `condition` is true. It looks by `setImmediate`, because tests replace the timers. */
export async function until(what, condition) {
  const end = process.hrtime.bigint() + BigInt(DEADLINE) * 1_000_000n;
  while (!condition()) {
    if (process.hrtime.bigint() > end) throw new Error(`still not so: ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** A while in which what should do nothing could do something. */
export const aWhile = () => new Promise((resolve) => setTimeout(resolve, 50));

/** A request that waits for its answer. */
class Exchange {
  constructor(request, response) {
    this.query = new URL(request.url, "http://localhost").searchParams;
    this.headers = request.headers;
    this.response = response;
    response.on("close", () => (this.isClosed = true));
  }

  get polls() {
    return this.headers.accept === "application/json";
  }

  /** Sends a piece of the stream. */
  send(text) {
    if (!this.response.headersSent) this.response.writeHead(200, { "Content-Type": "text/event-stream" });
    this.response.write(text);
    return this;
  }

  /** Sends an event. */
  event(event, data, id) {
    return this.send(`${id ? `id: ${id}\n` : ""}event: ${event}\ndata: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`);
  }

  /** Sends the rows that are there, and `ready`. */
  snapshot(rows, id) {
    this.event("reset", { reason: "snapshot" });
    for (const record of rows) this.event("changed", row("SNAPSHOT", record));
    return this.event("ready", { topics: ["t"] }, id);
  }

  json(body) {
    this.response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify(body));
  }

  refuse(status, headers = {}) {
    const type = "application/problem+json";
    this.response.writeHead(status, { "Content-Type": type, ...headers }).end(JSON.stringify({ detail: `because of ${status}` }));
  }

  /** Ends the stream in good order. */
  end() {
    this.response.end();
  }

  /** Breaks the connection off. */
  cut() {
    this.response.destroy();
  }
}

/** The payload of a watch on table `items`. */
export function row(type, record, old_record = null, table = "items", schema = "public") {
  return { schema, table, type, record, old_record };
}

export class Server {
  #waiting = [];

  static async start() {
    const server = new Server();
    server.http = http.createServer((request, response) => server.#waiting.push(new Exchange(request, response)));
    await new Promise((resolve) => server.http.listen(0, "127.0.0.1", resolve));
    server.url = `http://127.0.0.1:${server.http.address().port}/events`;
    return server;
  }

  /** The next request. */
  async request() {
    await until("a request comes", () => this.#waiting.length > 0);
    return this.#waiting.shift();
  }

  /** Asserts that no other request comes for a while. */
  async assertQuiet() {
    await aWhile();
    assert.equal(this.#waiting.length, 0, "no other request");
  }

  async stop() {
    this.http.closeAllConnections();
    await new Promise((resolve) => this.http.close(resolve));
  }
}
