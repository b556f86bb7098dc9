// Teamboard in a real browser: what a team at one whiteboard relies on.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { after, before, test } from "node:test";
import { artifacts, createBoard, eventually, GUARDED, sql, Stack } from "./stack.mjs";

let stack;
before(async () => {
  stack = await Stack.start();
});
after(() => stack?.stop());

/** A test with fresh browsers, whose pages are kept if it fails, and throw no errors if it does not. */
function scenario(name, run, options = {}) {
  test(name, options, async () => {
    let failed = name;
    try {
      await run();
      failed = null;
    } finally {
      await stack.clear(failed);
    }
  });
}

const note = (page, text) => page.locator(".note", { hasText: text });
const texts = (page) => page.locator("p.note-text").allTextContents().then((all) => all.sort());
const place = (page, text) => note(page, text).evaluate((element) => [element.style.getPropertyValue("--x"), element.style.getPropertyValue("--y")].map(parseFloat));
const fetchesOf = (page, board) => page.requests.filter((request) => request === `GET /api/boards/${board}`).length;

async function drag(page, text, dx, dy) {
  const box = await note(page, text).boundingBox();
  await page.mouse.move(box.x + 40, box.y + 40);
  await page.mouse.down();
  await page.mouse.move(box.x + 40 + dx / 2, box.y + 40 + dy / 2, { steps: 5 });
  await page.mouse.move(box.x + 40 + dx, box.y + 40 + dy, { steps: 5 });
  await page.mouse.up();
}

/** Each event has come once, in order; a page that has reconnected must not show that it did. */
async function assertExact(page) {
  const ids = await page.evaluate(() => window.delivered.map((event) => event.id));
  assert.equal(new Set(ids).size, ids.length, "no event comes twice");
  const order = ids.map((id) => id.split(":")[0].split("-").map(BigInt));
  for (let i = 1; i < order.length; i += 1) {
    const [[tick, n], [nextTick, nextN]] = [order[i - 1], order[i]];
    assert.ok(nextTick > tick || (nextTick === tick && nextN > n), `${ids[i - 1]} comes before ${ids[i]}`);
  }
}

scenario("two people work on one board and see each other at it", async () => {
  const ben = await stack.person("Ben");
  await ben.waitForSelector("h2");
  const ada = await stack.person("Ada");
  await ada.getByLabel("New board").fill("Garden party");
  await ada.getByRole("button", { name: "Create" }).click();
  await ada.waitForSelector(".state.live");

  // Invited, it appears on Ben's page by itself.
  await ada.getByRole("button", { name: "Members" }).click();
  await ada.getByLabel("Invite").selectOption("Ben");
  await ada.getByRole("button", { name: "Add to board" }).click();
  await ada.keyboard.press("Escape");
  await ben.getByText("Garden party").click();
  await ben.waitForSelector(".state.live");
  await ada.getByRole("img", { name: "Here now: Ada, Ben" }).waitFor();

  await ada.keyboard.press("n");
  await ada.keyboard.type("Lanterns");
  await ada.keyboard.press("Enter");
  await note(ben, "Lanterns").waitFor();

  await drag(ben, "Lanterns", 300, 150);
  const target = await place(ben, "Lanterns");
  await eventually("Ada sees where Ben has put it", async () => String(await place(ada, "Lanterns")) === String(target));

  await note(ben, "Lanterns").dblclick();
  await ben.getByLabel("Text of the note").fill("Paper lanterns");
  await ben.keyboard.press("Enter");
  await note(ada, "Paper lanterns").waitFor();

  await note(ada, "Paper lanterns").focus();
  await ada.getByRole("button", { name: "violet (5)" }).click();
  await ben.locator(".note.violet").waitFor();

  await ada.getByLabel("Title of the board").fill("Summer party");
  await ada.keyboard.press("Enter");
  await ben.getByRole("heading", { name: "Summer party" }).waitFor({ state: "attached" });

  await note(ada, "Paper lanterns").focus();
  await ada.keyboard.press("Delete");
  await eventually("it is gone for Ben too", async () => (await texts(ben)).length === 0);
  await assertExact(ada);
  await assertExact(ben);
  assert.deepEqual([ada, ben].flatMap((page) => page.lines), []);
});

scenario("a note is made, moved, coloured, edited and deleted by keyboard alone", async () => {
  const board = createBoard("Keys", ["Ada"], ["First"]);
  const ada = await stack.open("Ada", board);
  for (let i = 0; i < 10 && !(await note(ada, "First").evaluate((element) => element === document.activeElement)); i += 1) {
    await ada.keyboard.press("Tab");
  }
  for (const key of ["ArrowRight", "ArrowDown", "Shift+ArrowDown", "4", "Enter"]) await ada.keyboard.press(key);
  await ada.keyboard.press("ControlOrMeta+a");
  await ada.keyboard.type("Second");
  await ada.keyboard.press("Enter");
  await eventually("the database has it all", () => sql(`SELECT body, colour, x, y FROM board_items WHERE board_id = ${board}`) === "Second|green|32|96");
  await ada.keyboard.press("Delete");
  await eventually("it is deleted", () => sql(`SELECT count(*) FROM board_items WHERE board_id = ${board}`) === "0");
  await ada.getByRole("button", { name: "Undo" }).press("Enter");
  await eventually("it is back", () => sql(`SELECT body, colour, x, y FROM board_items WHERE board_id = ${board}`) === "Second|green|32|96");
});

scenario("the article's wire works as it stands", async () => {
  const board = createBoard("Wire", ["Ada"]);
  const ada = await stack.open("Ada", board);
  await ada.evaluate(([base, id]) => new Promise((resolve) => {
    window.changes = [];
    const source = new EventSource(`${base}/api/boards/${id}/events`, { withCredentials: true });
    source.addEventListener("changed", (event) => window.changes.push(JSON.parse(event.data).change));
    source.onopen = resolve;
  }), [stack.events, board]);
  const item = sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'x') RETURNING id`);
  sql(`UPDATE boards SET title = 'Rewired' WHERE id = ${board}`);
  sql(`DELETE FROM board_items WHERE id = '${item}'`);
  const changes = await eventually("all changes have come", () => ada.evaluate(() => window.changes.length >= 3 && window.changes));
  assert.deepEqual(changes, [{ board_item: item }, { board }, { board_item: item }]);
});

scenario("who is no member gets nothing", async () => {
  const board = createBoard("Private", ["Ada"], ["Secret"]);
  const dev = await stack.person("Dev", `/boards/${board}`);
  await dev.getByText("you are not a member").waitFor();
  await dev.getByRole("heading", { name: "Your boards" }).waitFor();
  const ask = (topic, page = dev) => page.evaluate((url) => fetch(url, { credentials: "include", headers: { Accept: "text/event-stream" } })
    .then((answer) => answer.status), stack.events + topic);
  assert.equal(await ask(`/api/boards/${board}/events`), 403);
  assert.equal(await ask(`/events?topic=boards_${board}`), 403);
  assert.equal(await ask("/events?topic=people_1"), 403);
  const nobody = await stack.person(null);
  await nobody.getByRole("button", { name: "Ada" }).waitFor();
  assert.equal(await ask(`/api/boards/${board}/events`, nobody), 401);
}, { skip: !GUARDED });

scenario("a membership that is revoked ends the stream", async () => {
  const board = createBoard("Parting", ["Ada", "Ben"], ["Ours"]);
  const ben = await stack.open("Ben", board);
  // A stream that knows nothing of the page's manners, which leaves by itself when it is told.
  await ben.evaluate(([base, id]) => new Promise((resolve) => {
    const source = new EventSource(`${base}/api/boards/${id}/events`, { withCredentials: true });
    source.addEventListener("note", (event) => (window.seen = [...(window.seen ?? []), event.data]));
    source.onopen = resolve;
    source.onerror = () => (window.ended = source.readyState === EventSource.CLOSED);
  }), [stack.events, board]);
  const ada = await stack.open("Ada", board);
  await ada.getByRole("button", { name: "Members" }).click();
  await ada.getByRole("button", { name: "Remove Ben" }).click();
  await ben.getByText("no longer a member").waitFor();
  await eventually("the other stream is refused", () => ben.evaluate(() => window.ended));
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Without Ben')`);
  await ada.keyboard.press("Escape");
  await note(ada, "Without Ben").waitFor();
  assert.equal(await ben.evaluate(() => window.seen), undefined);
}, { skip: !GUARDED });

scenario("a closed tab is gone from the proxy and from the list of open topics", async () => {
  const board = createBoard("Doors", ["Ada", "Ben"]);
  const ada = await stack.open("Ada", board);
  const ben = await stack.open("Ben", board);
  const open = () => sql(`SELECT string_agg(topic || ':' || subscribers, ' ' ORDER BY topic) FROM tidings.open_topics
                          WHERE topic IN ('boards_${board}', 'here_${board}_1', 'here_${board}_2')`);
  await eventually("both are on the list", () => open() === `boards_${board}:2 here_${board}_1:1 here_${board}_2:1`);
  await ada.getByRole("img", { name: "Here now: Ada, Ben" }).waitFor();
  const clients = await stack.clients();
  await ben.close();
  await eventually("the client is dropped", async () => (await stack.clients()) === clients - 1);
  await eventually("the list follows", () => open() === `boards_${board}:1 here_${board}_1:1`);
  await ada.getByRole("img", { name: "Here now: Ada", exact: true }).waitFor();
});

scenario("a laptop that slept catches up without a reload and without doubles", async () => {
  const board = createBoard("Nap", ["Ada", "Ben"], ["Awake"]);
  const ada = await stack.open("Ada", board);
  await ada.evaluate(() => (window.mark = "the same page"));
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Before')`);
  await note(ada, "Before").waitFor();

  await ada.context().setOffline(true);
  await stack.cable.cut();
  await ada.getByText("Offline").waitFor();
  for (let i = 1; i <= 5; i += 1) sql(`INSERT INTO board_items (board_id, body, x) VALUES (${board}, 'Asleep ${i}', ${i * 40})`);
  sql(`UPDATE board_items SET body = 'Renamed' WHERE board_id = ${board} AND body = 'Before'`);
  sql(`DELETE FROM board_items WHERE board_id = ${board} AND body = 'Awake'`);
  // What Ada does meanwhile waits, and is not lost.
  await note(ada, "Before").focus();
  await ada.keyboard.press("3");
  await ada.locator(".note.blue", { hasText: "Before" }).waitFor();

  await stack.cable.join();
  await ada.context().setOffline(false);
  await note(ada, "Asleep 5").waitFor();
  await ada.locator(".note.blue", { hasText: "Renamed" }).waitFor();
  await eventually("what she did has arrived", () => sql(`SELECT colour FROM board_items WHERE board_id = ${board} AND body = 'Renamed'`) === "blue");
  assert.deepEqual(await texts(ada), ["Asleep 1", "Asleep 2", "Asleep 3", "Asleep 4", "Asleep 5", "Renamed"]);
  assert.equal(await ada.evaluate(() => window.mark), "the same page");
  assert.equal(fetchesOf(ada, board), 1);
  await assertExact(ada);
});

scenario("a network that breaks off, and nothing else, is bridged too", async () => {
  const board = createBoard("Cable", ["Ada"], ["Here"]);
  const ada = await stack.open("Ada", board);
  await stack.cable.cut();
  await ada.getByText("Reconnecting…").waitFor();
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Meanwhile')`);
  await stack.cable.join();
  await note(ada, "Meanwhile").waitFor();
  await ada.waitForSelector(".state.live");
  assert.equal(fetchesOf(ada, board), 1);
  await assertExact(ada);
});

scenario("a proxy that is restarted under two people loses and repeats nothing", async () => {
  const board = createBoard("Restart", ["Ada", "Ben"], ["Old"]);
  const people = [await stack.open("Ada", board), await stack.open("Ben", board)];
  for (const signal of ["SIGTERM", "SIGKILL"]) {
    sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Before ${signal}')`);
    await stack.proxy.stop(signal);
    for (let i = 1; i <= 3; i += 1) sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'During ${signal} ${i}')`);
    await stack.proxy.start();
    sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'After ${signal}')`);
    for (const page of people) await note(page, `After ${signal}`).waitFor();
  }
  const all = sql(`SELECT body FROM board_items WHERE board_id = ${board}`).split("\n").sort();
  for (const page of people) {
    await page.waitForSelector(".state.live");
    assert.deepEqual(await texts(page), all);
    assert.equal(fetchesOf(page, board), 1);
    await assertExact(page);
  }
});

scenario("a board is read anew when the stream cannot tell what was missed", async () => {
  const board = createBoard("Gap", ["Ada"], ["Known"]);
  const ada = await stack.open("Ada", board);
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
  await note(ada, "New").waitFor();
  await note(ada, "Changed").waitFor();
  assert.ok((await ada.evaluate(() => window.delivered)).some((event) => event.name === "reset"));
  assert.equal(await ada.evaluate(() => window.mark), "the same page");
  assert.equal(fetchesOf(ada, board), 2);
  await ada.waitForSelector(".state.live");
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'And on')`);
  await note(ada, "And on").waitFor();
});

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

async function assertAccessible(page, where) {
  // Through the debugger: the page's own policy lets no foreign script in.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const found = violations.filter((violation) => ["serious", "critical"].includes(violation.impact));
  assert.deepEqual(found.map((violation) => `${where}: ${violation.id}: ${violation.nodes.map((node) => node.html).join(" ")}`), []);
  const width = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(width <= 0, `${where} is ${width} pixels too wide`);
}

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    scenario(`it is accessible and fits at ${width} pixels, ${colorScheme}`, async () => {
      const options = { colorScheme, viewport: { width, height: 800 }, reducedMotion: "reduce" };
      const nobody = await stack.person(null, "/", options);
      await nobody.getByRole("button", { name: "Ada" }).waitFor();
      await assertAccessible(nobody, "signing in");
      const ada = await stack.person("Ada", "/", options);
      await ada.locator(".card", { hasText: "Spring launch" }).waitFor();
      await assertAccessible(ada, "all boards");
      const board = await stack.open("Ada", 5, options);
      await board.locator(".note").first().focus();
      await assertAccessible(board, "a board");
      await board.getByRole("button", { name: "Delete (Delete)" }).first().focus();
      await board.keyboard.press("Enter");
      await board.getByRole("button", { name: "Undo" }).waitFor();
      await assertAccessible(board, "a message");
      await board.getByRole("button", { name: "Undo" }).click();
      await board.getByRole("button", { name: "Members" }).click();
      await assertAccessible(board, "members");
    });
  }
}

// docs/teamboard.png is one of these: copied from here by hand, so a test run leaves no changed file behind.
scenario("the README's picture", async () => {
  const ben = await stack.open("Ben", 5, { viewport: { width: 960, height: 540 } });
  const ada = await stack.open("Ada", 5, { viewport: { width: 960, height: 540 } });
  await ben.getByRole("img", { name: "Here now: Ada, Ben" }).waitFor();
  await ada.getByRole("img", { name: "Here now: Ada, Ben" }).waitFor();
  await ada.evaluate(() => document.activeElement?.blur());
  await drag(ben, "Cake", 30, 10);
  await ada.locator(".note.touched", { hasText: "Cake" }).waitFor();
  await ada.screenshot({ path: path.join(artifacts, "teamboard.png") });
});
