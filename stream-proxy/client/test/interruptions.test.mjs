// What a list survives: broken connections, refusals, silence, sleep, pages that are put away.

import assert from "node:assert/strict";
import { test } from "node:test";
import { endless, happens, intervals, pass, pauses, pieces, RANDOM, sleep } from "./page.mjs";
import { row, until } from "./server.mjs";
import { A, B, C, is, newList, open, openWith, server, shows } from "./setup.mjs";

test("it goes on from the last id, and from the start where there is none", async () => {
  const list = open();
  (await server.request()).event("reset", { reason: "snapshot" }).event("changed", row("SNAPSHOT", A)).cut();
  const whole = await server.request();
  assert.equal(whole.query.get("last_event_id"), "", "cut off before `ready`");
  whole.snapshot([A], "10");
  await is(list, "live");
  whole.event("position", {}, "20");
  whole.event("changed", row("INSERT", B), "21-1");
  await shows(list, [A, B]);
  whole.cut();
  await is(list, "connecting");
  const next = await server.request();
  assert.deepEqual([next.query.get("last_event_id"), next.query.get("since")], ["21-1", "snapshot"]);
  next.event("changed", row("INSERT", C), "22-1").event("position", {}, "22-1");
  await is(list, "live");
  assert.deepEqual(list.rows, [A, B, C]);
  next.cut();
  assert.equal((await server.request()).query.get("last_event_id"), "22-1");
});

test("pauses between attempts grow, vary from nothing to their limit, and start over once it was live", async () => {
  const [list, stream] = await openWith([A]);
  stream.cut();
  for (let i = 0; i < 11; i += 1) (await server.request()).cut();
  await is(list, "offline");
  const last = await server.request();
  const limits = Array.from({ length: 12 }, (_, i) => Math.min(30_000, 100 * 2 ** i));
  assert.deepEqual(pauses, limits.map((limit) => RANDOM * limit));
  last.event("position", {}, "10");
  await is(list, "live");
  last.cut();
  await server.request();
  assert.equal(pauses.at(-1), RANDOM * 100);
});

test("any status but 200 is survived", async () => {
  const [list, stream] = await openWith([A]);
  stream.cut();
  for (const status of [503, 500, 404, 502, 429]) {
    (await server.request()).refuse(status);
    await until("it says why", () => list.error?.status === status);
    assert.equal(list.error.message, `refused, status ${status}`);
    assert.equal(list.state, "offline");
    assert.deepEqual(list.rows, [A]);
  }
  const next = await server.request();
  assert.equal(next.query.get("last_event_id"), "10");
  next.event("position", {}, "10");
  await is(list, "live");
  assert.equal(list.error, null);
});

test("an id that the server does not understand is not sent again", async () => {
  const [list, stream] = await openWith([A]);
  stream.cut();
  (await server.request()).refuse(400);
  const next = await server.request();
  assert.equal(next.query.get("last_event_id"), "");
  next.snapshot([B], "30");
  await shows(list, [B]);
});

test("it waits as long as the server says", async () => {
  const [, stream] = await openWith([A]);
  stream.send("retry: 700\n\n").end();
  (await server.request()).refuse(503, { "Retry-After": "5" });
  await server.request();
  assert.deepEqual(pauses, [700, 5_000 + RANDOM * 1_400]);
});

test("a stream that ends before it was live is no success", async () => {
  const list = open();
  for (let i = 0; i < 3; i += 1) (await server.request()).send("retry: 1000\n\n").end();
  await server.request();
  assert.equal(list.state, "offline");
  assert.deepEqual(pauses, [2, 4, 8].map((n) => 1_000 + RANDOM * n * 1_000));
});

test("rows that the server has lost are replaced as a whole", async () => {
  const [list, stream] = await openWith([A, B]);
  stream.event("reset", { reason: "lost" }, "20").event("changed", row("INSERT", C), "21-1");
  const next = await server.request();
  assert.equal(next.query.get("last_event_id"), "");
  assert.deepEqual(list.rows, [A, B]);
  await until("the old stream is left", () => stream.isClosed);
  next.snapshot([B, C], "22");
  await shows(list, [B, C]);
});

test("a silent stream is dead after two and a half heartbeats, which the server tells", async () => {
  const [list, stream] = await openWith([A]);
  pass(47_500);
  await server.assertQuiet();
  stream.send(": tidings heartbeat=60000\n\n").event("changed", row("INSERT", B), "11-1");
  await shows(list, [A, B]);
  pass(147_500);
  await server.assertQuiet();
  pass(5_000);
  assert.equal((await server.request()).query.get("last_event_id"), "11-1");
  await until("the old one is left", () => stream.isClosed);
});

test("each sign of life counts, a comment too", async () => {
  const [, stream] = await openWith([A]);
  for (let i = 0; i < 5; i += 1) {
    pass(40_000);
    const before = pieces;
    stream.send(":\n\n");
    await until("it has been read", () => pieces > before);
  }
  await server.assertQuiet();
});

test("after a sleep it does not trust the old stream, and opens a new one", async () => {
  const [list, stream] = await openWith([A]);
  sleep(8 * 3_600_000);
  const next = await server.request();
  assert.deepEqual([next.query.get("last_event_id"), next.polls], ["10", false]);
  await until("the old one is left", () => stream.isClosed);
  next.event("changed", row("INSERT", B), "11-1");
  await shows(list, [A, B]);
});

test("a clock that is set back does not keep a dead stream", async () => {
  await openWith([A]);
  sleep(-86_400_000);
  assert.equal((await server.request()).query.get("last_event_id"), "10");
});

test("offline and online are noticed at once", async () => {
  const [list, stream] = await openWith([A]);
  happens("offline");
  await until("the stream is left", () => stream.isClosed);
  (await server.request()).cut();
  await is(list, "offline");
  const waiting = await server.request();
  happens("online");
  (await server.request()).event("position", {}, "10");
  await is(list, "live");
  await until("the one that was waiting is left", () => waiting.isClosed);
});

test("a pause ends when the network is back", async () => {
  const [list, stream] = await openWith([A]);
  endless.are = true;
  try {
    stream.cut();
    await until("it pauses", () => pauses.length > 0);
    await server.assertQuiet();
    happens("online");
    (await server.request()).event("position", {}, "10");
    await is(list, "live");
  } finally {
    endless.are = false;
  }
});

test("a page in the browser's back/forward cache holds no stream, and goes on when it returns", async () => {
  const [list, stream] = await openWith([A]);
  happens("pagehide");
  await until("the stream is left", () => stream.isClosed);
  await server.assertQuiet();
  happens("pageshow", { persisted: true });
  const next = await server.request();
  assert.equal(next.query.get("last_event_id"), "10");
  assert.equal(list.state, "connecting");
  next.event("changed", row("INSERT", B), "11-1").event("position", {}, "11-1");
  await is(list, "live");
  assert.deepEqual(list.rows, [A, B]);
  happens("pageshow", { persisted: false });
  await server.assertQuiet();
});

test("it has a stream while somebody listens, and goes on when somebody listens again", async () => {
  const list = newList();
  await server.assertQuiet();
  const leave = [list.subscribe(() => {}), list.subscribe(() => {})];
  const stream = (await server.request()).snapshot([A], "10");
  await is(list, "live");
  leave[0]();
  stream.event("changed", row("INSERT", B), "11-1");
  await shows(list, [A, B]);
  leave[1]();
  leave[1]();
  await until("the stream is left", () => stream.isClosed);
  await server.assertQuiet();
  list.subscribe(() => {});
  assert.equal(list.state, "connecting");
  assert.equal((await server.request()).query.get("last_event_id"), "11-1");
  await server.assertQuiet();
});

test("a list that is left and used again at once is never offline, and asks once", async () => {
  const list = newList();
  const leave = list.subscribe(() => {});
  (await server.request()).snapshot([A], "10");
  await is(list, "live");
  const states = [];
  leave();
  list.subscribe(() => states.push(list.state));
  const next = (await server.request()).event("position", {}, "10");
  await is(list, "live");
  assert.deepEqual(states, ["connecting", "live"]);
  await server.assertQuiet();
  assert.ok(!next.isClosed);
});

test("a closed list asks for nothing any more", async () => {
  const [list, stream] = await openWith([A]);
  let told = 0;
  list.subscribe(() => (told += 1));
  list.close();
  await until("the stream is left", () => stream.isClosed);
  for (const name of ["online", "pageshow"]) happens(name, { persisted: true });
  sleep(100_000);
  await server.assertQuiet();
  assert.deepEqual([list.rows, told, intervals.size], [[A], 1, 0]);
});
