// A page of the site in Chromium: says what it sees, one JSON text a line, until its input ends.
import { createRequire } from "node:module";
import { browserPath, flags } from "../../js/test/chromium.mjs";

const { chromium } = createRequire(new URL("../../js/package.json", import.meta.url))("playwright-core");
const { url, session } = JSON.parse(process.argv[2]);
const say = (value) => console.log(JSON.stringify(value));
setTimeout(() => process.exit(1), 60_000).unref();

const browser = await chromium.launch({ executablePath: browserPath(), args: flags });
try {
  const context = await browser.newContext();
  await context.addCookies([{ name: "sessionid", value: session, url }]);
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !message.location().url.endsWith("/favicon.ico")) complaints.push(message.text());
  });
  let heard;
  const notified = new Promise((resolve) => (heard = resolve));
  await page.exposeFunction("heard", heard);
  await page.goto(url);
  const state = await page.evaluate(
    () =>
      new Promise((resolve) => {
        const start = (gateway) => {
          gateway.on("notification", (frame) => globalThis.heard(frame.message));
          // The answer comes once the socket is open and ready.
          gateway.request({ cate: "rooms" }).then(() => resolve(gateway.state), (error) => resolve(String(error)));
        };
        if (window.gateway) start(window.gateway);
        else document.addEventListener("gateway", (event) => start(event.detail));
        setTimeout(() => resolve(`not in time: ${window.gateway?.state}`), 20_000);
      }),
  );
  say({ state, complaints });
  say({ message: await notified });
  for await (const _ of process.stdin);
} finally {
  await browser.close();
}
