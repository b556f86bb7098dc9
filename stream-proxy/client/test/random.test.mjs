// Random changes, on a way on which anything may break: in the end the rows are those of the server. SEED= repeats a run.

import assert from "node:assert/strict";
import { test } from "node:test";
import { row } from "./server.mjs";
import { is, open, server, shows } from "./setup.mjs";

const RUNS = 40;
const STEPS = 60;
const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);

/** Numbers from a seed, so that a failure can be had again. */
function numbers(seed) {
  let word = (seed * 2_654_435_761 + 1) % 2_147_483_647 || 1;
  return (n) => {
    word = (word * 48_271) % 2_147_483_647;
    return word % n;
  };
}

/** Two tables, and the events of all their changes. */
class Database {
  tables = { items: new Map(), people: new Map() };
  log = [];

  constructor(random) {
    this.random = random;
  }

  get position() {
    return `${this.log.length}-1`;
  }

  /** The rows of all tables, as the list has them: by table and id, because the order depends on where a client began. */
  get rows() {
    return Object.entries(this.tables).flatMap(([table, rows]) => [...rows.values()].map((record) => ({ ...record, table })));
  }

  change() {
    const { random } = this;
    const table = ["items", "items", "people"][random(3)];
    const rows = this.tables[table];
    const [id, x] = [random(6), random(100)];
    const old = rows.get(id);
    if (random(40) === 0) {
      rows.clear();
      return this.log.push(row("TRUNCATE", null, null, table));
    }
    if (!old) {
      rows.set(id, { id, x, table });
      return this.log.push(row("INSERT", { id, x, table }, null, table));
    }
    if (random(3) === 0) {
      rows.delete(id);
      return this.log.push(row("DELETE", null, old, table));
    }
    // To a key that is free, or under the same.
    const to = random(4) === 0 && !rows.has(id + 10) ? id + 10 : id;
    const record = { id: to, x, table };
    rows.delete(id);
    rows.set(to, record);
    const changed = Object.fromEntries(Object.entries(old).filter(([name, value]) => record[name] !== value));
    return this.log.push(row("UPDATE", record, [old, changed][random(2)], table));
  }
}

/** A server's side of one stream: it sends what the client lacks, and then all that is new. */
class Stream {
  constructor(exchange, database) {
    Object.assign(this, { exchange, database });
    const id = exchange.query.get("last_event_id");
    exchange.send("retry: 1\n: tidings\n\n");
    // Where there is no id, the rows come first.
    this.sent = id ? Number(id.split("-")[0]) : -1;
  }

  /** Sends what there is, or a part of it. */
  send(part = Infinity) {
    const { exchange, database } = this;
    if (this.sent < 0) {
      exchange.event("reset", { reason: "snapshot" }, "snapshot");
      const rows = database.rows;
      for (const record of rows.slice(0, part)) exchange.event("changed", row("SNAPSHOT", record, null, record.table));
      if (part < rows.length) return;
      this.sent = database.log.length;
      exchange.event("ready", { topics: ["t"] }, database.position);
    }
    for (const payload of database.log.slice(this.sent, this.sent + part)) {
      this.sent += 1;
      exchange.event("changed", payload, `${this.sent}-1`);
    }
    exchange.event("position", {}, `${this.sent}-1`);
  }
}

async function run(seed) {
  const random = numbers(seed);
  const database = new Database(random);
  for (let i = random(8); i > 0; i -= 1) database.change();
  const list = open({ key: "id" });
  let stream = null;
  for (let step = 0; step < STEPS; step += 1) {
    if (!stream) {
      const exchange = await server.request();
      if (random(5) === 0) exchange.refuse([500, 502, 503, 404, 429][random(5)]);
      else if (random(8) === 0) exchange.cut();
      else stream = new Stream(exchange, database);
      continue;
    }
    for (let i = random(4); i > 0; i -= 1) database.change();
    const { exchange } = stream;
    switch (random(12)) {
      case 0:
        exchange.cut();
        stream = null;
        break;
      case 1:
        // In the middle of the rows, or of the changes, and of a frame.
        stream.send(random(4));
        if (stream.sent >= 0) exchange.send(`id: ${stream.sent + 1}-1\nevent: changed\ndata: {"cut of`);
        exchange[["cut", "end"][random(2)]]();
        stream = null;
        break;
      case 2:
        if (stream.sent < 0) break;
        exchange.event("reset", { reason: ["lost", "expired"][random(2)] }, database.position);
        stream = null;
        break;
      default:
        stream.send();
    }
  }
  stream ??= new Stream(await server.request(), database);
  stream.send();
  await is(list, "live");
  const sorted = (rows) => rows.map((each) => JSON.stringify(Object.entries(each).sort())).sort();
  const wanted = JSON.stringify(sorted(database.rows));
  await shows({ get rows() { return sorted(list.rows); } }, JSON.parse(wanted));
  for (const [table, rows] of Object.entries(database.tables)) {
    assert.deepEqual(sorted(list.table(table)), sorted([...rows.values()]), table);
  }
}

for (let seed = SEED; seed < SEED + RUNS; seed += 1) {
  test(`the rows are those of the server, SEED=${seed}`, () => run(seed));
}
