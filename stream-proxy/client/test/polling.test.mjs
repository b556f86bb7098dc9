// Where something on the way holds streams back, a list polls.

import assert from "node:assert/strict";
import { test } from "node:test";
import { newLocks, pass, pauses, setLocks, sleep } from "./page.mjs";
import { row, until } from "./server.mjs";
import { A, B, C, is, open, openWith, server, shows } from "./setup.mjs";

/** A list that has found out that it must poll, and its first such request. */
async function polling() {
  const list = open();
  const held = await server.request();
  pass(7_500);
  const poll = await server.request();
  await until("the stream is left", () => held.isClosed);
  assert.ok(poll.polls);
  return [list, poll];
}

test("it polls when no first byte comes, and shows the same", async () => {
  const [list, first] = await polling();
  assert.equal(String(first.query), "topic=t&since=snapshot&last_event_id=");
  const events = [A, B].map((record) => ({ id: null, event: "changed", data: JSON.stringify(row("SNAPSHOT", record)), topic: "t" }));
  first.json({ position: "10", events, reset: { reason: "snapshot" } });
  await shows(list, [A, B]);
  assert.equal(list.state, "live");
  const second = await server.request();
  assert.deepEqual([second.polls, second.query.get("last_event_id")], [true, "10"]);
  second.json({ position: "12", events: [{ id: "11-1", event: "changed", data: JSON.stringify(row("INSERT", C)), topic: "t" }] });
  await shows(list, [A, B, C]);
  assert.deepEqual(pauses, []);
  const third = await server.request();
  assert.equal(third.query.get("last_event_id"), "12");
  third.json({ position: "15", events: [] });
  assert.equal((await server.request()).query.get("last_event_id"), "15");
  assert.equal(pauses.length, 1, "a server that always answers at once with nothing is not asked without a pause");
});

test("rows that the server has lost are replaced as a whole there too", async () => {
  const [list, first] = await polling();
  const changed = (type, record) => ({ id: null, event: "changed", data: JSON.stringify(row(type, record)), topic: "t" });
  first.json({ position: "10", events: [changed("SNAPSHOT", A)], reset: { reason: "snapshot" } });
  await shows(list, [A]);
  (await server.request()).json({ position: "20", events: [changed("INSERT", B)], reset: { reason: "lost" } });
  const next = await server.request();
  assert.equal(next.query.get("last_event_id"), "");
  assert.deepEqual(list.rows, [A]);
  next.json({ position: "21", events: [changed("SNAPSHOT", C)], reset: { reason: "snapshot" } });
  await shows(list, [C]);
});

test("it tries to stream again later", async () => {
  const [list, first] = await polling();
  first.json({ position: "10", events: [], reset: { reason: "snapshot" } });
  await is(list, "live");
  let poll = await server.request();
  sleep(600_000);
  // The request was silent for longer than any heartbeat, and the time is over.
  poll = await server.request();
  assert.equal(poll.polls, false);
  poll.event("changed", row("INSERT", A), "11-1").event("position", {}, "11-1");
  await is(list, "live");
  assert.deepEqual(list.rows, [A]);
});

test("a stream that passes at first and is held back then is given up too", async () => {
  const [list] = await openWith([A]);
  pass(55_000);
  const poll = await server.request();
  assert.deepEqual([poll.polls, poll.query.get("last_event_id")], [true, "10"]);
  poll.json({ position: "12", events: [{ id: "11-1", event: "changed", data: JSON.stringify(row("INSERT", B)), topic: "t" }] });
  await shows(list, [A, B]);
});

test("a token that takes its time before the first request is no silence of the server", async () => {
  for (const locks of [null, newLocks()]) {
    setLocks(locks);
    const given = [];
    const list = open({ token: () => new Promise((resolve) => given.push(resolve)) });
    await until("a token is asked for", () => given.length > 0);
    pass(10_000);
    given[0]("token");
    assert.equal((await server.request()).polls, false);
    assert.equal(given.length, 1);
    list.close();
  }
});

test("a pause before a request, or for a token, is no silence of the server", async () => {
  let give = null;
  const token = () => (give ? new Promise((resolve) => (give = resolve)) : "token");
  const [, stream] = await openWith([A], { token });
  give = () => {};
  const idle = give;
  stream.cut();
  await until("a token is asked for", () => give !== idle);
  pass(120_000);
  give("token");
  assert.equal((await server.request()).polls, false);
});
