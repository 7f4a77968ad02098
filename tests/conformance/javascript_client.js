/**
 * The client for JavaScript as a client under test, in Node. What is asked of it, and what it answers, stands in
 * `docs/conformance.md`.
 *
 * @module
 */

import path from "node:path";
import readline from "node:readline";

import { Client, Device, FileStore, ReceivedStatus, VideoFolder, receivedStatus } from "../../gateway/web/client.js";

/** @typedef {{ [name: string]: any, do: string, id?: number }} Command */

/** Say a line. Where stdout is a pipe it is with the system when this returns. @param {object} members */
function tell(members) {
  process.stdout.write(`${JSON.stringify(members)}\n`);
}

/** Where tokens come from: the first from the environment, each other one is asked for. */
class Tokens {
  /** @type {string | null} */
  #first;
  /** @type {((token: string) => void)[]} */
  #waiting = [];

  /** @param {string} first */
  constructor(first) {
    this.#first = first;
  }

  /** @returns {string | Promise<string>} */
  next() {
    const first = this.#first;
    this.#first = null;
    if (first !== null) return first;
    tell({ tell: "token" });
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** @param {string} token */
  give(token) {
    for (const resolve of this.#waiting.splice(0)) resolve(token);
  }
}

/**
 * @param {Device} device
 * @param {VideoFolder} videos
 */
async function tellChanges(device, videos) {
  for await (const { key, video_id, peer_id, status, reason } of device.changes()) {
    const file = status === ReceivedStatus.READY ? videos.path(key) : null;
    tell({ tell: "change", key, video_id, peer: peer_id, status, reason, file });
  }
}

/** What an app would show. @param {Device} device */
function state(device) {
  return {
    sent: device.sent.map(({ key, video_id, status }) => ({ key, video_id, status })),
    received: device.received.map((video) => ({ video_id: video.video_id, status: receivedStatus(video) })),
  };
}

/**
 * Do as one line says; what its answer has beside the id.
 *
 * @param {Device} device
 * @param {Command} command
 * @returns {Promise<object>}
 */
async function done(device, command) {
  switch (command.do) {
    case "send":
      return { key: await device.send(command.file, command.to) };
    case "viewed":
      await device.viewed(command.video_id);
      return {};
    case "delete":
      await device.delete(command.key);
      return {};
    case "foreground":
      device.foreground(command.active);
      return {};
    case "network":
      device.network(command.online);
      return {};
    case "register":
      await device.register(command.platform, command.token);
      return {};
    case "push":
      await device.handlePush(command.payload);
      return {};
    case "state":
      return state(device);
    default:
      throw new Error(`what is ${command.do}?`);
  }
}

/**
 * Do as the lines say, in their order, until one says to exit or there are no more. A push may take a while.
 *
 * @param {Device} device
 * @param {Tokens} tokens
 */
async function obey(device, tokens) {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const command = /** @type {Command} */ (JSON.parse(line));
    if (command.do === "exit") return;
    if (command.do === "token") {
      tokens.give(command.token);
      continue;
    }
    const answered = done(device, command).then((answer) => tell({ answer: command.id, ...answer }));
    if (command.do !== "push") await answered;
  }
}

/** @param {string} name */
function given(name) {
  const text = process.env[`CONFORMANCE_${name}`];
  if (!text) throw new Error(`CONFORMANCE_${name} is not set`);
  return text;
}

const folder = given("STATE");
const tokens = new Tokens(given("TOKEN"));
const client = new Client(given("ADDRESS"), () => tokens.next(), { clientId: given("CLIENT_ID"), deviceId: given("DEVICE_ID") });
const videos = new VideoFolder(client, path.join(folder, "videos"));
const device = await new Device(client, new FileStore(path.join(folder, "record")), videos).open();
const telling = tellChanges(device, videos);
await obey(device, tokens);
await device.close();
await telling;
process.exit(0); // connections that are kept for later would keep it, too
