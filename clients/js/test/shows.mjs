// Opens a page in a real browser and waits until its heading is what is wanted.
//
//   PAGE       the page's URL
//   COOKIE     NAME=VALUE, shown to the page's host
//   WANTED     the text of its `h1`
//   CHROMIUM   the browser, default: `chromium` on the path
//
// Exit code 0 if it came within 30 s, else 1 with what the page shows and says instead.
import { chromium } from "playwright-core";
import { browserPath, flags } from "./chromium.mjs";

const { PAGE, COOKIE, WANTED } = process.env;
const browser = await chromium.launch({ executablePath: browserPath(), args: flags });
const page = await browser.newPage();
const said = [];
page.on("console", (message) => said.push(message.text()));
page.on("pageerror", (error) => said.push(String(error)));
try {
  const [name, value] = COOKIE.split(/=(.*)/s);
  await page.context().addCookies([{ name, value, url: new URL("/", PAGE).href }]);
  await page.goto(PAGE);
  await page.locator("h1", { hasText: WANTED }).waitFor({ timeout: 30_000 });
} catch (error) {
  console.error(`FAILED: ${error.stack ?? error}\n${await page.content()}\n${said.join("\n")}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
