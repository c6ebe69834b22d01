// The operators' page: signing in, and which view is shown.
import { session, signIn, signOut, whenSignedOut } from "./api.js";
import { $, h, toast } from "./dom.js";
import * as overview from "./overview.js";
import * as publish from "./publish.js";
import * as rooms from "./rooms.js";
import * as stream from "./stream.js";
import * as users from "./users.js";

const VIEWS = { "": overview, users, rooms, stream, publish };
const TITLES = { "": "Overview", users: "Users", rooms: "Rooms", stream: "Stream", publish: "Publish" };

let stop = () => {};
let ending = 0;
let signedIn = false;

/** The view and what it shows, by the address: `#/rooms/lobby`. */
function wanted() {
  const [, view = "", name] = location.hash.split("/");
  try {
    return view in VIEWS ? [view, name && decodeURIComponent(name)] : ["", undefined];
  } catch {
    return [view, undefined];
  }
}

function show() {
  if (!signedIn) return;
  stop();
  const [view, name] = wanted();
  // A view that goes on loading writes into an element that nobody sees any more.
  const root = h("div");
  $("view").replaceChildren(root);
  for (const link of $("nav").querySelectorAll("a")) {
    if (link.hash.slice(2) === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name ? `${name} · ` : ""}${TITLES[view]} · Channel Gateway`;
  stop = VIEWS[view].show(root, name || undefined) ?? (() => {});
}

function askToSignIn(reason = "") {
  signedIn = false;
  stop();
  clearTimeout(ending);
  $("view").replaceChildren();
  $("confirm").close();
  $("app").hidden = true;
  $("sign-in").hidden = false;
  $("sign-in-error").textContent = reason;
  document.title = "Operators · Channel Gateway";
  $("key").focus();
}

async function begin() {
  let told;
  try {
    told = await session();
  } catch (error) {
    return askToSignIn(error.message);
  }
  if (!told?.signed_in) return askToSignIn();
  signedIn = true;
  $("sign-in").hidden = true;
  $("app").hidden = false;
  $("node-name").textContent = told.node;
  $("node-name").title = `Version ${told.version}`;
  $("sign-out").hidden = !told.needs_key;
  clearTimeout(ending);
  if (told.ends) ending = setTimeout(() => askToSignIn("The session has ended."), Math.min(new Date(told.ends) - Date.now(), 2 ** 31 - 1));
  show();
}

$("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = $("sign-in-button");
  button.disabled = true;
  $("sign-in-error").textContent = "";
  try {
    await signIn($("key").value);
    $("key").value = "";
    await begin();
  } catch (error) {
    $("sign-in-error").textContent = error.message;
    $("key").select();
  } finally {
    button.disabled = false;
  }
});
$("sign-out").addEventListener("click", async () => {
  await signOut().catch((error) => toast(error.message, true));
  askToSignIn();
});
$("skip").addEventListener("click", () => $("view").focus());
whenSignedOut(() => signedIn && askToSignIn("The session has ended."));
addEventListener("hashchange", () => {
  if (location.hash.startsWith("#/") || !location.hash) {
    show();
    $("view").focus();
  }
});
begin();
