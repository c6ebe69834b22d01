// People in a real browser, who sign in by a site's own pages. Takes orders on its input, one JSON text a line, and answers
// each with `{"value": …}` or `{"error": TEXT}`. Every `who` is a browser of their own, with its own cookies.
//
//   CHROMIUM   the browser, default: `chromium` on the path
//
//   {"order": "log_in", "who", "url", "name", "password"}   by the form at /login/, on to /chat/; the names of the cookies
//   {"order": "see", "who", "text"}        waits until the page at /chat/ shows this line
//   {"order": "say", "who", "text"}        to the room `lobby`; the state of the client once it is stored
//   {"order": "visit", "who", "path"}      another tab, closed again; the heading of that page
//   {"order": "reload", "who"}
//   {"order": "log_out", "who"}            by the button at /account/, in another tab
//   {"order": "shown", "who"}              all lines of the page
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { browserPath, flags } from "./chromium.mjs";

const PATIENCE = 30_000; // ms until something that should be seen counts as missing
const browser = await chromium.launch({ executablePath: browserPath(), args: flags });
const people = new Map();

async function tab({ context, url }, path) {
  const page = await context.newPage();
  await page.goto(url + path);
  return page;
}

const line = (page, text) => page.locator("li", { hasText: text }).first();

const orders = {
  async log_in({ who, url, name, password }) {
    const context = await browser.newContext();
    context.setDefaultTimeout(PATIENCE);
    const page = await tab({ context, url }, "/login/?next=/chat/");
    people.set(who, { context, url, page });
    await page.locator("[name=username]").fill(name);
    await page.locator("[name=password]").fill(password);
    await page.getByRole("button", { name: "Log in" }).click();
    await line(page, "open").waitFor();
    return (await context.cookies()).map((cookie) => cookie.name).sort();
  },
  see: ({ who, text }) => line(people.get(who).page, text).waitFor(),
  say: ({ who, text }) => people.get(who).page.evaluate((text) => gateway.chat("lobby", text).then(() => gateway.state), text),
  async visit({ who, path }) {
    const page = await tab(people.get(who), path);
    const heading = await page.locator("h1").textContent();
    await page.close();
    return heading;
  },
  async reload({ who }) {
    const { page } = people.get(who);
    await page.reload();
    await line(page, "open").waitFor();
  },
  async log_out({ who }) {
    const page = await tab(people.get(who), "/account/");
    await Promise.all([page.waitForURL(/whoami/), page.getByRole("button", { name: "Log out" }).click()]);
    await page.close();
  },
  shown: ({ who }) => people.get(who).page.locator("li").allTextContents(),
};

try {
  for await (const text of createInterface({ input: process.stdin })) {
    const { order, ...given } = JSON.parse(text);
    const answer = await orders[order](given).then(
      (value) => ({ value: value ?? null }),
      (error) => ({ error: String(error.stack ?? error) }),
    );
    console.log(JSON.stringify(answer));
  }
} finally {
  await browser.close();
}
