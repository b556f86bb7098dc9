// Tabs that close, networks that break off, machines that sleep, proxies that restart.

import assert from "node:assert/strict";
import { assertExact, fetchesOf, note, scenario, stack, texts } from "./scenario.mjs";
import { createBoard, eventually, sql } from "./stack.mjs";

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

scenario("a lid that is closed for a while, on a connection that nobody ended", async () => {
  const board = createBoard("Lid", ["Ada"], ["Evening"]);
  const ada = await stack.open("Ada", board, { clock: true });
  // The stream is dead, and neither end is told.
  stack.cable.freeze();
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Night')`);
  sql(`UPDATE board_items SET body = 'Morning' WHERE board_id = ${board} AND body = 'Evening'`);
  assert.deepEqual(await texts(ada), ["Evening"]);
  await ada.clock.fastForward("08:00:00");
  await note(ada, "Morning").waitFor();
  await note(ada, "Night").waitFor();
  await ada.waitForSelector(".state.live");
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
