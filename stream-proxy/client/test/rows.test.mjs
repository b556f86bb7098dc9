// What a list shows: rows, changes, snapshots, tables, listeners.

import assert from "node:assert/strict";
import { test } from "node:test";
import { pieces } from "./page.mjs";
import { row, until } from "./server.mjs";
import { A, B, C, is, open, openWith, server, shows } from "./setup.mjs";

test("rows come first, and then each change", async () => {
  const list = open();
  assert.deepEqual([list.rows, list.state], [[], "connecting"]);
  const stream = await server.request();
  assert.equal(String(stream.query), "topic=t&since=snapshot&last_event_id=");
  assert.equal(stream.headers.accept, "text/event-stream");
  stream.snapshot([A, B], "10");
  await shows(list, [A, B]);
  assert.equal(list.state, "live");
  stream.event("changed", row("INSERT", C), "11-1");
  await shows(list, [A, B, C]);
  stream.event("changed", row("UPDATE", { id: 2, x: 5 }, { x: 0 }), "11-2").event("changed", row("DELETE", null, A), "11-3");
  await shows(list, [{ id: 2, x: 5 }, C]);
});

test("half a list is never shown, neither the first nor a later one", async () => {
  const list = open();
  const seen = [];
  list.subscribe((rows) => seen.push(rows.map(({ id }) => id).join("")));
  const stream = (await server.request()).event("reset", { reason: "snapshot" }).event("changed", row("SNAPSHOT", A));
  const before = pieces;
  await until("it has been read", () => pieces > before);
  stream.event("changed", row("SNAPSHOT", B)).event("ready", {}, "10").event("changed", row("INSERT", C), "11-1");
  await shows(list, [A, B, C]);
  stream.event("reset", { reason: "snapshot" }).event("changed", row("SNAPSHOT", B)).event("ready", {}, "20");
  await shows(list, [B]);
  assert.ok(seen.every((ids) => ["", "12", "123", "2"].includes(ids)), seen.join(" "));
});

test("a snapshot stays the same until a row changes, and so do the rows that did not", async () => {
  const [list, stream] = await openWith([A, B]);
  const before = list.getSnapshot();
  assert.equal(list.getSnapshot(), before);
  assert.equal(list.rows, before);
  const table = list.table("items");
  assert.equal(list.table("items"), table);
  let calls = 0;
  list.subscribe(() => (calls += 1));
  assert.equal(calls, 1, "at once");
  const read = pieces;
  stream.event("position", {}, "12").send(":\n\n");
  await until("it has been read", () => pieces > read);
  stream.event("changed", row("UPDATE", { id: 1, x: 1 }, { x: 0 }), "13-1");
  await until("it has changed", () => calls > 1);
  assert.equal(calls, 2);
  assert.notEqual(list.rows, before);
  assert.deepEqual(before, [A, B]);
  assert.equal(list.rows[1], before[1]);
  assert.notEqual(list.table("items"), table);
});

test("a listener is called for a change of state, not after it has left, and its leaving affects no other", async () => {
  const list = open();
  const [states, errors] = [[], []];
  const { error } = console;
  console.error = (...all) => errors.push(all);
  try {
    list.subscribe(() => {
      states.push(list.state);
      if (list.state === "live") throw new Error("the page's own");
    });
    let left = 0;
    const leave = list.subscribe(() => (left += 1));
    leave();
    const stream = (await server.request()).snapshot([A], "10");
    await is(list, "live");
    stream.event("changed", row("INSERT", B), "11-1");
    await shows(list, [A, B]);
    assert.deepEqual([states, left], [["connecting", "live", "live"], 1]);
    assert.equal(errors.length, 2);
  } finally {
    console.error = error;
  }
});

test("rows of different tables are kept apart", async () => {
  const [list, stream] = await openWith([A], { key: { people: "name" } });
  stream.event("changed", row("INSERT", { name: "Ada" }, null, "people"), "11-1");
  await shows(list, [A, { name: "Ada" }]);
  assert.deepEqual(list.table("people"), [{ name: "Ada" }]);
  assert.deepEqual(list.table("items"), [A]);
  assert.deepEqual(list.table("none"), []);
});

test("a reducer of the page's own takes payloads of its own", async () => {
  const reduce = (rows, { event, data }) => {
    const { type, note } = JSON.parse(data);
    if (event !== "note") throw new Error("only notes");
    if (type === "DELETE") rows.delete(note.id);
    else rows.set(note.id, note.text);
  };
  const list = open({ reduce });
  const stream = (await server.request()).event("reset", { reason: "snapshot" });
  stream.event("note", { type: "SNAPSHOT", note: { id: 1, text: "a" } }).event("ready", {}, "10");
  await shows(list, ["a"]);
  stream.event("note", { type: "INSERT", note: { id: 2, text: "b" } }, "11-1").event("note", { type: "DELETE", note: { id: 1 } }, "11-2");
  await shows(list, ["b"]);
});

test("a backend that found no row gives null for them", async () => {
  const list = open({ initial: null, since: "10" });
  const stream = await server.request();
  assert.equal(stream.query.get("last_event_id"), "10");
  stream.event("changed", row("INSERT", A), "11-1");
  await shows(list, [A]);
});

test("rows that the backend rendered are there at once, and the stream goes on behind them", async () => {
  const initial = [A, B].map((record) => ({ topic: "t", event: "changed", payload: JSON.stringify(row("SNAPSHOT", record)) }));
  const list = open({ initial, since: "10:20:30:40:" });
  assert.deepEqual(list.rows, [A, B]);
  const stream = await server.request();
  assert.equal(stream.query.get("last_event_id"), "10:20:30:40:");
  stream.event("changed", row("INSERT", C), "11-1").event("position", {}, "11-1");
  await shows(list, [A, B, C]);
  assert.equal(list.state, "live");
});
