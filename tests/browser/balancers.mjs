// The page and its streams behind nginx and HAProxy, from one address, with the documented settings.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { assertExact, snapshotsOf, note, scenario, stack } from "./scenario.mjs";
import { createBoard, freePort, Service, setting, sql } from "./stack.mjs";

/** Where the documented settings are, and what starts each; what is no affair of the documentation is added here. */
const BALANCERS = {
  nginx: {
    file: "nginx.conf",
    listen: "listen 80;",
    at: (port) => `listen 127.0.0.1:${port};`,
    command(folder, settings) {
      const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((kind) => `  ${kind}_temp_path ${folder}/${kind};`);
      const main = path.join(folder, "main.conf");
      // One process, so that it ends with us however we end.
      writeFileSync(main, ["daemon off;", "master_process off;", `pid ${folder}/pid;`, "events {}", "http {", "  access_log off;",
        ...temporary, `  include ${settings};`, "}", ""].join("\n"));
      return [setting("TEAMBOARD_NGINX"), ["-e", "stderr", "-p", folder, "-c", main]];
    },
  },
  HAProxy: {
    file: "haproxy.cfg",
    listen: "bind :80",
    at: (port) => `bind 127.0.0.1:${port}`,
    command: (_, settings) => [setting("TEAMBOARD_HAPROXY"), ["-db", "-f", settings]],
  },
};

/** The documented settings with other ports: each of `changes` must be there. */
function withPorts(file, changes) {
  let text = readFileSync(new URL(`../../docs/${file}`, import.meta.url), "utf8");
  for (const [from, to] of changes) {
    assert.ok(text.includes(from), `docs/${file} has ${from}`);
    text = text.replaceAll(from, to);
  }
  return text;
}

for (const [name, { file, listen, at, command }] of Object.entries(BALANCERS)) {
  scenario(`the same page works through ${name}`, async () => {
    const ports = [await freePort(), await freePort(), await freePort(), await freePort()];
    const [port, web, ...streams] = ports;
    const folder = path.join(setting("TEAMBOARD_WORK"), name);
    mkdirSync(folder, { recursive: true });
    const settings = path.join(folder, file);
    writeFileSync(settings, withPorts(file, [
      ["127.0.0.1:8080", `127.0.0.1:${streams[0]}`], ["127.0.0.1:8081", `127.0.0.1:${streams[1]}`],
      ["127.0.0.1:8000", `127.0.0.1:${web}`], [listen, at(port)],
    ]));
    const site = `http://127.0.0.1:${port}`;
    const balancer = new Service(name, ...command(folder, settings), `${site}/api/config`);
    const proxies = streams.map((stream, i) => stack.newProxy(`${name}-proxy-${i + 1}`, stream));
    const services = [...proxies, stack.newBackend(`${name}-backend`, web, "")];
    try {
      await Promise.all(services.map((service) => service.start()));
      await balancer.start();
      const board = createBoard(`Behind ${name}`, ["Ada", "Ben"]);
      const [ada, ben] = [await stack.open("Ada", board, { site }), await stack.open("Ben", board, { site })];
      const dev = await stack.person("Dev", "/", { site });
      const refused = await dev.evaluate((url) => fetch(url, { headers: { Accept: "text/event-stream" } }).then((answer) => answer.status),
        `/api/boards/${board}/events`);
      assert.equal(refused, 403, "a refusal comes through as it is");

      await ada.keyboard.press("n");
      await ada.keyboard.type("Hello");
      await ada.keyboard.press("Enter");
      await note(ben, "Hello").waitFor();
      await ben.getByRole("img", { name: "Here now: Ada, Ben" }).waitFor();

      // Either proxy goes, and then the balancer itself.
      for (const service of [...proxies, balancer]) {
        await service.stop("SIGKILL");
        sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Without ${service.name}.')`);
        if (service !== balancer) for (const page of [ada, ben]) await note(page, `Without ${service.name}.`).waitFor();
        await service.start();
        sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Again with ${service.name}.')`);
        for (const page of [ada, ben]) await note(page, `Again with ${service.name}.`).waitFor();
      }
      for (const page of [ada, ben]) {
        await page.waitForSelector(".state.live");
        assert.equal(await snapshotsOf(page), 1);
        await assertExact(page);
      }
    } finally {
      await Promise.all([balancer, ...services].map((service) => service.stop("SIGKILL")));
    }
  });
}
