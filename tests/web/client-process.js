/**
 * A process with one device, for tests that kill it. Its one argument is JSON: what to send, if anything, whether there
 * is a network, and whether an upload stalls half way. It ends once the device has said everything that it can say.
 *
 * @module
 */

import path from "node:path";

import { Client, Device, FileStore, VideoFolder } from "../../gateway/web/client.js";

const { address, clientId, bearer, folder, send, stalls, offline } = JSON.parse(process.argv[2]);

/** @param {AsyncIterable<Uint8Array>} bytes */
async function* stalled(bytes) {
  let soFar = 0;
  for await (const some of bytes) {
    yield some;
    soFar += some.length;
    if (soFar < 512 * 1024) continue;
    console.log("half");
    await new Promise(() => {});
  }
}

/** @type {typeof globalThis.fetch} */
const stalling = (url, init) => {
  if (init?.method !== "PUT") return fetch(url, init);
  const bytes = /** @type {AsyncIterable<Uint8Array>} */ (/** @type {unknown} */ (init.body));
  const body = /** @type {BodyInit} */ (/** @type {unknown} */ (stalled(bytes)));
  return fetch(url, { ...init, body });
};

const client = new Client(address, bearer, { deviceId: "phone", clientId, ...(stalls ? { fetch: stalling } : {}) });
const videos = new VideoFolder(client, path.join(folder, "videos"));
const device = new Device(client, new FileStore(path.join(folder, "record")), videos);
await device.open();
if (offline) device.network(false);
if (send) await device.send(send.source, send.recipientId);
if (!offline) await device.settled();
await device.close();
console.log("closed");
