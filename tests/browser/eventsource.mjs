// What a browser's EventSource does with bytes like those that we send, and with the answers that we give. The ideas are
// those of the Web Platform Tests' folder `eventsource`; docs/http.md says which of them were not tried.

import assert from "node:assert/strict";
import http from "node:http";
import { after, before } from "node:test";
import { scenarios, stack } from "./scenario.mjs";
import { ENGINES, eventually, freePort, Service, setting, sql } from "./stack.mjs";

/** A server whose answers a case gives: one for each request, the last of them again and again. */
class Server {
  cases = new Map();
  requests = [];

  async start() {
    const port = await freePort();
    this.url = `http://127.0.0.1:${port}`;
    this.server = http.createServer((request, response) => this.#answer(request, response));
    await new Promise((resolve) => this.server.listen(port, "127.0.0.1", resolve));
  }

  async stop() {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  /** A new path with these answers. */
  serve(...answers) {
    const path = `/case/${this.cases.size}`;
    this.cases.set(path, answers);
    return path;
  }

  /** The requests for a path, in order. */
  of(path) {
    return this.requests.filter((request) => request.path === path);
  }

  async #answer(request, response) {
    const path = request.url.replace(/\?.*/, "");
    const answers = this.cases.get(path);
    if (!answers) return void response.writeHead(200, { "Content-Type": "text/html" }).end("<!doctype html><link rel=icon href=data:,>");
    const { headers, method } = request;
    const record = { path, headers, method, closed: false };
    response.on("close", () => (record.closed = true));
    this.requests.push(record);
    const answer = answers[Math.min(this.of(path).length, answers.length) - 1];
    const { status = 200, type = "text/event-stream", pieces = [], ends = false, breaks = false, more = {} } = answer;
    response.writeHead(status, { ...(type && { "Content-Type": type }), "Cache-Control": "no-store", ...more });
    response.flushHeaders();
    for (const piece of pieces) {
      response.write(piece);
      // So that the browser gets the pieces one by one.
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    if (breaks) response.destroy();
    else if (ends || status !== 200) response.end();
  }
}

let server;
let other;
let proxy;
before(async () => {
  [server, other] = [new Server(), new Server()];
  await Promise.all([server.start(), other.start()]);
  const port = await freePort();
  proxy = new Service("eventsource-proxy", setting("TEAMBOARD_PROXY"), [
    "--database-url", setting("TEAMBOARD_PROXY_URL"), "--listen", `127.0.0.1:${port}`, "--retry", "100ms", "--drain", "100ms", "--open",
    "--cors-origin", server.url,
  ], `http://127.0.0.1:${port}/readyz`);
  await proxy.start();
});
after(async () => {
  await proxy?.stop();
  await Promise.all([server?.stop(), other?.stop()]);
});

/** A page without a script of its own. */
const blank = (browser) => stack.person(null, "/", { site: server.url, browser });

/** Opens an EventSource as `window.source`; what it dispatches is noted. */
const open = (page, url, { names = [], init = {} } = {}) => page.evaluate(([url, names, init]) => {
  window.source?.close();
  const source = new EventSource(url, init);
  const got = [];
  Object.assign(window, { source, got });
  source.onopen = () => got.push(["open", source.readyState]);
  source.onerror = () => got.push(["error", source.readyState]);
  for (const name of ["message", ...names]) {
    source.addEventListener(name, (event) => got.push([event.type, event.data, event.lastEventId, event.origin]));
  }
}, [url, names, init]);

const got = async (page) => JSON.parse(await page.evaluate(() => JSON.stringify(window.got)));
const END = "data: the end\n\n";

/** Waits for the event whose data is "the end"; gives the events before it, without their origin. */
async function events(page) {
  const all = await eventually("the last event", async () => {
    const all = await got(page);
    return all.some(([, data]) => data === "the end") && all;
  });
  return all.slice(0, all.findIndex(([, data]) => data === "the end")).filter(([name]) => !["open", "error"].includes(name))
    .map((event) => event.slice(0, 3));
}

/** Waits until the source is closed for good; gives the states that were noted. */
async function refused(page) {
  await eventually("the source is closed", () => page.evaluate(() => window.source.readyState === EventSource.CLOSED));
  return eventually("it says so", async () => {
    const states = await got(page);
    return states.some(([name]) => name === "error") && states;
  });
}

// Bytes and what is dispatched of them. `END` comes after all of them. NUL is left out: no text in Postgres contains it, and Firefox
// does not treat it as the standard says.
const ue = Buffer.from("ü");
const FRAMES = [
  ["a mark at the beginning is no part of the first line", ["\uFEFFdata: a\n\n"], [["message", "a", ""]]],
  ["a second mark is", ["\uFEFF\uFEFFdata: a\n\ndata: b\n\n"], [["message", "b", ""]]],
  ["so is one further on, and one in the data stays", ["data: a\n\n\uFEFFdata: b\n\ndata:\uFEFFc\n\n"], [["message", "a", ""], ["message", "\uFEFFc", ""]]],
  ["comments mean nothing", [":\n: a comment\n:data: no\ndata: a\n: between\ndata: b\n\n"], [["message", "a\nb", ""]]],
  ["data may be empty, have no colon, and many lines", ["data:\n\ndata\ndata\n\ndata: a\ndata:\ndata: b\n\n"], [["message", "", ""], ["message", "\n", ""], ["message", "a\n\nb", ""]]],
  ["one blank after the colon is left out", ["data:a\n\ndata: a\n\ndata:  a \n\ndata:\ta\n\n"], [["message", "a", ""], ["message", "a", ""], ["message", " a ", ""], ["message", "\ta", ""]]],
  ["lines end with LF, CR, or both", ["data: a\r\ndata: b\rdata: c\n\r\n", "data: d\r\r", "data: e\n\n"], [["message", "a\nb\nc", ""], ["message", "d", ""], ["message", "e", ""]]],
  ["CR and LF may come apart", ["data: a\r", "\ndata: b\r", "\n\r", "\ndata: c\n", "\n"], [["message", "a\nb", ""], ["message", "c", ""]]],
  ["separators of Unicode end no line", ["data: a\u2028b\u2029c\u0085d\u000be\u000cf\n\n"], [["message", "a\u2028b\u2029c\u0085d\u000be\u000cf", ""]]],
  ["a character may come apart", [Buffer.concat([Buffer.from("data: "), ue.subarray(0, 1)]), Buffer.concat([ue.subarray(1), Buffer.from("\n\n")])], [["message", "ü", ""]]],
  ["what is not UTF-8 is replaced", [Buffer.from([0x64, 0x61, 0x74, 0x61, 0x3a, 0x61, 0xff, 0x62, 0x0a, 0x0a])], [["message", "a\uFFFDb", ""]]],
  ["field names are exact", ["Data: a\n data: b\ndata : c\ndatum: d\ndata\0: e\ndata: f\n\n"], [["message", "f", ""]]],
  ["an unknown field and a bad retry are passed over", ["what: ever\nretry: 1x\nretry: -5\nretry:\ndata: a\n\n"], [["message", "a", ""]]],
  ["an event has a name until the next empty line", ["event: named\ndata: a\n\ndata: b\n\nevent:\ndata: c\n\nevent: other\nevent: named\ndata: d\n\n"], [["named", "a", ""], ["message", "b", ""], ["message", "c", ""], ["named", "d", ""]]],
  ["an event without data is none, and leaves no name behind", ["event: named\n\ndata: a\n\n"], [["message", "a", ""]]],
  ["an event that nobody listens to is passed over", ["event: elsewhere\ndata: a\n\ndata: b\n\n"], [["message", "b", ""]]],
  ["an id stays until the next one", ["id: 1-1\ndata: a\n\ndata: b\n\nid: 1-2\ndata: c\n\nid\ndata: d\n\n"], [["message", "a", "1-1"], ["message", "b", "1-1"], ["message", "c", "1-2"], ["message", "d", ""]]],
  ["an id of an event that nobody listens to counts", ["id: 7-7\nevent: position\ndata: {}\n\ndata: a\n\n"], [["message", "a", "7-7"]]],
  ["a long line comes whole", [`data: ${"ü".repeat(300_000)}\n\n`], [["message", "ü".repeat(300_000), ""]]],
];

scenarios("EventSource: bytes become events as the standard says", async (browser) => {
  const page = await blank(browser);
  for (const [name, pieces, expected] of FRAMES) {
    await open(page, server.serve({ pieces: [...pieces, END] }), { names: ["named"] });
    assert.deepEqual(await events(page), expected, name);
  }
  // What is not yet complete when a stream ends is no event.
  await open(page, server.serve({ pieces: ["retry: 1\n\ndata: a\n\nid: 9\ndata: lost\n"], ends: true }, { pieces: [END] }));
  assert.deepEqual(await events(page), [["message", "a", ""]], "an event that was cut off");
}, ENGINES);

scenarios("EventSource: an id in a block without data is not remembered everywhere, so we send it with an event", async (browser) => {
  const page = await blank(browser);
  const idAfter = async (block) => {
    const path = server.serve({ pieces: [`retry: 1\n\n${block}`], ends: true }, { pieces: [END] });
    await open(page, path);
    await events(page);
    return server.of(path)[1].headers["last-event-id"];
  };
  assert.equal(await idAfter("id: 5-5\nevent: position\ndata: {}\n\n"), "5-5");
  assert.equal(await idAfter("id: 5-5\n\n"), browser === "Chromium" ? "5-5" : undefined);
}, ENGINES);

scenarios("EventSource: it reconnects with the last id, after the time that it was told", async (browser) => {
  const page = await blank(browser);
  const path = server.serve(
    { pieces: ["retry: 10\nid: 1\ndata: a\n\n"], ends: true },
    { pieces: ["data: b\n\nid: Zahl 2 ü\ndata: c\n\n"], breaks: true },
    { pieces: ["id\ndata: d\n\n"], ends: true },
    { pieces: [END] },
  );
  await open(page, path);
  assert.deepEqual(await events(page), [["message", "a", "1"], ["message", "b", "1"], ["message", "c", "Zahl 2 ü"], ["message", "d", ""]]);
  const ids = server.of(path).map(({ headers }) => headers["last-event-id"] && Buffer.from(headers["last-event-id"], "latin1").toString());
  assert.deepEqual(ids, [undefined, "1", "Zahl 2 ü", undefined], "the ids as UTF-8, and no header without one");
  const states = (await got(page)).filter(([name]) => ["open", "error"].includes(name)).map(([name, state]) => `${name} ${state}`);
  assert.deepEqual(states, ["open 1", "error 0", "open 1", "error 0", "open 1", "error 0", "open 1"]);
}, ENGINES);

scenarios("EventSource: what it asks for", async (browser) => {
  const page = await blank(browser);
  const path = server.serve({ pieces: [END] });
  await open(page, `${path}?topic=a&topic=%C3%BC`);
  await events(page);
  const [{ headers, method }] = server.of(path);
  assert.deepEqual([method, headers.accept, headers["cache-control"]], ["GET", "text/event-stream", "no-cache"]);
  const origin = (await got(page)).at(-1)[3];
  assert.equal(origin, server.url, "the origin of an event");
  const errors = await page.evaluate(() => ["http://[/", "http://a:b/"].map((url) => {
    try {
      return new EventSource(url).close();
    } catch (error) {
      return error.name;
    }
  }));
  assert.deepEqual(errors, ["SyntaxError", "SyntaxError"]);
}, ENGINES);

scenarios("EventSource: it gives up after any status but 200, and after another content type", async (browser) => {
  const page = await blank(browser);
  const finals = [
    ...[204, 205, 400, 401, 403, 404, 410, 500, 503].map((status) => ({ status })),
    { status: 503, more: { "Retry-After": "1" } },
    ...["text/plain", "text/event-streams", "application/json", ""].map((type) => ({ type, pieces: [END], ends: true })),
  ];
  for (const answer of finals) {
    const path = server.serve(answer);
    await open(page, path);
    const name = JSON.stringify(answer);
    assert.deepEqual(await refused(page), [["error", 2]], name);
    assert.equal(server.of(path).length, 1, name);
  }
  for (const type of ["text/event-stream;", "text/event-stream; charset=utf-8", "Text/Event-Stream"]) {
    await open(page, server.serve({ type, pieces: ["data: ü\n\n", END] }));
    assert.deepEqual(await events(page), [["message", "ü", ""]], `${type} is always UTF-8`);
  }
}, ENGINES);

scenarios("EventSource: it follows redirects; Chromium reconnects to where they led, the others ask again", async (browser) => {
  const page = await blank(browser);
  for (const status of [301, 302, 303, 307, 308]) {
    const goal = server.serve({ pieces: ["retry: 1\nid: 3\ndata: a\n\n"], ends: true }, { pieces: [END] });
    const path = server.serve({ status, more: { Location: goal } });
    await open(page, path);
    assert.deepEqual(await events(page), [["message", "a", "3"]], `${status}`);
    // A permanent redirect may be remembered.
    const counts = browser === "Chromium" ? [1] : [301, 308].includes(status) ? [1, 2] : [2];
    assert.ok(counts.includes(server.of(path).length), `${status}: ${server.of(path).length} requests`);
    assert.equal(server.of(goal)[1].headers["last-event-id"], "3", `${status}`);
  }
}, ENGINES);

scenarios("EventSource: another origin must allow it, and gets cookies only if it is asked to", async (browser) => {
  const page = await blank(browser);
  await page.evaluate(() => void (document.cookie = "who=ada; path=/"));
  const streams = (headers) => other.serve({ more: headers, pieces: ["retry: 1\nid: 1\ndata: a\n\n"], ends: true }, { more: headers, pieces: [END] });
  const here = { "Access-Control-Allow-Origin": server.url };
  const withCookies = { ...here, "Access-Control-Allow-Credentials": "true" };
  const allowed = [[here, false], [{ "Access-Control-Allow-Origin": "*" }, false], [withCookies, false], [withCookies, true]];
  for (const [headers, withCredentials] of allowed) {
    const path = streams(headers);
    await open(page, other.url + path, { init: { withCredentials } });
    assert.deepEqual(await events(page), [["message", "a", "1"]]);
    const requests = other.of(path);
    assert.deepEqual(requests.map(({ method }) => method), ["GET", "GET"], "no preflight, also with Last-Event-ID");
    for (const { headers: sent } of requests) assert.deepEqual([sent.origin, sent.cookie], [server.url, withCredentials ? "who=ada" : undefined]);
  }
  for (const [headers, withCredentials] of [[{}, false], [here, true], [{ "Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "true" }, true]]) {
    await open(page, other.url + streams(headers), { init: { withCredentials } });
    assert.deepEqual(await refused(page), [["error", 2]], JSON.stringify(headers));
  }
  // Of our proxy, which allows this origin.
  for (const withCredentials of [false, true]) {
    await open(page, `${proxy.ready.replace("/readyz", "/events")}?topic=cross`, { init: { withCredentials } });
    await eventually("a stream", async () => (await got(page)).some(([name]) => name === "open"));
    sql("SELECT tidings.publish_text('cross', 'the end')");
    assert.deepEqual(await events(page), []);
  }
});

scenarios("EventSource: close() closes the connection, also before there is an answer, and nothing comes after", async (browser) => {
  const page = await blank(browser);
  const path = server.serve({ pieces: ["data: a\n\n"] });
  await open(page, path);
  await eventually("the event", async () => (await got(page)).some(([name]) => name === "message"));
  assert.equal(await page.evaluate(() => {
    window.source.close();
    return window.source.readyState;
  }), 2);
  await eventually("the server sees it", () => server.of(path)[0].closed);
  assert.equal(await page.evaluate(() => {
    const source = new EventSource("/case/0");
    source.close();
    return source.readyState;
  }), 2);
  // An event that was on its way with the one whose handler closes is not dispatched.
  await open(page, server.serve({ pieces: ["data: a\n\ndata: b\n\ndata: c\n\n"] }));
  await page.evaluate(() => window.source.addEventListener("message", () => window.source.close()));
  await eventually("an event", async () => (await got(page)).some(([name]) => name === "message"));
  await page.evaluate(() => new Promise((resolve) => setTimeout(resolve, 100)));
  const messages = (await got(page)).filter(([name]) => name === "message");
  assert.ok(messages.length >= 1 && messages.every(([, data], i) => data === "abc"[i]));
}, ENGINES);

scenarios("EventSource: in a worker it is the same", async (browser) => {
  const page = await blank(browser);
  const path = server.serve({ pieces: ["retry: 1\nid: 4\ndata: a\n\n"], ends: true }, { pieces: [END] });
  await page.evaluate((url) => {
    const code = `const source = new EventSource(${JSON.stringify(url)});
      source.onmessage = ({ type, data, lastEventId }) => postMessage([type, data, lastEventId]);`;
    window.got = [];
    new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" }))).onmessage = ({ data }) => window.got.push(data);
  }, server.url + path);
  assert.deepEqual(await events(page), [["message", "a", "4"]]);
  assert.equal(server.of(path)[1].headers["last-event-id"], "4");
}, ENGINES);

// Texts that a careless server would damage; lines that end with CR arrive with LF, which is all that the format can say.
const TEXTS = ["plain", "two\nlines", "all\r\nkinds\rof\n\nline\n\r\nends\n", " a blank ahead", ": no comment", "data: no field\nid: 9\nevent: x\nretry: 1",
  "\uFEFFa mark", "漢字 🎈 \u2028\u2029\u0085", "", "\n"];

scenarios("EventSource: our proxy's frames arrive as they were published, and a restart loses nothing", async (browser) => {
  const page = await blank(browser);
  const topic = `texts ${browser}`;
  await open(page, `${proxy.ready.replace("/readyz", "/events")}?topic=${encodeURIComponent(topic)}`, { names: ["très long: d'événement"] });
  await eventually("a stream", async () => (await got(page)).some(([name]) => name === "open"));
  const literal = (text) => `U&'${[...text].map((c) => `\\+${c.codePointAt(0).toString(16).padStart(6, "0")}`).join("")}'`;
  const publish = (text, name) => sql(`SELECT tidings.publish_text('${topic}', ${literal(text)}, '${name.replaceAll("'", "''")}')`);
  TEXTS.forEach((text, i) => publish(text, ["message", "très long: d'événement"][i % 2]));
  await eventually("all texts", async () => (await got(page)).filter(([name]) => !["open", "error"].includes(name)).length === TEXTS.length);
  await proxy.stop();
  publish("while nobody served", "message");
  await proxy.start();
  publish("the end", "message");
  const seen = await events(page);
  const expected = [...TEXTS, "while nobody served"].map((text) => text.replace(/\r\n?/g, "\n"));
  assert.deepEqual(seen.map(([, data]) => data), expected);
  assert.equal(new Set(seen.map(([, , id]) => id)).size, expected.length, "each has an id of its own");
}, ENGINES);
