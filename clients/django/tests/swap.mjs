// Two people on the chat page of examples/django, in Chromium. Reads commands, one JSON list a line, and answers each
// with one line: {"value": …} or {"error": …}.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { browserPath, flags } from "../../js/test/chromium.mjs";

const { chromium } = createRequire(new URL("../../js/package.json", import.meta.url))("playwright-core");
const [url] = process.argv.slice(2);
const PATIENCE = 60_000;
const pages = {};
const said = {}; // name -> how many numbered messages
const complaints = [];
let talking = null;
let browser = null;

async function open(name) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 700 } });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.on("pageerror", (error) => complaints.push(`${name}: ${error}`));
  await page.goto(`${url}/signup/`);
  await page.getByLabel("Username").fill(name);
  await page.getByLabel("Password:").fill("a good password");
  await page.getByLabel("Password confirmation").fill("a good password");
  await page.getByRole("button", { name: "Make an account" }).click();
  await page.locator("#say").waitFor();
  // The very page stays to the end.
  await page.evaluate(() => (globalThis.since = "the start"));
  pages[name] = page;
  said[name] = 0;
}

async function say(name, text) {
  await pages[name].locator("#text").fill(text);
  await pages[name].locator("#text").press("Enter");
}

/** Everybody says a number, and again, until it is to end. */
async function talk(stop) {
  while (!stop.now) {
    for (const name of Object.keys(pages)) await say(name, `${name} ${(said[name] += 1)}`);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

const texts = (page, which) => page.locator(`#messages li:not(.more)${which} p`).allTextContents();

const commands = {
  async start(...names) {
    browser = await chromium.launch({ executablePath: browserPath(), args: flags });
    for (const name of names) await open(name);
  },
  /** Who has an account, by Django's own view. */
  async sign_in_again(name) {
    const page = pages[name];
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("Username").fill(name);
    await page.getByLabel("Password").fill("a good password");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.locator("#say").waitFor();
    await page.evaluate(() => (globalThis.since = "the start"));
  },
  async open_room(name, title) {
    await pages[name].getByLabel("Name of a new room").fill(title);
    await pages[name].getByLabel("Name of a new room").press("Enter");
    await pages[name].locator("#title", { hasText: title }).waitFor();
    await pages[name].evaluate(() => (globalThis.since = "the start"));
  },
  async join_room(name, title) {
    await pages[name].reload();
    await pages[name].getByRole("button", { name: title }).click();
    await pages[name].locator("#title", { hasText: title }).waitFor();
    await pages[name].evaluate(() => (globalThis.since = "the start"));
  },
  async enter(name, title) {
    await pages[name].locator("nav a", { hasText: title }).click();
    await pages[name].locator("#title", { hasText: title }).waitFor();
  },
  say,
  talk() {
    const stop = { now: false };
    talking = { stop, done: talk(stop).catch((error) => stop.now || complaints.push(String(error))) };
  },
  /** How many each has said. */
  async hush() {
    talking.stop.now = true;
    await talking.done;
    return said;
  },
  /** Waits until a page shows this text, and nothing that waits to be confirmed. */
  async shows(name, text) {
    const page = pages[name];
    const message = page.locator("#messages li:not(.waits) p").getByText(text, { exact: true });
    await message.last().waitFor();
    await page.waitForFunction(() => !document.querySelector("#messages .waits"), undefined, { timeout: PATIENCE });
    return texts(page, "");
  },
  /** Waits until the page says how it is connected: "" or "reconnecting …". */
  async status(name, text) {
    const is = (wanted) => document.getElementById("status").textContent === wanted;
    await pages[name].waitForFunction(is, text, { timeout: PATIENCE });
  },
  /** Waits for so many notifications, and gives their texts, the newest first. */
  async inbox(name, count) {
    const page = pages[name];
    await page.locator(`#inbox li >> nth=${count - 1}`).waitFor({ state: "attached" });
    return (await page.locator("#inbox li").allTextContents()).map((text) => text.replace(/ \d\d:\d\d.*$/, ""));
  },
  picture: (name, path) => pages[name].screenshot({ path }),
  /** What went wrong in the pages, and whether they are the ones that were opened. */
  async check() {
    for (const [name, page] of Object.entries(pages)) {
      if ((await page.evaluate(() => globalThis.since)) !== "the start") complaints.push(`${name}: the page was loaded again`);
    }
    return complaints;
  },
};

try {
  for await (const line of createInterface({ input: process.stdin })) {
    const [name, ...given] = JSON.parse(line);
    let answer;
    try {
      answer = { value: (await commands[name](...given)) ?? null };
    } catch (error) {
      answer = { error: String(error) };
    }
    console.log(JSON.stringify(answer));
  }
} finally {
  if (talking) talking.stop.now = true;
  await browser?.close();
}
