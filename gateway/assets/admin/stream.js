// The stream of durable events: what waits, and the letters that are dead.
import { call, segment } from "./api.js";
import { attempt, confirmed, count, every, h, section, their, time } from "./dom.js";
import { data } from "./rooms.js";

const EVERY = 3_000; // ms
const PAGE = 20;
const ADDED = ["reason", "deliveries", "at"];

export function show(root) {
  const heading = h("h1", {}, "Stream");
  const figures = h("ul.tiles.figures", { "aria-label": "The stream" });
  const list = h("ol.letters");
  const none = h("p.none", { hidden: true }, "No letter is dead.");
  const more = h("button.quiet", { type: "button", hidden: true }, "Older ones");
  const fresh = h("p.hint", { role: "status" });
  const letters = section("Dead letters", h("p.hint", {}, "Events that can never work as they are. Mend the cause, then try again; or drop what nobody misses."), fresh, none, list, more);
  root.append(heading, figures, letters);
  let dead = null;

  const figure = (title, value) => h("li.tile", {}, h("span.tile-title", {}, title), h("strong.now", {}, value));

  function add(page) {
    list.append(...page.dead.map(letter));
    more.hidden = !page.has_more;
    none.hidden = list.childElementCount > 0;
  }

  async function reload() {
    const page = await call("GET", `dead?limit=${PAGE}`);
    list.replaceChildren();
    add(page);
  }

  function gone(node) {
    const next = node.nextElementSibling ?? node.previousElementSibling;
    node.remove();
    dead = dead === null ? null : dead - 1;
    none.hidden = list.childElementCount > 0;
    (next?.querySelector("button") ?? heading).focus();
    if (!list.childElementCount && !more.hidden) reload().catch(() => {});
  }

  function letter({ dead_id: id, fields, cut, has_more_fields: cutFields }) {
    const node = h("li");
    node.dataset.id = id;
    const retry = h("button.small", { type: "button", onclick: async () => {
      if (await attempt(retry, () => call("POST", `dead/${segment(id)}/retry`), "It is in the stream again.")) gone(node);
    } }, "Try again");
    const drop = h("button.small", { type: "button", onclick: async () => {
      if (!(await confirmed("Drop this event?", `${fields.type ?? "An event"} to ${fields.to ?? "nobody"} is deleted for good.`, "Drop"))) return;
      if (await attempt(drop, () => call("DELETE", `dead/${segment(id)}`), "It is dropped.")) gone(node);
    } }, "Drop");
    const own = Object.entries(fields).filter(([name]) => !ADDED.includes(name) && name !== "data");
    node.append(
      h("p.note-head", {}, their(fields.reason ?? "no reason", "strong"), fields.at && time(fields.at), fields.deliveries && h("span.muted", {}, fields.deliveries === "1" ? "taken once" : `taken ${fields.deliveries} times`), retry, drop),
      h("dl", {}, own.map(([name, value]) => [h("dt", {}, their(name)), h("dd", {}, their(value), cut?.[name] ? h("span.muted", {}, ` … ${count(cut[name])} bytes`) : null)])),
      ...(fields.data === undefined ? [] : [data(fields.data)]),
      ...(cutFields ? [h("p.hint", {}, "There are more fields.")] : []),
      h("p.hint", {}, `Its id is ${id}.`));
    return node;
  }

  more.addEventListener("click", () => attempt(more, async () => {
    const last = list.lastElementChild?.dataset.id;
    add(await call("GET", `dead?limit=${PAGE}${last ? `&before=${last}` : ""}`));
  }));

  const stop = every(EVERY, async () => {
    let stream;
    try {
      stream = await call("GET", "stream");
    } catch (error) {
      figures.replaceChildren();
      letters.hidden = error.status === 404;
      const text = error.status === 404 ? "There is no stream: this node runs alone, on the in-memory layer." : error.message;
      figures.append(h("li.tile.wide", {}, h("span.wrong", {}, text)));
      return;
    }
    letters.hidden = false;
    figures.replaceChildren(figure("Waiting", count(stream.length)), figure("Taken by a node", count(stream.pending)),
      figure("Oldest of those", stream.oldest_pending ? time(stream.oldest_pending) : "–"), figure("Dead letters", count(stream.dead)));
    if (dead === null) await reload();
    else if (stream.dead !== dead) {
      const button = h("button.quiet", { type: "button", onclick: () => attempt(button, async () => (await reload(), fresh.replaceChildren())) }, "Show them");
      if (stream.dead > dead) fresh.replaceChildren("There are new ones. ", button);
    }
    dead = stream.dead;
  });
  return stop;
}
