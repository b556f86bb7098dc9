// Tabs that close, networks that break off, machines that sleep, proxies that restart.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { assertExact, scenario, scenarios, sees, snapshotsOf, stack, texts } from "./scenario.mjs";
import { Cable, createBoard, ENGINES, eventually, freePort, Service, setting, sql } from "./stack.mjs";

scenarios("a closed tab is gone from the proxy and from the list of open topics", async (browser) => {
  const board = createBoard("Doors", ["Ada", "Ben"]);
  const ada = await stack.open("Ada", board, { browser });
  const ben = await stack.open("Ben", board, { browser });
  const open = () => sql(`SELECT string_agg(topic || ':' || subscribers, ' ' ORDER BY topic) FROM tidings.open_topics
                          WHERE topic IN ('boards_${board}', 'here_${board}_1', 'here_${board}_2')`);
  await eventually("both are on the list", () => open() === `boards_${board}:2 here_${board}_1:1 here_${board}_2:1`);
  await ada.waitForSelector('[aria-label="Here now: Ada, Ben"]');
  const clients = await stack.clients();
  await ben.close();
  await eventually("the client is dropped", async () => (await stack.clients()) === clients - 1);
  await eventually("the list follows", () => open() === `boards_${board}:1 here_${board}_1:1`);
  await ada.waitForSelector('[aria-label="Here now: Ada"]');
});

scenarios("a laptop that slept catches up without a reload and without doubles", async (browser) => {
  const board = createBoard("Nap", ["Ada", "Ben"], ["Awake"]);
  const ada = await stack.open("Ada", board, { browser });
  await ada.evaluate(() => (window.mark = "the same page"));
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Before')`);
  await sees(ada, ".note", "Before");

  await ada.setOffline(true);
  await stack.cable.cut();
  await sees(ada, ".state", "Offline");
  for (let i = 1; i <= 5; i += 1) sql(`INSERT INTO board_items (board_id, body, x) VALUES (${board}, 'Asleep ${i}', ${i * 40})`);
  sql(`UPDATE board_items SET body = 'Renamed' WHERE board_id = ${board} AND body = 'Before'`);
  sql(`DELETE FROM board_items WHERE board_id = ${board} AND body = 'Awake'`);
  // What Ada does meanwhile waits, and is not lost.
  await ada.evaluate(() => [...document.querySelectorAll(".note")].find((element) => element.textContent.includes("Before")).focus());
  await ada.keyboard.press("3");
  await sees(ada, ".note.blue", "Before");

  await stack.cable.join();
  await ada.setOffline(false);
  await sees(ada, ".note", "Asleep 5");
  await sees(ada, ".note.blue", "Renamed");
  await eventually("what she did has arrived", () => sql(`SELECT colour FROM board_items WHERE board_id = ${board} AND body = 'Renamed'`) === "blue");
  assert.deepEqual(await texts(ada), ["Asleep 1", "Asleep 2", "Asleep 3", "Asleep 4", "Asleep 5", "Renamed"]);
  assert.equal(await ada.evaluate(() => window.mark), "the same page");
  assert.equal(await snapshotsOf(ada), 1);
  await assertExact(ada);
});

scenarios("a note that is made and deleted without a connection is never created", async (browser) => {
  const board = createBoard("Second thoughts", ["Ada"]);
  const ada = await stack.open("Ada", board, { browser });
  await ada.setOffline(true);
  await stack.cable.cut();
  await sees(ada, ".state", "Offline");
  // The second note shows that the requests that waited have been sent: those of the first would come before it.
  for (const text of ["Never", "Kept"]) {
    await ada.keyboard.press("n");
    await ada.keyboard.type(text);
    await ada.keyboard.press("Enter");
    await sees(ada, ".note", text);
  }
  await ada.evaluate(() => {
    const notes = [...document.querySelectorAll(".note")];
    notes.find((element) => element.textContent.includes("Never")).focus();
  });
  await ada.keyboard.press("Delete");
  assert.deepEqual(await texts(ada), ["Kept"]);

  await stack.cable.join();
  await ada.setOffline(false);
  const streamed = () => ada.evaluate(() => window.delivered.map((event) => event.data).join());
  await eventually("the other one has arrived", async () => (await streamed()).includes("Kept"));
  assert.ok(!(await streamed()).includes("Never"));
  assert.equal(sql(`SELECT body FROM board_items WHERE board_id = ${board}`), "Kept");
  assert.deepEqual(await texts(ada), ["Kept"]);
});

scenario("a deletion that the backend could not take is sent again", async () => {
  const board = createBoard("Busy", ["Ada"], ["Gone"]);
  const ada = await stack.open("Ada", board);
  await ada.route("**/api/notes/*", (route) => route.fulfill({ status: 503, json: { error: "Busy" } }), { times: 1 });
  await ada.evaluate(() => document.querySelector(".note").focus());
  await ada.keyboard.press("Delete");
  await eventually("it is gone", () => sql(`SELECT count(*) FROM board_items WHERE board_id = ${board}`) === "0");
  assert.deepEqual(await texts(ada), []);
});

scenarios("a lid that is closed for a while, on a connection that nobody ended", async (browser) => {
  const board = createBoard("Lid", ["Ada"], ["Evening"]);
  const ada = await stack.open("Ada", board, { browser });
  // The stream is dead, and neither end notices.
  stack.cable.freeze();
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Night')`);
  sql(`UPDATE board_items SET body = 'Morning' WHERE board_id = ${board} AND body = 'Evening'`);
  assert.deepEqual(await texts(ada), ["Evening"]);
  await ada.evaluate(() => (window.skipped += 8 * 3600_000));
  await sees(ada, ".note", "Morning");
  await sees(ada, ".note", "Night");
  await ada.waitForSelector(".state.live");
  assert.equal(await snapshotsOf(ada), 1);
  await assertExact(ada);
});

scenarios("a network that breaks off, and nothing else, is bridged too", async (browser) => {
  const board = createBoard("Cable", ["Ada"], ["Here"]);
  const ada = await stack.open("Ada", board, { browser });
  await stack.cable.cut();
  await sees(ada, ".state", "Reconnecting…");
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Meanwhile')`);
  await stack.cable.join();
  await sees(ada, ".note", "Meanwhile");
  await ada.waitForSelector(".state.live");
  assert.equal(await snapshotsOf(ada), 1);
  await assertExact(ada);
});

scenarios("a proxy that is restarted under two people loses and repeats nothing", async (browser) => {
  const board = createBoard("Restart", ["Ada", "Ben"], ["Old"]);
  const people = [await stack.open("Ada", board, { browser }), await stack.open("Ben", board, { browser })];
  for (const signal of ["SIGTERM", "SIGKILL"]) {
    sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Before ${signal}')`);
    await stack.proxy.stop(signal);
    for (let i = 1; i <= 3; i += 1) sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'During ${signal} ${i}')`);
    await stack.proxy.start();
    sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'After ${signal}')`);
    for (const page of people) await sees(page, ".note", `After ${signal}`);
  }
  const all = sql(`SELECT body FROM board_items WHERE board_id = ${board}`).split("\n").sort();
  for (const page of people) {
    await page.waitForSelector(".state.live");
    assert.deepEqual(await texts(page), all);
    assert.equal(await snapshotsOf(page), 1);
    await assertExact(page);
  }
});

scenarios("a board is read anew when the stream cannot tell what was missed", async (browser) => {
  const board = createBoard("Gap", ["Ada"], ["Known"]);
  const ada = await stack.open("Ada", board, { browser });
  await ada.evaluate(() => (window.mark = "the same page"));
  const position = await sql("SELECT tidings.position()").split(":")[0];
  await stack.cable.cut();
  await stack.proxy.stop(); // its memory would still know
  sql("ALTER SYSTEM SET tidings.retention = '1s'");
  sql("SELECT pg_reload_conf()");
  try {
    await eventually("the log has forgotten", () => {
      sql(`UPDATE board_items SET body = 'Changed', x = x + 1 WHERE board_id = ${board}`);
      return BigInt(sql("SELECT oldest_position FROM tidings.status")) > BigInt(position);
    });
  } finally {
    sql("ALTER SYSTEM RESET tidings.retention");
    sql("SELECT pg_reload_conf()");
  }
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'New')`);
  await stack.proxy.start();
  await stack.cable.join();
  await sees(ada, ".note", "New");
  await sees(ada, ".note", "Changed");
  assert.ok((await ada.evaluate(() => window.delivered)).some((event) => event.name === "reset"));
  assert.equal(await ada.evaluate(() => window.mark), "the same page");
  assert.equal(await snapshotsOf(ada), 2);
  await ada.waitForSelector(".state.live");
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'And on')`);
  await sees(ada, ".note", "And on");
});

scenarios("a page that was cut off before its first event misses nothing", async (browser) => {
  const board = createBoard("Quiet", ["Ada"]);
  const ada = await stack.open("Ada", board, { browser });
  // No note has come yet, nor anything that a page of its own would note down.
  assert.deepEqual((await ada.evaluate(() => window.delivered)).filter((event) => event.name === "note"), []);
  await stack.cable.cut();
  await sees(ada, ".state", "Reconnecting…");
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'First')`);
  await stack.cable.join();
  await sees(ada, ".note", "First");
  assert.equal(await snapshotsOf(ada), 1);
  await assertExact(ada);
});

scenarios("the README's first example gets each event once", async (browser) => {
  const [port, direct] = [await freePort(), await freePort()];
  const proxy = new Service(`open-proxy-${browser}`, setting("TEAMBOARD_PROXY"), [
    "--database-url", setting("TEAMBOARD_PROXY_URL"), "--listen", `127.0.0.1:${direct}`, "--retry", "300ms", "--open",
  ], `http://127.0.0.1:${direct}/readyz`);
  const cable = new Cable(port, direct);
  const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  const [, example] = readme.match(/```js\n(const events = new EventSource\('http:\/\/127\.0\.0\.1:8080[^]*?)```/);
  const write = (n) => sql(`SELECT tidings.publish('boards_5', '{"n": ${n}}', 'changed')`);
  try {
    await Promise.all([proxy.start(), cable.join()]);
    const page = await stack.person(null, "/healthz", { site: `http://127.0.0.1:${port}`, browser });
    await page.evaluate(`${example.replace("127.0.0.1:8080", `127.0.0.1:${port}`)}
      window.known = new Promise((resolve) => events.addEventListener("position", resolve));`);
    await page.evaluate(() => window.known.then(() => true));
    for (const n of [1, 2, 3]) {
      // Before the first event, and then between events.
      await cable.cut();
      write(n);
      await cable.join();
      const got = () => page.evaluate(() => window.delivered.filter((event) => event.name === "changed").map((event) => event.data));
      await eventually("it has come", async () => (await got()).length >= n);
      assert.deepEqual(await got(), Array.from({ length: n }, (_, i) => `{"n": ${i + 1}}`));
    }
    assert.equal(await page.evaluate(() => window.printed), 3, "the example prints each");
  } finally {
    await cable.cut();
    await proxy.stop("SIGKILL");
  }
}, ENGINES);
