// What the tests against a real gateway start: a node, a wire to it, a browser.
import { execFileSync, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createServer } from "node:http";
import net from "node:net";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

const target = process.env.CARGO_TARGET_DIR ?? fileURLToPath(new URL("../../../target", import.meta.url));
const binary = process.env.GATEWAY_BINARY ?? `${target}/debug/gateway`;

/** A node of its own, with `--dev`, an in-memory layer and database, on free ports. */
export async function startNode(settings = {}, port = 0) {
  if (!existsSync(binary)) throw new Error(`${binary} is missing: cargo build -p gateway`);
  const environment = {
    PATH: process.env.PATH,
    GATEWAY_DEV: "true",
    RUST_LOG: "warn",
    GATEWAY_LISTEN: `127.0.0.1:${port}`,
    GATEWAY_INTERNAL_LISTEN: "127.0.0.1:0",
    GATEWAY_DATABASE_URL: "sqlite::memory:",
    GATEWAY_LIMITS__CONNECTIONS_PER_USER: "0",
    ...settings,
  };
  const process_ = spawn(binary, ["serve"], { env: environment, stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(process_, "exit");
  let log = "";
  const url = await new Promise((resolve, reject) => {
    process_.stdout.on("data", (text) => {
      log += text;
      const found = /open (http:\/\/[\d.:]+\/)/.exec(log);
      if (found) resolve(found[1]);
    });
    exited.then(([code]) => reject(new Error(`the node ended with ${code}: ${log}`)));
  });
  return {
    url,
    port: Number(new URL(url).port),
    socket: url.replace("http", "ws"),
    async token(username) {
      const answer = await fetch(`${url}dev/login`, { method: "POST", body: JSON.stringify({ username }) });
      return (await answer.json()).token;
    },
    signal: (signal) => process_.kill(signal),
    exited,
    async stop() {
      process_.kill("SIGCONT");
      process_.kill("SIGKILL");
      await exited;
    },
  };
}

/** A line to a port that can die without a word: what was sent is neither taken nor refused. */
export async function line(port) {
  let alive = true;
  const pairs = new Set();
  const server = net.createServer((near) => {
    const far = net.connect(port, "127.0.0.1");
    const pair = [near, far];
    pairs.add(pair);
    pair.dead = !alive;
    for (const [from, to] of [[near, far], [far, near]]) {
      from.on("data", (data) => pair.dead || to.write(data));
      from.on("error", () => {});
      from.on("close", () => pair.dead || (pairs.delete(pair), to.destroy()));
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: server.address().port,
    /** Those that are open now die; new ones live, unless they are to die too. */
    die(newOnesToo = false) {
      alive = !newOnesToo;
      for (const pair of pairs) pair.dead = true;
    },
    live: () => (alive = true),
    close() {
      for (const pair of pairs) for (const socket of pair) socket.destroy();
      server.close();
    },
  };
}

/** A site of another origin than the gateway, whose pages are what `pages` says. */
export async function site(pages) {
  const server = createServer((request, response) => {
    const page = pages[request.url];
    response.writeHead(page ? 200 : 404, { "Content-Type": "text/html; charset=utf-8" });
    response.end(page ?? "");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { url: `http://127.0.0.1:${server.address().port}`, close: () => (server.closeAllConnections(), server.close()) };
}

export async function startBrowser() {
  const { chromium } = await import("playwright-core");
  const find = () => execFileSync("sh", ["-c", "command -v chromium || command -v google-chrome"], { encoding: "utf8" }).trim();
  return chromium.launch({
    executablePath: process.env.CHROMIUM || find(),
    ignoreDefaultArgs: ["--disable-back-forward-cache"],
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
}
