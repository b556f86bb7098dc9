// A live list against a server whose every answer is written here.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import { channels, happens, newLocks, pass, pauses, pieces, RANDOM, setLocks, sleep } from "./page.mjs";
import { row, Server, until } from "./server.mjs";
import { live } from "../tidings-client.js";

let server;
let lists = [];
beforeEach(async () => {
  server = await Server.start();
  for (const record of [pauses, channels]) record.length = 0;
});
afterEach(async () => {
  for (const list of lists.splice(0)) list.close();
  setLocks(null);
  await server.stop();
});

function open(options) {
  const list = live(server.url, { topics: ["t"], ...options });
  lists.push(list);
  list.subscribe(() => {});
  return list;
}

/** A list with these rows, and the request whose stream it reads. */
async function opened(rows, options) {
  const list = open(options);
  const stream = (await server.request()).send("retry: 100\n: tidings\n\n").snapshot(rows, "10");
  await until("it is live", () => list.state === "live");
  return [list, stream];
}

const shows = (list, rows) => until(`it shows ${JSON.stringify(rows)}`, () => JSON.stringify(list.rows) === JSON.stringify(rows));
const is = (list, state) => until(`it is ${state}`, () => list.state === state);
const [A, B, C] = [1, 2, 3].map((id) => ({ id, x: 0 }));

describe("rows", () => {
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
    const [list, stream] = await opened([A, B]);
    const before = list.getSnapshot();
    assert.equal(list.getSnapshot(), before);
    assert.equal(list.rows, before);
    const table = list.table("items");
    assert.equal(list.table("items"), table);
    let told = 0;
    list.subscribe(() => (told += 1));
    assert.equal(told, 1, "at once");
    stream.event("position", {}, "12").send(":\n\n").event("changed", row("UPDATE", { id: 1, x: 1 }, { x: 0 }), "13-1");
    await until("it has changed", () => told > 1);
    assert.equal(told, 2);
    assert.notEqual(list.rows, before);
    assert.deepEqual(before, [A, B]);
    assert.equal(list.rows[1], before[1]);
    assert.notEqual(list.table("items"), table);
  });

  test("a listener is told of the state too, is no longer told after it has left, and takes no other along", async () => {
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

  test("tables are told apart", async () => {
    const [list, stream] = await opened([A], { key: { people: "name" } });
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
});

describe("interruptions", () => {
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
    const [list, stream] = await opened([A]);
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
    const [list, stream] = await opened([A]);
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
    const [list, stream] = await opened([A]);
    stream.cut();
    (await server.request()).refuse(400);
    const next = await server.request();
    assert.equal(next.query.get("last_event_id"), "");
    next.snapshot([B], "30");
    await shows(list, [B]);
  });

  test("it waits as long as the server says", async () => {
    const [, stream] = await opened([A]);
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
    const [list, stream] = await opened([A, B]);
    stream.event("reset", { reason: "lost" }, "20").event("changed", row("INSERT", C), "21-1");
    const next = await server.request();
    assert.equal(next.query.get("last_event_id"), "");
    assert.deepEqual(list.rows, [A, B]);
    await until("the old stream is left", () => stream.isClosed);
    next.snapshot([B, C], "22");
    await shows(list, [B, C]);
  });

  test("a silent stream is dead after two and a half heartbeats, which the server tells", async () => {
    const [list, stream] = await opened([A]);
    pass(47_500);
    server.assertQuiet();
    stream.send(": tidings heartbeat=60000\n\n").event("changed", row("INSERT", B), "11-1");
    await shows(list, [A, B]);
    pass(147_500);
    server.assertQuiet();
    pass(5_000);
    assert.equal((await server.request()).query.get("last_event_id"), "11-1");
    await until("the old one is left", () => stream.isClosed);
  });

  test("each sign of life counts, a comment too", async () => {
    const [, stream] = await opened([A]);
    for (let i = 0; i < 5; i += 1) {
      pass(40_000);
      const before = pieces;
      stream.send(":\n\n");
      await until("it has been read", () => pieces > before);
    }
    server.assertQuiet();
  });

  test("after a sleep it does not trust the old stream, and opens a new one", async () => {
    const [list, stream] = await opened([A]);
    sleep(8 * 3_600_000);
    const next = await server.request();
    assert.deepEqual([next.query.get("last_event_id"), next.polls], ["10", false]);
    await until("the old one is left", () => stream.isClosed);
    next.event("changed", row("INSERT", B), "11-1");
    await shows(list, [A, B]);
  });

  test("a clock that is set back does not keep a dead stream", async () => {
    await opened([A]);
    sleep(-86_400_000);
    assert.equal((await server.request()).query.get("last_event_id"), "10");
  });

  test("offline and online are noticed at once", async () => {
    const [list, stream] = await opened([A]);
    happens("offline");
    await until("the stream is left", () => stream.isClosed);
    (await server.request()).cut();
    await is(list, "offline");
    const waiting = await server.request();
    happens("online");
    (await server.request()).event("position", {}, "10");
    await is(list, "live");
    assert.ok(waiting.isClosed);
  });

  test("a page in the browser's back/forward cache holds no stream, and goes on when it returns", async () => {
    const [list, stream] = await opened([A]);
    happens("pagehide");
    await until("the stream is left", () => stream.isClosed);
    server.assertQuiet();
    happens("pageshow", { persisted: true });
    const next = await server.request();
    assert.equal(next.query.get("last_event_id"), "10");
    assert.equal(list.state, "connecting");
    next.event("changed", row("INSERT", B), "11-1").event("position", {}, "11-1");
    await is(list, "live");
    assert.deepEqual(list.rows, [A, B]);
    happens("pageshow", { persisted: false });
    server.assertQuiet();
  });

  test("it has a stream while somebody listens, and goes on when somebody listens again", async () => {
    const list = live(server.url, { topics: ["t"] });
    lists.push(list);
    await new Promise((resolve) => setTimeout(resolve, 50));
    server.assertQuiet();
    const leave = [list.subscribe(() => {}), list.subscribe(() => {})];
    const stream = (await server.request()).snapshot([A], "10");
    await is(list, "live");
    leave[0]();
    stream.event("changed", row("INSERT", B), "11-1");
    await shows(list, [A, B]);
    leave[1]();
    leave[1]();
    await until("the stream is left", () => stream.isClosed);
    server.assertQuiet();
    list.subscribe(() => {});
    assert.equal(list.state, "connecting");
    assert.equal((await server.request()).query.get("last_event_id"), "11-1");
    server.assertQuiet();
  });

  test("a closed list asks for nothing any more", async () => {
    const [list, stream] = await opened([A]);
    let told = 0;
    list.subscribe(() => (told += 1));
    list.close();
    await until("the stream is left", () => stream.isClosed);
    for (const name of ["online", "pageshow"]) happens(name, { persisted: true });
    sleep(100_000);
    await new Promise((resolve) => setTimeout(resolve, 50));
    server.assertQuiet();
    assert.deepEqual([list.rows, told], [[A], 1]);
  });
});

describe("tokens", () => {
  test("the token is asked for again before each request", async () => {
    let n = 0;
    const [, stream] = await opened([A], { token: async () => `token ${(n += 1)}` });
    assert.equal(stream.headers.authorization, "Bearer token 1");
    stream.cut();
    assert.equal((await server.request()).headers.authorization, "Bearer token 2");
  });

  test("a token that has expired is replaced at once, and the stream goes on from the last id", async () => {
    let n = 0;
    const [list, stream] = await opened([A], { token: () => `token ${(n += 1)}` });
    stream.event("unauthorized", { reason: "expired" }).send("retry: 60000\n\n").end();
    const next = await server.request();
    assert.deepEqual([next.headers.authorization, next.query.get("last_event_id")], ["Bearer token 2", "10"]);
    next.refuse(401);
    const third = await server.request();
    assert.equal(third.headers.authorization, "Bearer token 3");
    assert.deepEqual(pauses, [], "no pause yet");
    third.refuse(401);
    await is(list, "denied");
    const fourth = await server.request();
    assert.equal(pauses.length, 1);
    fourth.event("position", {}, "10");
    await is(list, "live");
  });

  test("a token that can't be had is no end", async () => {
    let fails = true;
    const list = open({ token: () => (fails ? Promise.reject(new Error("no token now")) : "token") });
    await is(list, "offline");
    assert.equal(list.error.message, "no token now");
    fails = false;
    (await server.request()).snapshot([A], "10");
    await shows(list, [A]);
  });

  test("without a way to another token, a refusal is final", async () => {
    for (const status of [401, 403]) {
      for (const token of [undefined, "a text"]) {
        const list = open({ token });
        (await server.request()).refuse(status);
        await is(list, "denied");
        assert.equal(list.error.message, `refused, status ${status}`);
      }
    }
    happens("online");
    sleep(100_000);
    await new Promise((resolve) => setTimeout(resolve, 50));
    server.assertQuiet();
  });

  test("with a cookie that has expired it comes back when the server says", async () => {
    const [list, stream] = await opened([A]);
    stream.event("unauthorized", { reason: "expired" }).send("retry: 45000\n\n").end();
    const next = await server.request();
    assert.deepEqual([pauses, list.state, next.query.get("last_event_id")], [[45_000], "denied", "10"]);
    next.event("position", {}, "10");
    await is(list, "live");
  });
});

describe("where streams are held back", () => {
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
    const [list] = await opened([A]);
    pass(55_000);
    const poll = await server.request();
    assert.deepEqual([poll.polls, poll.query.get("last_event_id")], [true, "10"]);
    poll.json({ position: "12", events: [{ id: "11-1", event: "changed", data: JSON.stringify(row("INSERT", B)), topic: "t" }] });
    await shows(list, [A, B]);
  });
});

describe("tabs", () => {
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
    server.assertQuiet();
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
    const [first, stream] = await opened([A]);
    const second = open();
    await shows(second, [A]);
    stream.event("changed", row("INSERT", B), "11-1");
    await shows(second, [A, B]);
    first.close();
    const next = await server.request();
    assert.equal(next.query.get("last_event_id"), "11-1");
    next.event("changed", row("INSERT", C), "12-1");
    await shows(second, [A, B, C]);
    assert.deepEqual(first.rows, [A, B]);
  });

  test("a tab whose leader has gone silent takes over, and the old one follows", async () => {
    setLocks(newLocks());
    const [first, stream] = await opened([A]);
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
    server.assertQuiet();
    second.close();
    assert.equal((await server.request()).query.get("last_event_id"), "11-1", "and takes over in its turn");
  });

  test("the state is the same in all of them", async () => {
    setLocks(newLocks());
    const [, stream] = await opened([A]);
    const second = open();
    await is(second, "live");
    stream.cut();
    await is(second, "connecting");
    (await server.request()).refuse(503);
    await is(second, "offline");
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
    for (const options of [{}, { topics: ["u"] }, { key: "x" }, { share: "Ada" }, { share: "Ben" }, { reduce() {} }, { share: false }]) {
      open(options);
      await server.request();
    }
    open({ share: "Ben" });
    await new Promise((resolve) => setTimeout(resolve, 50));
    server.assertQuiet();
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
});

test("it is at most 4 KB gzipped, has no dependency, and its types name what it gives", () => {
  const read = (name) => readFileSync(new URL(`../${name}`, import.meta.url), "utf8");
  const module = read("tidings-client.js");
  const size = gzipSync(module, { level: 9 }).length;
  assert.ok(size <= 4_096, `${size} bytes`);
  assert.ok(!/^import |import\(/m.test(module));
  const described = JSON.parse(read("package.json"));
  assert.equal(described.dependencies, undefined);
  for (const file of described.files) assert.ok(read(file).length > 0);
  const types = read("tidings-client.d.ts");
  for (const [, name] of module.matchAll(/^export function (\w+)/gm)) assert.match(types, new RegExp(`export function ${name}[<(]`));
});
