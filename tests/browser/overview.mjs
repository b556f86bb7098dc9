// The page that an open proxy shows at its address: topics and events as text, whatever they are, live, for everyone.

import assert from "node:assert/strict";
import path from "node:path";
import { assertAccessible } from "./look.mjs";
import { scenario, stack } from "./scenario.mjs";
import { artifacts, eventually, freePort, sql } from "./stack.mjs";

const HOSTILE = `<img src=x onerror="window.hacked = 1"> & "quotes"`;

/** Publishes an event; the text of the payload is JSON. */
const publish = (topic, payload) => sql(`SELECT tidings.publish($t$${topic}$t$, $p$${payload}$p$)`);

/** The texts of the events that the page shows, newest first. */
const shown = (page) => page.evaluate(() => [...document.querySelectorAll("#events .data")].map((data) => data.textContent));

async function withProxy(run) {
  const proxy = stack.openProxy("open", await freePort());
  await proxy.start();
  try {
    await run(proxy, new URL("/", proxy.ready).href);
  } finally {
    await proxy.stop();
  }
}

scenario("the page of an open proxy shows topics and events as text, live, and continues after a restart", () => withProxy(async (proxy, site) => {
  const page = await stack.person(null, "", { site });
  await page.locator("#state.good").waitFor();
  publish(HOSTILE, `{"markup": "</pre><script>window.hacked = 1</script>", "number": 9007199254740993}`);
  // By the mouse, in the list of recent topics.
  await page.getByRole("button", { name: HOSTILE }).click();
  await page.locator("#streams", { hasText: "live" }).waitFor();
  publish(HOSTILE, `{"markup": "</pre><script>window.hacked = 1</script>", "number": 9007199254740993}`);
  await eventually("the event is there", async () => (await shown(page)).length === 1);
  const [text] = await shown(page);
  assert.ok(text.includes(`"</pre><script>window.hacked = 1</script>"`) && text.includes(`"number": 9007199254740993`), text);
  // By the keyboard.
  await page.getByLabel("Subscribe to a topic").focus();
  await page.keyboard.type("news");
  await page.keyboard.press("Enter");
  await page.locator("#streams li", { hasText: "news" }).getByText("live").waitFor();
  await page.getByRole("button", { name: "Pause" }).press("Enter");
  publish("news", `"held back"`);
  await page.getByText("Paused: 1 event waits.").waitFor();
  await page.getByRole("button", { name: "Continue" }).press("Enter");
  await eventually("it is shown", async () => (await shown(page))[0] === `"held back"`);
  await page.getByText(/3 events since/).waitFor();
  // What comes while the proxy is away comes when it is back.
  await proxy.stop("SIGKILL");
  publish("news", `"meanwhile"`);
  await proxy.start();
  await eventually("it is shown", async () => (await shown(page))[0] === `"meanwhile"`);
  await page.getByRole("button", { name: "Stop news" }).click();
  await eventually("one stream is left", () => page.evaluate(() => document.querySelectorAll("#streams li").length === 1));
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  assert.equal(await page.evaluate(() => document.querySelectorAll("img, iframe, object, #topics script, #events script").length), 0);
  assert.deepEqual(page.lines.filter((line) => /Content Security Policy|error: /.test(line) && !/ERR_/.test(line)), []);
}));

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    scenario(`the page of an open proxy is accessible and fits at ${width} pixels, ${colorScheme}`, () => withProxy(async (proxy, site) => {
      const page = await stack.person(null, "", { site, colorScheme, viewport: { width, height: 800 }, reducedMotion: "reduce" });
      await page.locator("#state.good").waitFor();
      const picture = (name) => page.screenshot({ path: path.join(artifacts, "look", `${name}-${width}-${colorScheme}.png`) });
      await picture("open-proxy-empty");
      await assertAccessible(page, "an empty page");
      for (const topic of ["boards_5", "boards_6", `${"long".repeat(40)}`, HOSTILE]) publish(topic, `{"n": 1}`);
      await page.getByRole("button", { name: "boards_5" }).click();
      await page.locator("#streams", { hasText: "live" }).waitFor();
      for (let n = 1; n <= 3; n += 1) {
        publish("boards_5", `{"schema": "public", "table": "board_items", "type": "INSERT", "record": {"id": ${n}, "title": "${"hello ".repeat(n * n)}"}, "old_record": null}`);
      }
      await eventually("the events are there", async () => (await shown(page)).length === 3);
      await picture("open-proxy");
      await assertAccessible(page, "a page with events");
    }));
  }
}
