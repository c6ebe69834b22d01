// Calls to the API of the node that this page is from. There is nothing here that the API does not offer everybody.

const PATIENCE = 25_000; // ms

export class Refused extends Error {
  constructor(status, detail, id) {
    super(detail);
    Object.assign(this, { status, id });
  }
}

let signedOut = () => {};
/** What is to be done when the session has ended. */
export const whenSignedOut = (run) => (signedOut = run);

/** A name as a part of a path. Browsers take dots for steps, encoded or not. */
export function segment(name) {
  if (name === "" || name === "." || name === "..") throw new Refused(400, `“${name}” is not a valid name`);
  return encodeURIComponent(name);
}

async function send(method, path, body) {
  const headers = { "X-Gateway-Page": "admin", Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(`../${path}`, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(PATIENCE),
    });
  } catch (error) {
    throw new Refused(0, error.name === "TimeoutError" ? "The node did not answer in time." : "The node cannot be reached.");
  }
  const answer = await response.json().catch(() => null);
  return { response, answer };
}

/** Calls the API: the answer, or an error with what the node says. */
export async function call(method, path, body) {
  const { response, answer } = await send(method, `api/${path}`, body);
  if (response.ok && answer !== null) return answer;
  if (response.status === 401) signedOut();
  throw new Refused(response.status, answer?.detail ?? `The node answered ${response.status}.`, response.headers.get("x-request-id"));
}

/** The parts of the node and how they are; also with 503. */
export const readiness = async () => (await send("GET", "readyz")).answer;

export const session = async () => (await send("GET", "admin/session")).answer;
export const signOut = async () => (await send("DELETE", "admin/session")).answer;

export async function signIn(key) {
  const { response, answer } = await send("POST", "admin/session", { key });
  if (response.ok) return answer;
  throw new Refused(response.status, answer?.detail ?? `The node answered ${response.status}.`);
}
