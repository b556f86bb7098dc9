// The examples of docs/javascript.md, as they stand there, and the example page of a live table: each in a real browser, on a network
// that breaks.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before } from "node:test";
import { scenarios, stack } from "./scenario.mjs";
import { root, Site } from "./site.mjs";
import { Cable, ENGINES, eventually, freePort, Service, setting, sql } from "./stack.mjs";

const DOCUMENT = readFileSync(new URL("docs/javascript.md", root), "utf8");
const MODULES = "/tests/browser/node_modules";
const CLIENT = "/stream-proxy/client/tidings-client.js";

/** The topics of the document's table. Teamboard's own tables have the name that the document uses. */
const onShelf = (text, shelf = "") => text.replaceAll("boards_5", `shelf_${shelf}`).replaceAll("boards_", "shelf_");

/** The blocks of code below the mark `name`, as far as they follow one another. */
function example(name) {
  const [, blocks] = DOCUMENT.match(new RegExp(`<!-- runs as a test: ${name} -->\\n((?:\`\`\`[^]*?\\n\`\`\`\\n+)+)`)) ?? [];
  assert.ok(blocks, `docs/javascript.md has an example ${name}`);
  return [...blocks.matchAll(/```\w+\n([^]*?)```/g)].map(([, code]) => code);
}

/** Each page has rows of its own. */
let shelf = 0;
let proxy;
let cable;
let site;
before(async () => {
  const [table] = example("table");
  sql(onShelf(table));
  // An open proxy reads rows as its own login.
  sql("GRANT SELECT ON items TO teamboard_proxy");
  const [port, direct] = [await freePort(), await freePort()];
  proxy = new Service("recipes-proxy", setting("TEAMBOARD_PROXY"), [
    "--database-url", setting("TEAMBOARD_PROXY_URL"), "--listen", `127.0.0.1:${direct}`, "--retry", "300ms", "--open",
  ], `http://127.0.0.1:${direct}/readyz`);
  cable = new Cable(port, direct);
  site = new Site(`http://127.0.0.1:${port}`);
  await Promise.all([proxy.start(), cable.join(), site.start()]);
});
after(async () => {
  await site?.stop();
  await cable?.cut();
  await proxy?.stop("SIGKILL");
});

const insert = (...titles) => sql(`INSERT INTO items (board_id, title) VALUES ${titles.map((title) => `(${shelf}, '${title}')`).join(", ")}`);
const titles = () => sql(`SELECT coalesce(json_agg(title ORDER BY title), '[]') FROM items WHERE board_id = ${shelf}`);

/** Waits until the page shows the table's rows. */
const agrees = (page, selector) => eventually("the page shows the table's rows", async () => {
  const shown = await page.evaluate((selector) => [...document.querySelectorAll(selector)].map((element) => element.textContent).sort(), selector);
  return JSON.stringify(shown) === JSON.stringify(JSON.parse(titles()));
});

/** Opens a page with this HTML. */
function openPage(browser, html) {
  site.pages["/"] = `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">${onShelf(html, shelf)}`;
  return stack.person(null, "/", { site: site.url, browser });
}

/** A scenario with rows that nobody else has. */
const withRows = (name, run, browsers) => scenarios(`example: ${name}`, (browser) => {
  shelf += 1;
  insert("one", "two");
  return run(browser);
}, browsers);

/** Rows come, change and go while the page can see it, and while it can't. */
async function isExact(page, selector = "#items li") {
  await agrees(page, selector);
  insert("three");
  await agrees(page, selector);
  await cable.cut();
  insert("four");
  sql(`UPDATE items SET title = 'first' WHERE board_id = ${shelf} AND title = 'one'`);
  sql(`DELETE FROM items WHERE board_id = ${shelf} AND title = 'two'`);
  await cable.join();
  await agrees(page, selector);
  insert("five");
  await agrees(page, selector);
}

withRows("tidings-client", async (browser) => {
  const [html] = example("module");
  await isExact(await openPage(browser, html.replace("./tidings-client.js", CLIENT)));
}, ENGINES);

withRows("a plain EventSource", async (browser) => {
  await isExact(await openPage(browser, example("eventsource")[0]));
}, ENGINES);

withRows("a live table", async (browser) => {
  const path = `/stream-proxy/examples/table/index.html?events=/events&topic=shelf_${shelf}`;
  await isExact(await stack.person(null, path, { site: site.url, browser }), "#items td:last-child");
}, ENGINES);

withRows("htmx", async (browser) => {
  const scripts = ["htmx.org/dist/htmx.min.js", "htmx-ext-sse/dist/sse.js"].map((file) => `<script src="${MODULES}/${file}"></script>`);
  site.pages["/fragments/items"] = () => sql(`SELECT string_agg('<li>' || title || '</li>', '' ORDER BY id) FROM items WHERE board_id = ${shelf}`);
  await isExact(await openPage(browser, scripts.join("") + example("htmx")[0]));
});

withRows("Hotwire Turbo", async (browser) => {
  const [publish, html] = example("turbo");
  const imports = { "@hotwired/turbo": `${MODULES}/@hotwired/turbo/dist/turbo.es2017-esm.js` };
  const page = await openPage(browser, `<script type="importmap">${JSON.stringify({ imports })}</script>${html}`);
  const shown = () => page.evaluate(() => document.querySelectorAll("#items li").length);
  await eventually("it is subscribed", () => sql(`SELECT count(*) FROM tidings.open_topics WHERE topic = 'shelf_${shelf}'`) === "1");
  sql(onShelf(publish, shelf));
  await eventually("the first has come", async () => (await shown()) === 1);
  await cable.cut();
  sql(onShelf(publish, shelf));
  await cable.join();
  await eventually("the second has come", async () => (await shown()) === 2);
});

withRows("React", async (browser) => {
  const scripts = ["react/umd/react.development.js", "react-dom/umd/react-dom.development.js"].map((file) => `<script src="${MODULES}/${file}"></script>`);
  const page = await openPage(browser, `<div id="items"></div>${scripts.join("")}<script type="module">
    import { live } from "${CLIENT}";
    const { createElement, StrictMode, useMemo, useSyncExternalStore } = React;
    ${example("react")[0]}
    const root = ReactDOM.createRoot(document.getElementById("items"));
    window.show = (board) => root.render(createElement(StrictMode, null, board && createElement(Items, { board })));
    window.show(${shelf});
  </script>`);
  await isExact(page);
  // Another board, and none.
  shelf += 1;
  insert("another");
  await page.evaluate((board) => window.show(board), shelf);
  await agrees(page, "#items li");
  await page.evaluate(() => window.show(null));
  await eventually("its stream is closed", () => sql(`SELECT count(*) FROM tidings.open_topics WHERE topic LIKE 'shelf_%'`) === "0");
});

withRows("Vue", async (browser) => {
  const imports = { vue: `${MODULES}/vue/dist/vue.esm-browser.prod.js` };
  await isExact(await openPage(browser, `<script type="importmap">${JSON.stringify({ imports })}</script><ul id="items"></ul><script type="module">
    import { createApp, h, onScopeDispose, shallowRef } from "vue";
    import { live } from "${CLIENT}";
    ${example("vue")[0]}
    const items = live("/events", { topics: ["boards_5"] });
    createApp({ setup: () => { const rows = useLive(items); return () => rows.value.map((row) => h("li", { key: row.id }, row.title)); } }).mount("#items");
  </script>`));
});

withRows("rows that the backend rendered", async (browser) => {
  const [statement, script] = example("rendered");
  const first = sql(onShelf(statement, shelf));
  const page = await openPage(browser, `<ul id="items"></ul><script type="module">
    import { live } from "${CLIENT}";
    const first = ${first};
    ${script}
    window.early = items.rows.map((row) => row.title);
    items.subscribe((rows) => document.getElementById("items").replaceChildren(...rows.map((row) =>
      Object.assign(document.createElement("li"), { textContent: row.title }))));
  </script>`);
  await isExact(page);
  assert.deepEqual(await page.evaluate(() => window.early), ["one", "two"]);
  assert.ok(!(await page.evaluate(() => window.delivered)).some((event) => event.name === "reset"), "nothing was read again");
});
