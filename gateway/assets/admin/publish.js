// A form for what services publish otherwise.
import { call } from "./api.js";
import { attempt, confirmed, field, h, section, select, table, their, time } from "./dom.js";

const KINDS = [["notification", "Notification to users"], ["chat", "Chat message into rooms"], ["announcement", "Announcement to everybody who is connected"], ["envelope", "An envelope as JSON"]];
const EXAMPLE = `{
  "type": "room.put",
  "to": "room:lobby",
  "data": { "display_name": "The lobby" }
}`;

/** What is typed as JSON, or an error that says which field it is. */
function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what} is not JSON: ${error.message}`);
  }
}

export function show(root) {
  const kind = select(KINDS);
  const to = h("textarea", { rows: 2, required: true, dir: "auto", spellcheck: "false", autocapitalize: "none" });
  const message = h("textarea", { rows: 3, required: true, dir: "auto" });
  const from = h("input", { value: "gateway", required: true, maxLength: 150, autocomplete: "off", dir: "auto" });
  const data = h("textarea.code", { rows: 3, spellcheck: "false", placeholder: '{"order": 42}' });
  const id = h("input", { maxLength: 128, autocomplete: "off", spellcheck: "false" });
  const envelope = h("textarea.code", { rows: 9, required: true, spellcheck: "false", value: EXAMPLE });
  const rows = {
    to: field("To", to, "One name a line."),
    message: field("Message", message),
    from: field("From", from),
    data: field("Data, an object of the site's own (optional)", data, "JSON, up to 16 KiB; clients find it beside the text."),
    id: field("Identity (optional)", id, "The same again changes nothing. Without one it is a new event each time."),
    envelope: field("Envelope, or a list of them", envelope, "As POST /api/events takes it."),
  };
  const shown = { notification: ["to", "message", "from", "data", "id"], chat: ["to", "message", "from", "data", "id"], announcement: ["message", "data"], envelope: ["envelope"] };
  const button = h("button.primary", { type: "submit" }, "Publish");
  const results = h("div", { role: "status" });

  const fit = () => {
    for (const [name, row] of Object.entries(rows)) {
      row.hidden = !shown[kind.value].includes(name);
      // What is not shown must not keep the form from being sent.
      for (const input of row.querySelectorAll("input, textarea")) input.disabled = row.hidden;
    }
    rows.to.querySelector("label").textContent = kind.value === "chat" ? "To these rooms" : "To these users";
  };
  kind.addEventListener("change", fit);
  fit();

  const own = () => (data.value.trim() ? parsed(data.value, "The data") : undefined);
  function event() {
    const names = to.value.split("\n").map((name) => name.trim()).filter(Boolean);
    const prefix = kind.value === "chat" ? "room" : "user";
    const object = own();
    return {
      type: kind.value, source: "admin", ...(id.value && { id: id.value }), to: names.map((name) => `${prefix}:${name}`),
      data: { message: message.value, from_user: from.value, ...(object !== undefined && { data: object }) },
    };
  }

  async function publish() {
    if (kind.value === "announcement") {
      const object = own();
      await call("POST", "announce", { message: message.value, ...(object !== undefined && { data: object }) });
      results.replaceChildren(h("p.none", {}, "It is on its way to everybody who is connected."));
      return;
    }
    const body = kind.value === "envelope" ? parsed(envelope.value, "The envelope") : event();
    const answer = await call("POST", "events", body);
    const lines = answer.results.map((one) => [their(one.to), one.seq ?? "–", one.date ? time(one.date) : "–", one.repeated ? "a repeat, nothing changed" : one.expired ? "expired" : "done", one.id ? their(one.id) : "–"]);
    results.replaceChildren(table("Results", [["To"], ["Place", "number"], ["Stored"], ["Outcome"], ["Id", "code"]], lines, "Nothing."));
  }

  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    if (kind.value === "announcement" && !(await confirmed("Tell everybody?", "Every client that is connected to any node shows it or not, as the site's page does.", "Announce"))) return;
    results.replaceChildren();
    await attempt(button, publish, "Published.");
  } }, field("What", kind), ...Object.values(rows), button);
  root.append(h("h1", {}, "Publish"), h("div.columns", {}, section("An event", form), section("Results", results)));
  return undefined;
}
