// What the tests run on: the proxy and the backend as real processes, the cluster that our starter made, a cable that
// can be cut, and people with browsers.

import { execFileSync, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { copyFileSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { chromium } from "playwright-core";
import * as firefox from "./firefox.mjs";
import * as webkit from "./webkit.mjs";

/** The browsers that what depends on the network runs in. */
export const BROWSERS = ["Chromium", "Firefox"];

/** Those that what depends on a bare EventSource runs in. */
export const ENGINES = [...BROWSERS, "WebKit"];

/** How long a condition may take before the test has failed, in milliseconds. A verdict, not a wait. */
export const DEADLINE = 60_000;

const PEOPLE = { Ada: 1, Ben: 2, Chloé: 3, Dev: 4, Robin: 5 };

/** How often the proxy asks again whether its subscribers may stay. */
const REAUTHORIZE = "1s";

/** Far apart, so that only a closed socket can tell the proxy that somebody left. */
const HEARTBEAT = "10m";

/** A value that the program that started us has put into the environment. */
export function setting(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: run the tests by \`make test-browser\``);
  return value;
}

/** Where what failed, and the README's picture, is left. */
export const artifacts = setting("TEAMBOARD_ARTIFACTS");

/** Waits until `condition` gives something that is true, and gives that. */
export async function eventually(what, condition) {
  const end = Date.now() + DEADLINE;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`still not so: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

/** The ports that have been given. */
const given = new Set();

/** A port that nobody listens on, below those that Linux uses for outgoing connections: none of these can take it. */
export async function freePort() {
  for (;;) {
    const port = 16_384 + Math.floor(Math.random() * 16_384);
    const server = net.createServer();
    const isFree = !given.has(port) && await new Promise((resolve) => {
      server.once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => resolve(true));
    });
    if (!isFree) continue;
    given.add(port);
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
}

const running = new Set();

/** Where the processes of this run write what they have to say. */
const logs = new Set();

/** A process with a log of its own; `ready` is a URL that it answers once it is up. */
export class Service {
  constructor(name, command, args, ready) {
    Object.assign(this, { name, command, args, ready, log: path.join(setting("TEAMBOARD_WORK"), `${name}.log`) });
  }

  async start() {
    logs.add(this.log);
    const log = openSync(this.log, "a");
    this.child = spawn(this.command, this.args, { stdio: ["ignore", log, log] });
    running.add(this.child);
    this.ended = new Promise((resolve) => this.child.once("exit", resolve));
    this.ended.then(() => running.delete(this.child));
    await eventually(`${this.name} is ready`, async () => {
      if (this.child.exitCode !== null) throw new Error(`${this.name} ended:\n${readFileSync(this.log)}`);
      return fetch(this.ready).then((answer) => answer.ok, () => false);
    });
  }

  async stop(signal = "SIGTERM") {
    this.child?.kill(signal);
    await this.ended;
  }
}

/** The network between the browsers and the proxy: a relay of bytes that can be cut and joined again. */
export class Cable {
  #ends = new Set();

  constructor(port, to) {
    Object.assign(this, { port, to });
  }

  async join() {
    this.server = net.createServer((near) => {
      const far = net.connect(this.to, "127.0.0.1");
      for (const [end, other] of [[near, far], [far, near]]) {
        this.#ends.add(end);
        end.on("error", () => {});
        end.on("close", () => {
          this.#ends.delete(end);
          other.destroy();
        });
      }
      near.pipe(far);
      far.pipe(near);
    }).listen(this.port, "127.0.0.1");
    await new Promise((resolve) => this.server.once("listening", resolve));
  }

  /** Everything breaks off, and nothing can be reached. */
  async cut() {
    const closed = new Promise((resolve) => this.server.close(resolve));
    for (const end of this.#ends) end.destroy();
    await closed;
  }

  /** The connections that there are stay as they are, and nothing comes through them any more. New ones work. */
  freeze() {
    for (const end of this.#ends) {
      end.unpipe();
      end.pause();
    }
  }
}

/** Runs SQL as the superuser; gives what psql prints. */
export function sql(text) {
  const args = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", setting("TEAMBOARD_SUPERUSER_URL"), "-c", text];
  return execFileSync(setting("TEAMBOARD_PSQL"), args, { encoding: "utf8" }).trim();
}

/** A fresh board; gives its id. The first member is its owner. */
export function createBoard(title, members, notes = []) {
  const [owner, ...others] = members.map((name) => PEOPLE[name]);
  const id = Number(sql(`INSERT INTO boards (title, owner_id) VALUES ('${title}', ${owner}) RETURNING id`));
  for (const person of others) sql(`INSERT INTO board_members VALUES (${id}, ${person})`);
  for (const [i, body] of notes.entries()) {
    sql(`INSERT INTO board_items (board_id, body, x, y, changed_by) VALUES (${id}, '${body}', ${24 + 190 * i}, 40, ${owner})`);
  }
  return id;
}

/** Notes in a page what its streams deliver, before anything of the page runs; and lets us move its clock on. */
function recordStreams() {
  const now = Date.now.bind(Date);
  window.skipped = 0;
  Date.now = () => now() + window.skipped;
  window.delivered = [];
  window.streams = 0;
  window.printed = 0;
  const log = console.log.bind(console);
  console.log = (...args) => {
    window.printed += 1;
    log(...args);
  };
  const block = (text) => {
    const [id, name, data] = ["id", "event", "data"].map((field) => text.match(new RegExp(`^${field}: (.*)$`, "m"))?.[1]);
    if (data !== undefined && !["position", "ready"].includes(name)) window.delivered.push({ name, id, data });
  };
  const Native = window.EventSource;
  window.EventSource = class extends Native {
    constructor(...args) {
      super(...args);
      window.streams += 1;
      for (const name of ["note", "changed", "member", "membership", "reset"]) {
        this.addEventListener(name, (event) => window.delivered.push({ name, id: event.lastEventId, data: event.data }));
      }
    }
  };
  const { fetch } = window;
  window.fetch = async (...all) => {
    const answer = await fetch(...all);
    if (!answer.headers.get("content-type")?.startsWith("text/event-stream")) return answer;
    window.streams += 1;
    let rest = "";
    const decoder = new TextDecoder();
    const watch = new TransformStream({
      transform(piece, stream) {
        const blocks = (rest + decoder.decode(piece, { stream: true })).split("\n\n");
        rest = blocks.pop();
        blocks.forEach(block);
        stream.enqueue(piece);
      },
    });
    return new Response(answer.body.pipeThrough(watch), answer);
  };
}

/** Everything together. */
export class Stack {
  #contexts = [];
  #secret;

  static async start() {
    const stack = new Stack();
    const [proxyPort, cablePort, pagePort] = [await freePort(), await freePort(), await freePort()];
    stack.url = `http://127.0.0.1:${pagePort}`;
    stack.events = `http://127.0.0.1:${cablePort}`;
    stack.#secret = path.join(setting("TEAMBOARD_WORK"), "secret");
    writeFileSync(stack.#secret, `${crypto.randomUUID()}${crypto.randomUUID()}\n`, { mode: 0o600 });
    stack.proxy = stack.newProxy("proxy", proxyPort);
    stack.backend = stack.newBackend("backend", pagePort, stack.events);
    stack.cable = new Cable(cablePort, proxyPort);
    await Promise.all([stack.proxy.start(), stack.backend.start(), stack.cable.join()]);
    stack.browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"],
    });
    stack.firefox = await firefox.launch();
    stack.webkit = await webkit.launch(await freePort(), eventually);
    return stack;
  }

  /** A person's token that lasts for some seconds, as the backend would make it. */
  token(name, seconds) {
    const now = Math.floor(Date.now() / 1_000);
    const claims = { role: "teamboard_member", sub: String(PEOPLE[name]), exp: now + seconds };
    const body = [{ alg: "HS256", typ: "JWT" }, claims].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".");
    return `${body}.${createHmac("sha256", readFileSync(this.#secret, "utf8").trim()).update(body).digest("base64url")}`;
  }

  /** A proxy, not yet started. */
  newProxy(name, port) {
    return new Service(name, setting("TEAMBOARD_PROXY"), [
      "--database-url", setting("TEAMBOARD_PROXY_URL"), "--listen", `127.0.0.1:${port}`, "--cors-origin", this.url,
      "--route", setting("TEAMBOARD_ROUTE"), "--retry", "300ms", "--drain", "500ms", "--heartbeat", HEARTBEAT,
      "--jwt-secret-file", this.#secret, "--token-cookie", setting("TEAMBOARD_COOKIE"), "--reauthorize", REAUTHORIZE,
    ], `http://127.0.0.1:${port}/readyz`);
  }

  /** A proxy that serves every topic to everyone, not yet started. */
  openProxy(name, port) {
    const flags = ["--open", "--database-url", setting("TEAMBOARD_PROXY_URL"), "--listen", `127.0.0.1:${port}`, "--drain", "500ms"];
    return new Service(name, setting("TEAMBOARD_PROXY"), flags, `http://127.0.0.1:${port}/readyz`);
  }

  /** A backend, not yet started, whose page finds its streams at `events`; where it came from itself, if that is empty. */
  newBackend(name, port, events) {
    return new Service(name, setting("TEAMBOARD_BACKEND"), [
      "--database-url", setting("TEAMBOARD_BACKEND_URL"), "--listen", `127.0.0.1:${port}`, "--jwt-secret-file", this.#secret,
      "--events-url", events,
    ], `http://127.0.0.1:${port}/api/config`);
  }

  async stop() {
    await Promise.all([this.browser.close(), this.firefox.close(), this.webkit.close()]);
    await this.cable.cut();
    await Promise.all([this.proxy.stop(), this.backend.stop()]);
  }

  /** A person with a browser of their own, signed in, at `at`. In Firefox a page can do what the two libraries have in common. */
  async person(name, at = "/", { site = this.url, browser = "Chromium", ...options } = {}) {
    const page = await this.#page(browser, options);
    page.setDefaultTimeout(DEADLINE);
    page.lines = [];
    page.requests = [];
    page.on("console", (message) => page.lines.push(`${message.type()}: ${message.text()} (${message.location().url ?? ""})`));
    page.on("pageerror", (error) => page.lines.push(`error: ${error.stack}`));
    page.on("request", (request) => page.requests.push(`${request.method()} ${new URL(request.url()).pathname}`));
    if (name) {
      await page.goto(`${site}/page/icon.svg`);
      const body = JSON.stringify({ person: PEOPLE[name] });
      const status = await page.evaluate((body) => fetch("/api/session", { method: "POST", headers: { "Content-Type": "application/json" }, body })
        .then((answer) => answer.status), body);
      if (status >= 300) throw new Error(`signing in is refused with ${status}`);
      page.lines = [];
      page.requests = [];
    }
    await page.goto(site + at);
    await page.bringToFront();
    return page;
  }

  #page(browser, options) {
    if (browser === "Firefox") return this.#firefoxPage();
    if (browser === "WebKit") return this.#webkitPage();
    return this.#chromiumPage(options);
  }

  async #webkitPage() {
    const page = await webkit.newPage(this.webkit, recordStreams);
    this.#contexts.push({ pages: () => (page.isClosed() ? [] : [page]), close: () => page.close() });
    return page;
  }

  async #chromiumPage(options) {
    const context = await this.browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
    this.#contexts.push(context);
    await context.addInitScript(recordStreams);
    const page = await context.newPage();
    page.setOffline = (offline) => context.setOffline(offline);
    return page;
  }

  async #firefoxPage() {
    const page = await firefox.newPage(this.firefox, recordStreams);
    this.#contexts.push({ pages: () => (page.isClosed() ? [] : [page]), close: () => page.browserContext().close() });
    // What Firefox can't be told by its driver: requests fail, and the browser knows why.
    page.setOffline = (offline) => page.evaluate((offline) => {
      window.fetchOnline ??= window.fetch;
      window.fetch = offline ? () => Promise.reject(new TypeError("offline")) : window.fetchOnline;
      Object.defineProperty(navigator, "onLine", { value: !offline, configurable: true });
      dispatchEvent(new Event(offline ? "offline" : "online"));
    }, offline);
    return page;
  }

  /** A person who has a board open, live. */
  async open(name, board, options) {
    const page = await this.person(name, `/boards/${board}`, options);
    await page.waitForSelector(".state.live");
    return page;
  }

  /** The streams that the proxy serves. */
  async clients() {
    const text = await fetch(this.proxy.ready.replace("/readyz", "/metrics")).then((answer) => answer.text());
    return text.split("\n").filter((line) => line.startsWith("tidings_clients")).reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  /** Closes all browsers of a test; keeps what they showed if it failed. */
  async clear(failed) {
    if (failed) await this.#keep(failed);
    await Promise.all(this.#contexts.splice(0).map((context) => context.close()));
  }

  async #keep(name) {
    const folder = path.join(artifacts, name.replace(/[^a-z0-9]+/gi, "-"));
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    let number = 0;
    for (const page of this.#contexts.flatMap((context) => context.pages())) {
      number += 1;
      const file = path.join(folder, `page-${number}`);
      await page.screenshot({ path: `${file}.png` }).catch(() => {});
      const delivered = await page.evaluate(() => window.delivered).catch(() => []);
      writeFileSync(`${file}.log`, [page.url(), ...page.lines, ...page.requests, ...delivered.map((event) => JSON.stringify(event))].join("\n"));
    }
    for (const log of logs) copyFileSync(log, path.join(folder, path.basename(log)));
    console.error(`what the pages showed is in ${folder}`);
  }
}

// However we end, nothing stays behind.
process.on("exit", () => running.forEach((child) => child.kill("SIGKILL")));
for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"]) process.on(signal, () => process.exit(1));
