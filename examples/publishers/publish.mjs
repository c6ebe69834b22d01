// Publishes durably with one XADD:  node publish.mjs ID TO MESSAGE
//
// TO is user:NAME for a notification, room:NAME for a chat message. The same ID again changes nothing.
// REDIS_URL says where Redis is.  npm install redis

import { createClient } from "redis";

const [id, to, message] = process.argv.slice(2);
const client = createClient({
  url: process.env.REDIS_URL ?? "redis://127.0.0.1:6379",
  socket: { reconnectStrategy: (tries) => (tries < 5 ? 200 : false) },
});
client.on("error", (error) => console.error(error.message));
await client.connect();
const entry = await client.xAdd("gateway:events", "*", {
  id,
  source: "shop",
  type: to.startsWith("user:") ? "notification" : "chat",
  to,
  data: JSON.stringify({ message, from_user: "shop" }),
});
console.log(entry);
await client.close();
