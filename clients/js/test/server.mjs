// A WebSocket server for the unit tests: real sockets, and the answers the test wants.
import { once } from "node:events";
import { WebSocketServer } from "ws";

export async function serve(onFrame = () => {}, { port = 0, onConnect = () => {} } = {}) {
  const wss = new WebSocketServer({ host: "127.0.0.1", port });
  await once(wss, "listening");
  const server = {
    url: `ws://127.0.0.1:${wss.address().port}/ws/chat/lobby/`,
    port: wss.address().port,
    frames: [], // every frame received, in order, over all connections
    offers: [], // the subprotocols each connection offered
    sockets: [],
    wss,
    waiting: new Set(),
    /** Waits for the first state of the server that `found` accepts. */
    async until(found, what = "the condition") {
      for (;;) {
        const value = found(server);
        if (value) return value;
        await new Promise((resolve, reject) => {
          const timer = setTimeout(() => reject(new Error(`waited 5 s for ${what}`)), 5_000);
          server.waiting.add(() => (clearTimeout(timer), resolve()));
        });
      }
    },
    changed() {
      const waiting = [...server.waiting];
      server.waiting.clear();
      for (const wake of waiting) wake();
    },
    async close() {
      for (const socket of wss.clients) socket.terminate();
      await new Promise((resolve) => wss.close(resolve));
    },
  };
  wss.on("connection", (socket, request) => {
    const number = server.sockets.push(socket);
    server.offers.push((request.headers["sec-websocket-protocol"] ?? "").split(/\s*,\s*/));
    socket.reply = (frame) => socket.send(JSON.stringify(frame));
    socket.on("message", (data) => {
      const frame = JSON.parse(data);
      server.frames.push(frame);
      onFrame(frame, socket, number);
      server.changed();
    });
    socket.on("error", () => {});
    socket.on("close", () => server.changed());
    onConnect(socket, number);
    server.changed();
  });
  return server;
}

let seq = 0;
export const ack = (frame) => ({ type: "ack", client_id: frame.client_id, id: `id-${++seq}`, seq, date: "2026-01-01T00:00:00.000000Z" });
export const chat = (seq, extra) => ({ type: "chat", id: `c${seq}`, seq, group_name: "lobby", display_name: "lobby", message: `m${seq}`, from_user: "bob", date: "2026-01-01T00:00:00.000000Z", ...extra });
