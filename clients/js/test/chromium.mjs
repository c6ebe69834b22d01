// The browser that the tests drive.
import { execFileSync } from "node:child_process";

/** `CHROMIUM`, or the one on the path. */
export function browserPath() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  try {
    return execFileSync("sh", ["-c", "command -v chromium || command -v google-chrome"], { encoding: "utf8" }).trim();
  } catch {
    throw new Error("chromium is missing: run ./test.sh, or apt-get install chromium");
  }
}

export const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
