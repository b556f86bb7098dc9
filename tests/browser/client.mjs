// The module tidings-client in real browsers, on a real proxy: its list is the table's rows, whatever happens on the way.

import assert from "node:assert/strict";
import { scenarios, stack } from "./scenario.mjs";
import { Site } from "./site.mjs";
import { createBoard, eventually, sql } from "./stack.mjs";

const PAGE = "/page/icon.svg"; // of the right origin, and with no script of its own

/** The rows of a board's notes in the database, as JSON, by id. */
const truth = (board) => sql(`SELECT coalesce(json_agg(i ORDER BY id), '[]') FROM board_items i WHERE board_id = ${board}`);

/** Opens a list of a board's rows in `page`, under `window.list`. */
async function openList(page, board, { events = stack.events, module = "/page/tidings-client.js", ...options } = {}) {
  await page.evaluate(async ([url, module, topics, options]) => {
    const { live } = await import(module);
    if (window.giveToken) options.token = () => window.giveToken();
    window.list = live(url, { topics, credentials: "include", key: { board_members: ["board_id", "person_id"] }, ...options });
    window.states = [];
    window.sizes = [];
    window.list.subscribe(() => {
      window.states.push(window.list.state);
      window.sizes.push(window.list.table("board_items").length);
    });
  }, [`${events}/events`, module, [`boards_${board}`], options]);
  await eventually("the list is live", () => page.evaluate(() => window.list.state === "live"));
}

const rows = (page) => page.evaluate(() => JSON.stringify([...window.list.table("board_items")].sort((a, b) => (a.id < b.id ? -1 : 1))));

/** The same rows give the same text, in whatever order their columns stand. */
const normal = (text) => JSON.stringify(JSON.parse(text).map((row) => Object.entries(row).sort()));

/** Waits until the list of the page is what the table has. */
const agrees = (page, board) => eventually("the list is the table's rows", async () => normal(await rows(page)) === normal(truth(board)));

/** A page beside another, of the same browser and the same person. */
async function tabBeside(page, browser) {
  const tab = await (browser === "Firefox" ? page.browserContext() : page.context()).newPage();
  await tab.goto(stack.url + PAGE);
  return tab;
}

scenarios("a live list is the table's rows under a writer at full speed and a network that breaks", async (browser) => {
  const [board, other] = [createBoard("Exact", ["Ada"]), createBoard("Elsewhere", ["Ada"])];
  const ada = await stack.person("Ada", PAGE, { browser });
  await openList(ada, board);
  for (let round = 0; round < 6; round += 1) {
    // Rows come, change, leave for another board, return, and go, in many small transactions.
    sql(`DO $$ BEGIN FOR i IN 1..200 LOOP
           INSERT INTO board_items (board_id, body, x) VALUES (${board}, 'n' || i, i);
           UPDATE board_items SET x = x + 1 WHERE board_id = ${board} AND x % 7 = i % 7;
           UPDATE board_items SET board_id = CASE board_id WHEN ${board} THEN ${other} ELSE ${board} END
             WHERE board_id IN (${board}, ${other}) AND y = i % 5;
           DELETE FROM board_items WHERE board_id = ${board} AND x % 11 = i % 11;
           COMMIT; END LOOP; END $$`);
    if (round % 2 === 0) {
      await stack.cable.cut();
      await stack.cable.join();
    }
    if (round === 3) await stack.proxy.stop("SIGKILL").then(() => stack.proxy.start());
  }
  await agrees(ada, board);
  assert.ok(JSON.parse(truth(board)).length > 0);
});

scenarios("a live list forgets nothing and shows nothing twice when its place has expired", async (browser) => {
  const board = createBoard("Forgotten", ["Ada"]);
  sql(`INSERT INTO board_items (board_id, body) SELECT ${board}, 'n' || i FROM generate_series(1, 50) i`);
  const ada = await stack.person("Ada", PAGE, { browser });
  await openList(ada, board);
  const position = sql("SELECT tidings.position()").split(":")[0];
  await stack.cable.cut();
  await stack.proxy.stop();
  sql("ALTER SYSTEM SET tidings.retention = '1s'");
  sql("SELECT pg_reload_conf()");
  try {
    await eventually("the log has forgotten", () => {
      sql(`UPDATE board_items SET x = x + 1 WHERE board_id = ${board}`);
      return BigInt(sql("SELECT oldest_position FROM tidings.status")) > BigInt(position);
    });
  } finally {
    sql("ALTER SYSTEM RESET tidings.retention");
    sql("SELECT pg_reload_conf()");
  }
  await stack.proxy.start();
  await stack.cable.join();
  await agrees(ada, board);
  assert.deepEqual(await ada.evaluate(() => [...new Set(window.sizes)]), [0, 50], "never half a list");
});

scenarios("a lid that is closed for a night does not stop a live list", async (browser) => {
  const board = createBoard("Night", ["Ada"], ["Evening"]);
  const ada = await stack.person("Ada", PAGE, { browser });
  await openList(ada, board);
  stack.cable.freeze();
  sql(`UPDATE board_items SET body = 'Morning' WHERE board_id = ${board}`);
  await ada.evaluate(() => (window.skipped += 8 * 3_600_000));
  await agrees(ada, board);
});

scenarios("an expired token is renewed, and the list goes on", async (browser) => {
  const board = createBoard("Expiry", ["Ada"], ["One"]);
  const page = await stack.person(null, PAGE, { browser });
  let given = 0;
  // The first one expires soon: the proxy allows for clocks that differ by ten seconds.
  await page.exposeFunction("giveToken", () => stack.token("Ada", (given += 1) === 1 ? -6 : 600));
  await openList(page, board);
  await eventually("it has asked for another", () => {
    sql(`UPDATE board_items SET x = x + 1 WHERE board_id = ${board}`);
    return given >= 2;
  });
  await agrees(page, board);
  assert.ok(!(await page.evaluate(() => window.states)).includes("denied"));
});

scenarios("all tabs of a browser share one stream, and go on when its tab is closed", async (browser) => {
  const board = createBoard("Tabs", ["Ada"], ["One"]);
  const first = await stack.person("Ada", PAGE, { browser });
  const before = await stack.clients();
  await openList(first, board);
  const others = [await tabBeside(first, browser), await tabBeside(first, browser)];
  for (const tab of others) {
    await openList(tab, board);
    await agrees(tab, board);
  }
  assert.equal(await stack.clients(), before + 1);
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Two')`);
  for (const tab of [first, ...others]) await agrees(tab, board);
  await first.close();
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Three')`);
  for (const tab of others) await agrees(tab, board);
  await eventually("there is one stream", async () => (await stack.clients()) === before + 1);
});

scenarios("behind a proxy that holds streams back for ever, a live list polls", async (browser) => {
  const board = createBoard("Held back", ["Ada"], ["One"]);
  const site = new Site(stack.events, { holds: true });
  await site.start();
  try {
    const ada = await stack.person("Ada", PAGE, { browser });
    await ada.goto(`${site.url}/stream-proxy/examples/teamboard/page/icon.svg`);
    await openList(ada, board, { events: site.url, module: "/stream-proxy/client/tidings-client.js", patience: 1_000 });
    await agrees(ada, board);
    for (const body of ["Two", "Three"]) {
      sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, '${body}')`);
      await agrees(ada, board);
    }
    assert.ok(site.held > 0, "the stream was held back");
  } finally {
    await site.stop();
  }
});
