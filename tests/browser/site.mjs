// A website of files, with the proxy's streams at the same address; on the way it may hold answers back.

import { readFileSync } from "node:fs";
import http from "node:http";
import { freePort } from "./stack.mjs";

const TYPES = { js: "text/javascript", css: "text/css", html: "text/html" };

/** The repository's folder. */
export const root = new URL("../../", import.meta.url);

export class Site {
  /** What of the answers has been held back and is not whole yet. */
  held = 0;

  /** `pages` has the content of paths, or a function that gives it; other paths are files of the repository. `events` is where streams come from. */
  constructor(events, { pages = {}, holds = false } = {}) {
    Object.assign(this, { events: new URL(events), pages, holds });
  }

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

  #answer(request, response) {
    const { pathname } = new URL(request.url, this.url);
    if (pathname === "/events" || pathname.startsWith("/api/")) return this.#passOn(request, response);
    try {
      const page = this.pages[pathname];
      const content = typeof page === "function" ? page() : page ?? readFileSync(new URL(`.${pathname}`, root));
      response.writeHead(200, { "Content-Type": `${TYPES[pathname.split(".").at(-1)] ?? "text/html"}; charset=utf-8` }).end(content);
    } catch {
      response.writeHead(404).end();
    }
  }

  #passOn(request, response) {
    const { hostname, port } = this.events;
    const onward = http.request({ hostname, port, path: request.url, headers: request.headers }, (answer) => {
      answer.on("error", () => response.destroy());
      if (!this.holds) {
        response.writeHead(answer.statusCode, answer.headers);
        return answer.pipe(response);
      }
      const pieces = [];
      answer.on("data", (piece) => (this.held += 1) && pieces.push(piece));
      answer.on("end", () => response.writeHead(answer.statusCode, answer.headers).end(Buffer.concat(pieces)));
    });
    onward.on("error", () => response.destroy()).end();
    response.on("close", () => onward.destroy());
  }
}
