// All tabs of a browser share one stream.

import assert from "node:assert/strict";
import { test } from "node:test";
import { channels, newLocks, pass, pieces, setLocks, sleep } from "./page.mjs";
import { aWhile, row, until } from "./server.mjs";
import { A, B, C, is, newList, open, openWith, server, shows } from "./setup.mjs";

test("all tabs show what one stream brings", async () => {
  setLocks(newLocks());
  const first = open();
  const second = open();
  const stream = (await server.request()).snapshot([A], "10");
  for (const list of [first, second]) await shows(list, [A]);
  stream.event("changed", row("INSERT", B), "11-1");
  for (const list of [first, second]) await shows(list, [A, B]);
  const late = open();
  await shows(late, [A, B]);
  assert.equal(late.state, "live");
  stream.event("changed", row("DELETE", null, A), "12-1");
  for (const list of [first, second, late]) await shows(list, [B]);
  await server.assertQuiet();
});

test("a tab that comes in the middle of a snapshot shows no half of it", async () => {
  setLocks(newLocks());
  const first = open();
  const stream = (await server.request()).snapshot([C], "10");
  await shows(first, [C]);
  stream.event("reset", { reason: "snapshot" }).event("changed", row("SNAPSHOT", A));
  const late = open();
  await shows(late, [C]);
  stream.event("changed", row("SNAPSHOT", B)).event("ready", {}, "20");
  for (const list of [first, late]) await shows(list, [A, B]);
});

test("when the tab with the stream is closed, another goes on from the last id", async () => {
  setLocks(newLocks());
  const [first, stream] = await openWith([A]);
  const others = [open(), open()];
  for (const list of others) await shows(list, [A]);
  stream.event("changed", row("INSERT", B), "11-1");
  for (const list of others) await shows(list, [A, B]);
  // What decides between two leaders is a number that follows the clock, which somebody may set back.
  sleep(-1_000);
  first.close();
  const next = await server.request();
  assert.equal(next.query.get("last_event_id"), "11-1");
  next.event("changed", row("INSERT", C), "12-1");
  for (const list of others) await shows(list, [A, B, C]);
  assert.deepEqual(first.rows, [A, B]);
});

test("a tab whose leader has gone silent takes over, and the old one follows", async () => {
  setLocks(newLocks());
  const [first, stream] = await openWith([A]);
  const second = open();
  await shows(second, [A]);
  // A browser may freeze a tab: what it passes on does not arrive.
  const { postMessage } = BroadcastChannel.prototype;
  BroadcastChannel.prototype.postMessage = function send(message) {
    if (this !== channels[0] || message.ask) postMessage.call(this, message);
  };
  try {
    for (let i = 0; i < 12 && !stream.isClosed; i += 1) {
      pass(5_000);
      const before = pieces;
      stream.send(":\n\n");
      await until("it has been read", () => pieces > before || stream.isClosed);
    }
  } finally {
    BroadcastChannel.prototype.postMessage = postMessage;
  }
  const next = await server.request();
  assert.equal(next.query.get("last_event_id"), "10");
  await until("the old stream is left", () => stream.isClosed);
  next.event("position", {}, "10").event("changed", row("INSERT", B), "11-1");
  for (const list of [first, second]) await shows(list, [A, B]);
  await server.assertQuiet();
  second.close();
  assert.equal((await server.request()).query.get("last_event_id"), "11-1", "and takes over in its turn");
});

test("a leader that waits for a while is asked now and then whether it is there, and keeps its place", async () => {
  const locks = newLocks();
  let steals = 0;
  const { request } = locks;
  locks.request = (name, options, run) => {
    if (options.steal) steals += 1;
    return request.call(locks, name, options, run);
  };
  setLocks(locks);
  let waits = false;
  const token = () => (waits ? new Promise(() => {}) : "token");
  const [first, stream] = await openWith([A], { token });
  const second = open({ token });
  await shows(second, [A]);
  waits = true;
  stream.cut();
  await is(second, "connecting");
  let [questions, answers] = [0, 0];
  const { postMessage } = channels[1];
  channels[1].postMessage = function send(message) {
    questions += Number(Boolean(message.ask));
    postMessage.call(this, message);
  };
  channels[1].addEventListener("message", ({ data }) => (answers += Number(Boolean(data.all))));
  for (let i = 0; i < 30; i += 1) {
    pass(5_000);
    await until("the question is answered", () => answers >= questions);
  }
  assert.equal(steals, 0);
  assert.ok(questions >= 1 && questions <= 4, `${questions} questions`);
  first.close();
});

test("a tab that was away, while another kept the stream, shows what it missed", async () => {
  setLocks(newLocks());
  const [, stream] = await openWith([A]);
  const second = newList();
  const leave = second.subscribe(() => {});
  await shows(second, [A]);
  leave();
  stream.event("changed", row("INSERT", B), "11-1");
  await aWhile();
  second.subscribe(() => {});
  await shows(second, [A, B]);
  stream.event("changed", row("INSERT", C), "12-1");
  await shows(second, [A, B, C]);
  await server.assertQuiet();
});

test("the state is the same in all of them", async () => {
  setLocks(newLocks());
  const [, stream] = await openWith([A]);
  const second = open();
  await is(second, "live");
  stream.cut();
  await is(second, "connecting");
  (await server.request()).refuse(503);
  await is(second, "offline");
  assert.equal(second.error.status, 503);
  (await server.request()).event("position", {}, "10");
  await is(second, "live");
});

test("each tab finds out for itself that it is refused", async () => {
  setLocks(newLocks());
  const [first, second] = [open(), open()];
  (await server.request()).refuse(403);
  await is(first, "denied");
  (await server.request()).snapshot([A], "10");
  await shows(second, [A]);
  assert.equal(first.state, "denied");
});

test("lists that are not the same do not share", async () => {
  setLocks(newLocks());
  for (const options of [{}, { topics: ["u"] }, { key: "x" }, { share: "Ada" }, { share: "Ben" }, { reduce() {} }, { parse: (text) => JSON.parse(text) }, { share: false }]) {
    open(options);
    await server.request();
  }
  open({ share: "Ben" });
  await server.assertQuiet();
});

test("where a browser has no locks, or this page may not use them, each tab has its own stream", async () => {
  const refused = { request: () => Promise.reject(new DOMException("not here", "SecurityError")) };
  for (const locks of [null, refused]) {
    setLocks(locks);
    const pair = [open(), open()];
    for (const _ of pair) (await server.request()).snapshot([A], "10");
    for (const list of pair) await shows(list, [A]);
  }
});

test("where a page may have no channel, each tab has its own stream", async () => {
  setLocks(newLocks());
  const { BroadcastChannel } = globalThis;
  // Firefox, where cookies are blocked.
  globalThis.BroadcastChannel = class {
    constructor() {
      throw new DOMException("The operation is insecure.", "SecurityError");
    }
  };
  try {
    const pair = [open(), open()];
    for (const _ of pair) (await server.request()).snapshot([A], "10");
    for (const list of pair) await shows(list, [A]);
  } finally {
    globalThis.BroadcastChannel = BroadcastChannel;
  }
});

test("rows that can't be copied to other tabs do their own tab no harm", async () => {
  setLocks(newLocks());
  const { error } = console;
  const errors = [];
  console.error = (...all) => errors.push(all);
  try {
    const reduce = (rows, { event }) => rows.set(event, () => {});
    const list = open({ reduce });
    const stream = (await server.request()).snapshot([A], "10");
    await is(list, "live");
    open({ reduce });
    await until("it is in the console", () => errors.length > 0);
    stream.event("x", "{}", "11-1");
    await until("it goes on", () => list.rows.length === 2);
  } finally {
    console.error = error;
  }
});
