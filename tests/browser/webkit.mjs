// WebKit (Safari's engine), as Playwright would give it, as far as a page without an application needs it. Debian's own
// build is driven by WebDriver, which has no scripts that run before a page's own and reports no console.

import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import { Builder } from "selenium-webdriver";

/** Where Debian keeps the engine's test browser, one folder for each version of the library. */
const LIBRARIES = "/usr/lib/x86_64-linux-gnu";

function testBrowser() {
  const folder = readdirSync(LIBRARIES).filter((name) => name.startsWith("webkit2gtk-")).sort().at(-1);
  if (!folder) throw new Error(`${LIBRARIES} has no WebKit: install webkit2gtk-driver`);
  return path.join(LIBRARIES, folder, "MiniBrowser");
}

/** Starts a display that nobody sees, and the driver at `port`; each page gets a browser of its own. */
export async function launch(port, eventually) {
  const screen = spawn("Xvfb", ["-displayfd", "3", "-screen", "0", "1280x800x24", "-nolisten", "tcp"], { stdio: ["ignore", "ignore", "ignore", "pipe"] });
  const display = await new Promise((resolve, reject) => {
    screen.once("error", reject);
    screen.stdio[3].once("data", (data) => resolve(`:${String(data).trim()}`));
  });
  const env = { ...process.env, DISPLAY: display, LIBGL_ALWAYS_SOFTWARE: "1" };
  const driver = spawn("WebKitWebDriver", [`--port=${port}`], { env, stdio: "ignore" });
  process.on("exit", () => [driver, screen].forEach((child) => child.kill("SIGKILL")));
  const url = `http://127.0.0.1:${port}`;
  await eventually("WebKit's driver is ready", () => fetch(`${url}/status`).then((answer) => answer.ok, () => false));
  return {
    url,
    async close() {
      driver.kill();
      screen.kill();
    },
  };
}

/** A page in which `script` runs as soon as it has loaded. */
export async function newPage({ url }, script) {
  const driver = await new Builder().usingServer(url).withCapabilities({
    browserName: "MiniBrowser",
    "webkitgtk:browserOptions": { binary: testBrowser(), args: ["--automation"] },
  }).build();
  let closed = false;
  const page = {
    on() {},
    setDefaultTimeout: (limit) => driver.manage().setTimeouts({ script: limit, pageLoad: limit }),
    bringToFront: async () => {},
    url: () => "",
    screenshot: async () => {},
    isClosed: () => closed,
    async goto(address) {
      await driver.get(address);
      await page.evaluate(script);
    },
    /** Runs a function, or a script, in the page; gives what it returns or what its promise resolves to. */
    evaluate: (what, argument) => driver.executeScript(
      typeof what === "function" ? `return (${what})(arguments[0])` : "return void (0, eval)(arguments[0])",
      typeof what === "function" ? argument : what),
    async close() {
      closed = true;
      await driver.quit();
    },
  };
  return page;
}
