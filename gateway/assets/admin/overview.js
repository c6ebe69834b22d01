// Nodes, how they are and what they do; the parts of the one that answers.
import { call, readiness } from "./api.js";
import { chart } from "./charts.js";
import { bytes, chip, count, duration, every, h, rate, section, table, their } from "./dom.js";

const EVERY = 2_000; // ms

const STATES = { ready: ["good", "ready"], not_ready: ["bad", "not ready"], draining: ["warn", "draining"], silent: ["bad", "no answer"] };
const COUNTS = ["opened", "refused", "frames_received", "frames_sent", "events_published", "events_received", "cpu_seconds"];

/** What a node did in a second, between two states of it; null where that cannot be told. */
function rates(state, before) {
  const seconds = before ? state.uptime_seconds - before.uptime_seconds : 0;
  // A node that was started again counts from 0, its time too.
  if (!(seconds > 0)) return null;
  return Object.fromEntries(COUNTS.map((name) => [name, Math.max(0, state[name] - before[name]) / seconds]));
}

const percent = (value) => (value === null ? "–" : `${Math.round(value * 100)} %`);

export function show(root) {
  const charts = {
    sockets: chart("Sockets", count),
    opened: chart("Connects a second", rate),
    refused: chart("Refused a second", rate),
    frames_received: chart("Frames in, a second", rate),
    frames_sent: chart("Frames out, a second", rate),
    events_received: chart("Events a second", rate),
    cpu_seconds: chart("Processor, of a core", percent),
    backlog: chart("Waiting in the stream", count),
  };
  const [health, nodes, workers] = [h("p.health", { role: "status" }), h("div"), h("div")];
  const tiles = h("ul.tiles", { "aria-label": "All nodes together" });
  tiles.append(...Object.values(charts).map(({ node }) => node));
  charts.backlog.node.hidden = true;
  root.append(h("h1", {}, "Overview"), health, tiles, section("Nodes", nodes), workers);

  let before = new Map();
  let [saidOfHealth, saidOfNodes] = ["", ""];

  function showHealth(report, failed) {
    const parts = report ? Object.entries(report).filter(([, value]) => value === "unavailable").map(([part]) => part.replaceAll("_", " ")) : [];
    let [kind, text] = ["good", "This node is ready."];
    if (!report) [kind, text] = ["bad", failed];
    else if (report.draining) [kind, text] = ["warn", "This node is leaving: it takes no new sockets."];
    else if (!report.ready) [kind, text] = ["bad", `This node is not ready: ${parts.join(", ") || "starting"} unavailable.`];
    else if (report.degraded?.length || parts.length) [kind, text] = ["warn", `This node is ready, but something is wrong: ${[...(report.degraded ?? []), ...parts].join(", ")}.`];
    if (`${kind}${text}` === saidOfHealth) return;
    saidOfHealth = `${kind}${text}`;
    health.className = `health ${kind}`;
    health.textContent = text;
  }

  function showNodes(states) {
    const rows = states.map((state) => {
      const [kind, text] = STATES[state.state] ?? ["warn", state.state];
      const per = rates(state, before.get(state.node));
      const silent = state.state === "silent";
      const unless = (value) => (silent ? "–" : value);
      return [
        their(state.node),
        chip(kind, text),
        unless(state.version),
        unless(count(state.sockets)),
        unless(count(state.users)),
        unless(`${rate(per && per.frames_received)} / ${rate(per && per.frames_sent)}`),
        unless(percent(per && per.cpu_seconds)),
        unless(bytes(state.memory_bytes)),
        unless(h("span", { title: state.started }, duration(state.uptime_seconds))),
      ];
    });
    const columns = [["Node"], ["State"], ["Version"], ["Sockets", "number"], ["Users", "number"], ["Frames in / out, a second", "number"], ["Processor", "number"], ["Memory", "number"], ["Up", "number"]];
    const versions = new Set(states.map((state) => state.version).filter(Boolean));
    const mixed = versions.size > 1 && h("p.hint", {}, "Nodes of different versions run beside each other.");
    // Who has the table's focus keeps it.
    const place = nodes.querySelector(".table");
    const focused = place && place === document.activeElement;
    nodes.replaceChildren(table("Nodes", columns, rows, "No node answers."), ...(mixed ? [mixed] : []));
    if (focused) nodes.querySelector(".table")?.focus();
  }

  function showWorkers(list) {
    const shown = JSON.stringify(list);
    if (shown === saidOfNodes) return;
    saidOfNodes = shown;
    if (!list.length) return workers.replaceChildren();
    const kinds = { ok: "good", silent: "bad", draining: "warn" };
    const rows = list.map((worker) => [their(worker.path), their(worker.worker), their(worker.app), chip(kinds[worker.state] ?? "warn", worker.state), count(worker.sockets), count(worker.opening)]);
    const columns = [["Path"], ["Worker"], ["Application"], ["State"], ["Sockets", "number"], ["Opening", "number"]];
    workers.replaceChildren(section("Workers of Python consumers", h("p.hint", {}, "Those that the node of this page is linked to."), table("Workers", columns, rows, "")));
  }

  async function look() {
    let answer;
    try {
      answer = await call("GET", "nodes");
    } catch (error) {
      return showHealth(null, error.message);
    }
    const states = answer.states.filter((state) => state.state !== "silent");
    const all = states.map((state) => rates(state, before.get(state.node))).filter(Boolean);
    const sum = (name) => (all.length ? all.reduce((total, each) => total + each[name], 0) : null);
    for (const name of COUNTS) charts[name]?.push(sum(name));
    charts.sockets.push(states.reduce((total, state) => total + state.sockets, 0));
    showNodes(answer.states);
    showWorkers(answer.workers);
    before = new Map(states.map((state) => [state.node, state]));
    const [report, stream] = await Promise.allSettled([readiness(), call("GET", "stream")]);
    showHealth(report.value, report.reason?.message ?? "The node cannot be reached.");
    charts.backlog.node.hidden = stream.reason?.status === 404;
    if (stream.value) charts.backlog.push(stream.value.length);
  }

  return every(EVERY, look);
}
