/**
 * What the tests of the client for JavaScript have in common: apps of a gateway that runs, and networks that fail.
 *
 * @module
 */

import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { Client, Device, FileStore, VideoFolder } from "../../gateway/web/client.js";

/** @typedef {import("../../gateway/web/client.js").Change} Change */
/** @typedef {import("../../gateway/web/client.js").Packet} Packet */
/** @typedef {import("../../gateway/web/client.js").ClientOptions} ClientOptions */
/** @typedef {import("../../gateway/web/client.js").DeviceOptions} DeviceOptions */
/** @typedef {import("../../gateway/web/client.js").Store} Store */
/** @typedef {import("../../gateway/web/client.js").Token} Token */

/** @param {string} name */
function given(name) {
  const text = process.env[name];
  if (!text) throw new Error(`${name} is not set: these tests are started by test_client.py`);
  return text;
}

export const GATEWAY = given("TEST_GATEWAY");
const SECRET = given("TEST_SECRET");
const PYTHON = given("TEST_PYTHON");

/** A MiB: several chunks. */
export const VIDEO = Uint8Array.from({ length: 1 << 20 }, (_, at) => at % 256);

export const ALL = ["uploaded", "notified", "downloaded", "viewed"];

/**
 * A token of the gateway's secret; a negative `ttlS` has expired.
 *
 * @param {string} clientId
 * @param {{ ttlS?: number, device?: string }} [options]
 */
export function token(clientId, { ttlS = 3600, device } = {}) {
  const claims = { sub: clientId, exp: Math.floor(Date.now() / 1000 + ttlS), ...(device ? { device } : {}) };
  const encoded = (/** @type {object} */ part) => Buffer.from(JSON.stringify(part)).toString("base64url");
  const parts = [encoded({ alg: "HS256", typ: "JWT" }), encoded(claims)];
  const signature = createHmac("sha256", SECRET).update(parts.join(".")).digest("base64url");
  return [...parts, signature].join(".");
}

let names = 0;

/**
 * A client's id that nobody had before.
 *
 * @param {string} name
 */
export function fresh(name) {
  names += 1;
  return `${name}-${process.pid}-${names}`;
}

/** A folder of this test's; removed when it ends. @param {import("node:test").TestContext} t */
export function folderOf(t) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "client-"));
  t.after(() => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/**
 * @param {() => unknown} condition
 * @param {string} what
 * @param {number} seconds
 */
export async function until(condition, what, seconds = 15) {
  const ends = performance.now() + seconds * 1000;
  while (!(await condition())) {
    if (performance.now() > ends) throw new Error(`it never happened: ${what}`);
    await pause(5);
  }
}

/** Calls of one client, without any of our client. */
export class App {
  /**
   * @param {string} clientId
   * @param {string} address
   */
  constructor(clientId, address = GATEWAY) {
    this.clientId = clientId;
    this.address = address;
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {object} [body]
   */
  async call(method, path, body) {
    const headers = { authorization: `Bearer ${token(this.clientId)}` };
    const answer = await fetch(this.address + path, { method, headers, body: body ? JSON.stringify(body) : null });
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
    return answer;
  }

  async text() {
    return (await this.call("GET", "/v1/poll")).text();
  }

  async packet() {
    return JSON.parse(await this.text());
  }

  /**
   * Announce, upload and confirm; the video's id.
   *
   * @param {string} recipientId
   * @param {Uint8Array} bytes
   */
  async send(recipientId, bytes = VIDEO) {
    const video = { recipient_id: recipientId, size: bytes.length, content_type: "video/mp4" };
    const { video_id, upload } = await (await this.call("POST", "/v1/videos", video)).json();
    const stored = await fetch(upload.url, { method: "PUT", headers: upload.headers, body: Buffer.from(bytes) });
    if (!stored.ok) throw new Error(`not stored: ${stored.status}`);
    await this.say(video_id, "uploaded", recipientId);
    return video_id;
  }

  /**
   * @param {string} videoId
   * @param {string} status
   * @param {string} [recipientId]
   */
  async say(videoId, status, recipientId) {
    await this.call("POST", `/v1/videos/${videoId}/status`, { status, recipient_id: recipientId });
  }

  /** How far the videos have come that it sent. */
  async outgoing() {
    const { outgoing } = await this.packet();
    return outgoing.map((/** @type {{ status: string }} */ { status }) => status);
  }
}

/**
 * @typedef {object} PhoneOptions
 * @property {Token} [bearer]
 * @property {ClientOptions} [means]
 * @property {DeviceOptions} [device]
 * @property {Store} [store]
 */

/** A phone of one user: what it keeps, and what its app was told. A device is opened on it, again and again. */
export class Phone {
  /** @type {Change[]} */
  told = [];
  /** @type {{ channel: string, packet: Packet, applied: boolean }[]} */
  heard = [];
  /** @type {(Device & { videos: VideoFolder })[]} */
  #open = [];

  /**
   * @param {import("node:test").TestContext} t at whose end its devices are closed
   * @param {string} name
   * @param {{ address?: string, clientId?: string }} [options]
   */
  constructor(t, name, { address = GATEWAY, clientId = fresh(name) } = {}) {
    this.clientId = clientId;
    this.app = new App(clientId, address);
    this.address = address;
    t.after(() => Promise.all(this.#open.map((device) => device.close())));
    this.folder = folderOf(t); // which goes after its devices
  }

  /**
   * A client of this phone.
   *
   * @param {Token} [bearer]
   * @param {ClientOptions} [means]
   */
  client(bearer = token(this.clientId), means = {}) {
    return new Client(this.address, bearer, { deviceId: "phone", clientId: this.clientId, ...means });
  }

  /** @param {PhoneOptions} [options] */
  async open({ bearer, means, device = {}, store = new FileStore(path.join(this.folder, "record")) } = {}) {
    const client = this.client(bearer, means);
    const videos = new VideoFolder(client, path.join(this.folder, "videos"));
    const heard = (/** @type {string} */ channel, /** @type {Packet} */ packet, /** @type {boolean} */ applied) =>
      this.heard.push({ channel, packet, applied });
    const opened = new Device(client, store, videos, { jitter: () => 0.05, heard, ...device });
    await opened.open();
    this.#open.push(Object.assign(opened, { videos }));
    void this.#listen(opened);
    return Object.assign(opened, { videos });
  }

  /** @param {Device} device */
  async #listen(device) {
    for await (const change of device.changes()) this.told.push(change);
  }

  /**
   * What the app was told of one video.
   *
   * @param {string} key
   */
  of(key) {
    return this.told.filter((change) => change.key === key).map(({ status }) => status);
  }

  /**
   * The change to that status, once it is told.
   *
   * @param {string} status
   * @param {string} [key]
   * @returns {Promise<Change>}
   */
  async hears(status, key) {
    const find = () => this.told.find((change) => change.status === status && (!key || change.key === key));
    await until(find, `the app is told ${status}: ${JSON.stringify(this.told)}`);
    return /** @type {Change} */ (find());
  }

  /** A file with a video. @param {Uint8Array} bytes */
  video(bytes = VIDEO) {
    const file = path.join(this.folder, `${fresh("video")}.mp4`);
    fs.writeFileSync(file, bytes);
    return file;
  }

  /** @param {string} videoId */
  bytesOf(videoId) {
    return Uint8Array.from(fs.readFileSync(path.join(this.folder, "videos", videoId)));
  }
}

/**
 * The global `fetch`, and what it was asked for. `answered` may change an answer before it is seen.
 *
 * @param {(response: Response, request: Request) => Response | Promise<Response>} answered
 */
export function watchedFetch(answered = (response) => response) {
  /** @type {Request[]} */
  const asked = [];
  /** @type {typeof globalThis.fetch} */
  const watched = async (input, init) => {
    const request = new Request(input, init?.body instanceof Object ? { ...init, body: null } : init);
    asked.push(request);
    return answered(await fetch(input, init), request);
  };
  return Object.assign(watched, { asked });
}

/**
 * An answer that breaks off after so many bytes.
 *
 * @param {Response} response
 * @param {number} most
 */
export function cutShort(response, most) {
  let left = most;
  const cut = new TransformStream({
    transform(bytes, controller) {
      if (left > 0) controller.enqueue(bytes.subarray(0, left));
      left -= bytes.length;
      if (left <= 0) controller.error(new TypeError("cut"));
    },
  });
  return new Response(response.body?.pipeThrough(cut), response);
}

/**
 * Where a proxy hands all but sockets on to the gateway; those it cuts.
 *
 * @param {import("node:test").TestContext} t
 */
export async function withoutSockets(t) {
  const port = Number(new URL(GATEWAY).port);
  /** @type {Set<net.Socket>} */
  const open = new Set();
  const proxy = net.createServer((from) => {
    open.add(from);
    const to = net.connect(port, "127.0.0.1");
    open.add(to);
    for (const end of [from, to]) end.on("error", () => end.destroy());
    to.on("close", () => from.destroy()).pipe(from);
    from.on("close", () => to.destroy()).on("data", (bytes) => {
      if (/^upgrade: websocket/im.test(bytes.toString("latin1"))) from.destroy();
      else to.write(bytes);
    });
  });
  t.after(() => {
    for (const socket of open) socket.destroy();
    proxy.close();
  });
  await once(proxy.listen(0, "127.0.0.1"), "listening");
  return `http://127.0.0.1:${/** @type {net.AddressInfo} */ (proxy.address()).port}`;
}

/** A port that nothing listens at. */
export async function freePort() {
  const server = net.createServer();
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = /** @type {net.AddressInfo} */ (server.address());
  server.close();
  return port;
}

/**
 * A gateway in a process of its own, once it serves.
 *
 * @param {import("node:test").TestContext} t at whose end it is killed, if it still runs
 * @param {string} folder
 * @param {number} port
 */
export async function gatewayAt(t, folder, port) {
  const env = {
    ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("GATEWAY_"))),
    GATEWAY_DATA_DIR: folder,
    GATEWAY_PORT: String(port),
    GATEWAY_JWT_SECRET: SECRET,
    GATEWAY_RATE_CALLS: "0",
    GATEWAY_DRAIN_S: "5",
  };
  const process_ = spawn(PYTHON, ["-m", "gateway", "serve"], { cwd: ROOT, env, stdio: "ignore" });
  t.after(() => process_.kill("SIGKILL"));
  const ready = () => fetch(`http://127.0.0.1:${port}/readyz`).then((answer) => answer.ok, () => false);
  await until(ready, "the gateway serves", 30);
  return process_;
}

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ROOT = path.dirname(path.dirname(HERE));

/**
 * Another process with one device, as `client-process.js` has it. It is killed at the end of the test, if it still
 * runs.
 *
 * @param {import("node:test").TestContext} t
 * @param {Phone} phone
 * @param {{ send?: { source: string, recipientId: string }, stalls?: boolean }} order
 */
export function anotherProcess(t, phone, order) {
  const { clientId, folder, address } = phone;
  const told = JSON.stringify({ address, clientId, bearer: token(clientId), folder, ...order });
  const script = path.join(HERE, "client-process.js");
  const child = spawn(process.execPath, [script, told], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text) => (output += text));
  return {
    /** Returns once it has said that. @param {string} line */
    says: (line) => until(() => output.includes(`${line}\n`), `another process says ${line}`),
    kill: async () => {
      child.kill("SIGKILL");
      await once(child, "exit");
    },
    /** Its exit code, once it has ended by itself. */
    ended: async () => child.exitCode ?? (await once(child, "exit"))[0],
  };
}

/**
 * Have timers run so many times faster until the end of the test; seconds since the epoch, that fast.
 *
 * @param {import("node:test").TestContext} t
 * @param {number} times
 */
export function hurry(t, times) {
  const usual = globalThis.setTimeout;
  const began = Date.now();
  // Whatever else Node's function has nobody uses here.
  globalThis.setTimeout = /** @type {typeof setTimeout} */ (
    (/** @type {() => void} */ ring, /** @type {number} */ ms, /** @type {[]} */ ...more) =>
      usual(ring, ms / times, ...more)
  );
  t.after(() => {
    globalThis.setTimeout = usual;
  });
  return () => (began + (Date.now() - began) * times) / 1000;
}
