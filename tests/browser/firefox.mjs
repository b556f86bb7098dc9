// Firefox, as Playwright would give it: Debian's own is driven by another library.

import puppeteer from "puppeteer-core";

export function launch() {
  return puppeteer.launch({
    browser: "firefox",
    executablePath: process.env.FIREFOX ?? "/usr/bin/firefox-esr",
    headless: true,
    extraPrefsFirefox: { "app.update.enabled": false, "datareporting.policy.dataSubmissionEnabled": false },
  });
}

/** A page of somebody who has nothing in common with the others, and in which `script` runs before anything of the page. */
export async function newPage(browser, script) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  await page.evaluateOnNewDocument(script);
  // One window shows one tab; each of these people looks at theirs.
  await page.evaluateOnNewDocument(() => Object.defineProperty(document, "hidden", { value: false }));
  return page;
}
