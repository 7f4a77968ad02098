/** A device against a real gateway: it goes on after every end, and the app is told everything once. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { Client, Device, FileStore, MemoryStore, StoreInUse, VideoFolder } from "../../gateway/web/client.js";
import {
  ALL,
  GATEWAY,
  Phone,
  VIDEO,
  anotherProcess,
  cutShort,
  folderOf,
  freePort,
  fresh,
  gatewayAt,
  hurry,
  token,
  until,
  watchedFetch,
  withoutSockets,
} from "./client-support.js";

/**
 * Return when the device has applied the newest packet that there is.
 *
 * @param {Device} device
 * @param {Phone} phone
 */
function applied(device, phone) {
  return until(async () => device.version === (await phone.app.packet()).version, "the newest packet is applied");
}

/** Sockets that are counted, and can be made deaf: as over a network that is gone without a word. */
function sockets() {
  /** @type {(WebSocket & { isDeaf: boolean })[]} */
  const opened = [];
  const counted = class extends WebSocket {
    isDeaf = false;

    /**
     * @param {string | URL} url
     * @param {string | string[]} [protocols]
     */
    constructor(url, protocols) {
      super(url, protocols);
      opened.push(this);
      for (const kind of ["message", "close"]) {
        this.addEventListener(kind, (event) => this.isDeaf && event.stopImmediatePropagation());
      }
    }

    /** @param {string} text */
    send(text) {
      if (!this.isDeaf) super.send(text);
    }
  };
  return { opened, WebSocket: counted };
}

/** A memory that may have no room. */
class FullStore extends MemoryStore {
  isFull = false;
  failures = 0;

  /**
   * @override
   * @param {string} text
   */
  async save(text) {
    if (this.isFull) {
      this.failures += 1;
      throw new DOMException("no room", "QuotaExceededError");
    }
    await super.save(text);
  }
}

/**
 * Nothing is printed of what goes wrong on purpose.
 *
 * @param {import("node:test").TestContext} t
 */
function silently(t) {
  t.mock.method(console, "warn", () => {});
  t.mock.method(console, "error", () => {});
}

// From start to end

test("a video goes from one device to another, and each status is told once", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const sender = await alice.open();
  const recipient = await bob.open();
  const key = await sender.send(alice.video(), bob.clientId);
  const ready = await bob.hears("ready");
  await alice.hears("downloaded", key);
  assert.deepEqual(bob.bytesOf(ready.key), VIDEO);
  assert.deepEqual([ready.video_id, ready.peer_id], [ready.key, alice.clientId]);
  assert.deepEqual(recipient.received.map(({ video_id }) => video_id), [ready.key]);
  await recipient.viewed(ready.key);
  const viewed = await alice.hears("viewed", key);
  assert.deepEqual([viewed.video_id, viewed.peer_id], [ready.key, bob.clientId]);
  await Promise.all([sender.settled(), recipient.settled()]);
  assert.deepEqual(recipient.received, []);
  const steps = alice.of(key);
  assert.deepEqual(steps, ALL.filter((status) => steps.some((step) => step === status)));
  assert.equal(new Set(bob.of(ready.key)).size, bob.of(ready.key).length);
});

test("every status is told in order while the recipient takes its time, and none again after a restart", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const first = await alice.open();
  const key = await first.send(alice.video(), bob.clientId);
  const { video_id } = await alice.hears("uploaded", key);
  for (const status of ["notified", "downloaded", "viewed"]) {
    await bob.app.say(String(video_id), status);
    await alice.hears(status, key);
  }
  await first.close();
  const again = await alice.open();
  await applied(again, alice);
  await again.settled();
  assert.deepEqual(alice.of(key), ALL);
});

test("a deleted video is gone for its recipient, and a newer one completes the one before", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const sender = await alice.open();
  const first = await sender.send(alice.video(), bob.clientId);
  await alice.hears("uploaded", first);
  const second = await sender.send(alice.video(), bob.clientId);
  await alice.hears("complete", first);
  await alice.hears("uploaded", second);
  await sender.delete(second);
  await sender.settled();
  assert.deepEqual(sender.sent, []);
  assert.deepEqual((await bob.app.packet()).incoming, []);
});

test("a file that is not there cannot be sent, and one that changes meanwhile fails", async (t) => {
  silently(t);
  const alice = new Phone(t, "alice");
  const device = await alice.open();
  await assert.rejects(device.send(path.join(alice.folder, "none.mp4"), "bob"), { code: "ENOENT" });
  assert.deepEqual(device.sent, []);
  device.network(false);
  const file = alice.video();
  const key = await device.send(file, "bob");
  fs.truncateSync(file, 10);
  device.network(true);
  assert.equal((await alice.hears("failed", key)).reason, "unreadable");
});

test("a refused video fails with the code", async (t) => {
  const alice = new Phone(t, "alice");
  const device = await alice.open();
  const key = await device.send(alice.video(), alice.clientId); // to oneself
  assert.equal((await alice.hears("failed", key)).reason, "invalid");
  await device.settled();
});

test("progress is seen on both sides, and every packet that comes is heard as it came", async (t) => {
  /** @type {[string, number, number][]} */
  const moves = [];
  const watch = (/** @type {[string, number, number]} */ ...move) => moves.push(move);
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const sender = await alice.open({ device: { watch } });
  const recipient = await bob.open({ device: { watch } });
  const key = await sender.send(alice.video(), bob.clientId);
  const ready = await bob.hears("ready");
  for (const name of [key, ready.key]) {
    const counted = moves.filter(([moved]) => moved === name).map(([, soFar]) => soFar);
    assert.deepEqual(counted, counted.toSorted((one, other) => one - other));
    assert.equal(counted.at(-1), VIDEO.length);
  }
  const isDownloaded = async () => (await bob.app.text()).includes('"downloaded"');
  await until(isDownloaded, "the gateway knows that it is downloaded");
  await applied(recipient, bob);
  const { channel, packet, applied: isApplied } = bob.heard[bob.heard.length - 1];
  assert.deepEqual([channel, packet.text, isApplied], ["socket", await bob.app.text(), true]);
  const old = JSON.stringify({ ...JSON.parse(packet.text), version: 1 });
  await recipient.handlePush({ version: "1", packet: old });
  const strange = JSON.stringify({ ...JSON.parse(packet.text), client_id: "mallory" });
  await recipient.handlePush({ version: "1", packet: strange });
  const pushed = bob.heard.filter((heard) => heard.channel === "push");
  assert.deepEqual(pushed.map((heard) => [heard.packet.text, heard.applied]), [[old, false], [strange, false]]);
});

test("two iterations at once are refused, and the changes end with the device", async (t) => {
  const alice = new Phone(t, "alice");
  const device = await alice.open();
  await device.settled();
  await assert.rejects(device.changes().next(), /told already/);
  const client = alice.client();
  const other = await new Device(client, new MemoryStore(), device.videos).open();
  const changes = other.changes();
  const next = changes.next();
  await other.close();
  assert.deepEqual(await next, { value: undefined, done: true });
  await assert.rejects(other.send(alice.video(), "bob"), /not open/);
});

test("a device speaks for somebody", () => {
  const client = new Client(GATEWAY, "a-token", { clientId: "alice" });
  assert.throws(() => new Device(client, new MemoryStore(), new VideoFolder(client, "videos")), /which device/);
});

test("a change that the app had not taken in comes again, and no other", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const store = new MemoryStore();
  const client = alice.client();
  const first = await new Device(client, store, new VideoFolder(client, alice.folder), { jitter: () => 0.05 }).open();
  const key = await first.send(alice.video(), bob.clientId);
  for await (const change of first.changes()) {
    assert.deepEqual([change.key, change.status], [key, "uploaded"]);
    break; // it was not taken in
  }
  await first.close();
  const second = await alice.open({ store });
  await alice.hears("uploaded", key);
  await second.close();
  const third = await alice.open({ store });
  await applied(third, alice);
  await third.settled();
  assert.deepEqual(alice.of(key), ["uploaded"]);
});

// Killed, and opened again

test("a process that is killed in the middle of an upload finishes it when it is started anew, and ends", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const send = { source: alice.video(), recipientId: bob.clientId };
  const first = anotherProcess(t, alice, { send, stalls: true });
  await first.says("half");
  await first.kill();
  assert.deepEqual((await bob.app.packet()).incoming, []);
  const second = anotherProcess(t, alice, {});
  await second.says("closed");
  const closed = performance.now();
  assert.equal(await second.ended(), 0);
  assert.ok(performance.now() - closed < 15_000, "nothing keeps it from ending");
  const { incoming } = await bob.app.packet();
  assert.equal(incoming.length, 1);
  await bob.open();
  await bob.hears("ready", incoming[0].video_id);
  assert.deepEqual(bob.bytesOf(incoming[0].video_id), VIDEO);
});

test("a device that is closed in the middle of an upload goes on with it when it is opened again", async (t) => {
  const alice = new Phone(t, "alice");
  let isStalled = false;
  /** @type {typeof globalThis.fetch} */
  const stalling = async (url, init) => {
    if (init?.method !== "PUT") return fetch(url, init);
    isStalled = true;
    return new Promise((_, reject) => init.signal?.addEventListener("abort", () => reject(init.signal?.reason)));
  };
  const first = await alice.open({ means: { fetch: stalling } });
  const key = await first.send(alice.video(), fresh("bob"));
  await until(() => isStalled, "it is being uploaded");
  await first.close();
  assert.deepEqual(alice.of(key), []);
  await alice.open();
  await alice.hears("uploaded", key);
});

test("a store is one device's, until that is closed or its process killed", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const send = { source: alice.video(), recipientId: bob.clientId };
  const first = anotherProcess(t, alice, { send, stalls: true });
  await first.says("half");
  await assert.rejects(alice.open(), StoreInUse);
  await first.kill();
  const device = await alice.open();
  await assert.rejects(alice.open(), StoreInUse);
  await device.close();
  await (await alice.open()).close();
});

test("what the user did without a network is said by the next device", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const videoId = await alice.app.send(bob.clientId);
  const first = await bob.open();
  await bob.hears("ready", videoId);
  await first.settled();
  first.network(false);
  await first.viewed(videoId);
  await first.send(bob.video(), alice.clientId);
  await first.close();
  assert.deepEqual(await alice.app.outgoing(), ["downloaded"]);
  await (await bob.open()).settled();
  const packet = await alice.app.packet();
  assert.deepEqual(packet.outgoing.map((/** @type {{ status: string }} */ { status }) => status), ["viewed"]);
  assert.equal(packet.incoming.length, 1);
  assert.equal(packet.incoming[0].sender_id, bob.clientId);
});

test("half a download goes on where it was after a restart", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const videoId = await alice.app.send(bob.clientId);
  let isCut = false;
  const cutting = watchedFetch((response, { url }) => {
    if (isCut) throw new TypeError("no network");
    if (url.includes("/v1/")) return response;
    isCut = true;
    return cutShort(response, VIDEO.length / 2);
  });
  const first = await bob.open({ means: { fetch: cutting }, device: { foreground: false } });
  const part = path.join(bob.folder, "videos", `.${videoId}.${videoId}.part`);
  await until(() => isCut && fs.existsSync(part) && fs.statSync(part).size > 0, "half of it is here");
  await first.close();
  const have = fs.statSync(part).size;
  const watched = watchedFetch();
  /** @type {number[]} */
  const moves = [];
  await bob.open({ means: { fetch: watched }, device: { watch: (_, soFar) => moves.push(soFar) } });
  await bob.hears("ready", videoId);
  assert.deepEqual(bob.bytesOf(videoId), VIDEO);
  const ranges = watched.asked.map(({ headers }) => headers.get("range")).filter((range) => range !== null);
  assert.deepEqual(ranges, [`bytes=${have}-`]);
  assert.ok(moves[0] > have);
});

// Stored before anything follows

test("nothing is done before it is stored, and then it goes on", async (t) => {
  silently(t);
  hurry(t, 20);
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const watched = watchedFetch();
  const store = new FullStore();
  const device = await alice.open({ store, means: { fetch: watched, callS: 1000 } });
  await applied(device, alice);
  await device.settled();
  store.isFull = true;
  watched.asked.length = 0;
  let isSent = false;
  const sending = device.send(alice.video(), bob.clientId).finally(() => (isSent = true));
  await until(() => store.failures > 3, "it is tried to store it again and again");
  assert.deepEqual([isSent, watched.asked.length], [false, 0]);
  store.isFull = false;
  const key = await sending;
  assert.ok(store.text?.includes(key));
  await alice.hears("uploaded", key);
});

test("what could not be stored yet is stored when the device is closed", async (t) => {
  silently(t);
  const alice = new Phone(t, "alice");
  const store = new FullStore();
  const device = await alice.open({ store });
  await device.settled();
  store.isFull = true;
  const sending = device.send(alice.video(), fresh("bob"));
  await until(() => store.failures > 0, "it could not be stored");
  store.isFull = false;
  await device.close();
  assert.ok(store.text?.includes(await sending));
});

test("a record that cannot be read is as a new installation", async (t) => {
  silently(t);
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const videoId = await alice.app.send(bob.clientId);
  await bob.open({ store: new MemoryStore("{") });
  await bob.hears("ready", videoId);
});

test("a record is a file that only its owner may read, and is whole", async (t) => {
  const file = path.join(folderOf(t), "deep", "record");
  const store = new FileStore(file);
  assert.equal(await store.load(), null);
  fs.writeFileSync(path.join(path.dirname(file), ".record.new"), "of a save that was cut off", { mode: 0o644 });
  await store.save("one");
  await store.save("two");
  assert.equal(await store.load(), "two");
  assert.equal(fs.statSync(file).mode & 0o777, 0o600);
  await store.close();
  assert.deepEqual(fs.readdirSync(path.dirname(file)), ["record"]);
});

test("a name that is no video's id leads nowhere", () => {
  const folder = new VideoFolder(new Client(GATEWAY, "a-token"), "videos");
  for (const name of ["", "../record", "0199c0de-0000-7000-8000-000000000001/..", "record"]) {
    assert.throws(() => folder.path(name), RangeError);
  }
});

// Networks that come and go

test("a socket that is cut is opened again, and nothing is missed", async (t) => {
  const { opened, WebSocket } = sockets();
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const device = await bob.open({ means: { WebSocket } });
  for (const cut of ["by the gateway", "by the app", "a new network", "no network"]) {
    await until(() => opened.at(-1)?.readyState === 1, "a socket is open");
    const before = opened.length;
    if (cut === "by the gateway") await bob.app.call("DELETE", "/v1/devices/phone");
    else if (cut === "by the app") opened[before - 1].close(4000);
    else device.network(cut === "a new network");
    const videoId = await alice.app.send(bob.clientId);
    if (cut === "no network") device.network(true);
    await bob.hears("ready", videoId);
    await until(() => opened.length > before, "another socket is opened");
  }
  await device.settled();
});

test("a socket whose network is gone without a word is given up, and another is opened", async (t) => {
  hurry(t, 100);
  const { opened, WebSocket } = sockets();
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  await bob.open({ means: { WebSocket, callS: 100 } });
  await until(() => opened[0]?.readyState === 1, "a socket is open");
  opened[0].isDeaf = true;
  const videoId = await alice.app.send(bob.clientId);
  await bob.hears("ready", videoId);
  assert.ok(opened.length > 1);
});

test("an app in the background holds no socket", async (t) => {
  const { opened, WebSocket } = sockets();
  const device = await new Phone(t, "bob").open({ means: { WebSocket } });
  await until(() => opened[0]?.readyState === 1, "a socket is open");
  device.foreground(false);
  await until(() => opened[0].readyState > 1, "it is closed");
  device.foreground(true);
  await until(() => opened[1]?.readyState === 1, "a socket is open again");
  assert.equal(opened.length, 2);
});

test("a device that has connected again takes over, and the one before holds polls", async (t) => {
  const { opened, WebSocket } = sockets();
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  await bob.open({ means: { WebSocket } });
  await until(() => opened[0]?.readyState === 1, "a socket is open");
  const other = await bob.client().live();
  await until(() => opened[0].readyState > 1, "it is displaced");
  const videoId = await alice.app.send(bob.clientId);
  await bob.hears("ready", videoId);
  assert.ok(bob.heard.some(({ channel, packet }) => channel === "poll" && packet.incoming.length > 0));
  assert.equal(opened.length, 1);
  other.close();
});

test("where no socket gets through polls are held", async (t) => {
  const address = await withoutSockets(t);
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob", { address });
  const device = await bob.open();
  for (let round = 0; round < 3; round += 1) {
    const videoId = await alice.app.send(bob.clientId);
    await bob.hears("ready", videoId);
    await device.settled();
    assert.deepEqual(await alice.app.outgoing(), ["downloaded"]);
  }
  assert.ok(bob.heard.every(({ channel }) => channel === "poll" || channel === "sync"));
  await until(() => bob.heard.some(({ channel }) => channel === "poll"), "a poll brings a packet", 1);
});

test("a gateway that stops and starts again is found again", async (t) => {
  const folder = folderOf(t);
  const port = await freePort();
  const first = await gatewayAt(t, folder, port);
  const alice = new Phone(t, "alice", { address: `http://127.0.0.1:${port}` });
  const bob = new Phone(t, "bob", { address: `http://127.0.0.1:${port}` });
  const device = await alice.open();
  await applied(device, alice);
  first.kill("SIGTERM");
  await until(() => first.exitCode !== null, "it has ended");
  const key = await device.send(alice.video(), bob.clientId);
  await gatewayAt(t, folder, port);
  device.network(true); // else it comes when the gateway that went said it should
  await alice.hears("uploaded", key);
  await bob.open();
  await alice.hears("downloaded", key);
  await device.settled();
});

// Tokens

test("a socket is given a new token before its own expires, and stays", async (t) => {
  const clock = hurry(t, 100);
  const { opened, WebSocket } = sockets();
  const bob = new Phone(t, "bob");
  /** @type {string[]} */
  const sent = [];
  let asked = 0;
  const bearer = () => token(bob.clientId, { ttlS: ++asked === 1 ? 100 : 36_000 });
  const talkative = class extends WebSocket {
    /**
     * @override
     * @param {string} text
     */
    send(text) {
      sent.push(JSON.parse(text).type);
      super.send(text);
    }
  };
  const device = await bob.open({ bearer, means: { WebSocket: talkative, callS: 1000 }, device: { clock } });
  await applied(device, bob);
  await until(() => asked === 2, "a new token is asked for");
  const beats = sent.length;
  await until(() => sent.length > beats + 1, "it is handed over, and again");
  assert.equal(opened.length, 1);
  assert.equal(opened[0].readyState, 1);
});

test("a token that has expired already is renewed by every way", async (t) => {
  const alice = new Phone(t, "alice");
  for (const foreground of [false, true]) {
    const tokens = [token(alice.clientId), token(alice.clientId, { ttlS: -3600 })];
    const device = await alice.open({ bearer: () => String(tokens.pop()), device: { foreground } });
    await device.send(alice.video(), fresh("bob"));
    await device.settled();
    await device.close();
    assert.deepEqual(tokens, []);
  }
});

test("a token that cannot be had for a while holds things up, and no more", async (t) => {
  silently(t);
  const alice = new Phone(t, "alice");
  let asked = 0;
  const bearer = () => {
    asked += 1;
    if (asked < 5) throw new Error("the token server is down");
    return token(alice.clientId);
  };
  const device = await alice.open({ bearer });
  const key = await device.send(alice.video(), fresh("bob"));
  await device.settled();
  await alice.hears("uploaded", key);
});

// In the background, and at the end

test("a push is handled when its video is here and that is said", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const device = await bob.open({ device: { foreground: false } });
  await applied(device, bob);
  await device.settled();
  for (const payload of [{}, { version: "7" }, { version: 7, packet: [] }, { packet: "{" }, null]) {
    const videoId = await alice.app.send(bob.clientId);
    await device.handlePush(payload);
    assert.deepEqual(bob.bytesOf(videoId), VIDEO);
    assert.deepEqual(await alice.app.outgoing(), ["downloaded"]);
  }
});

test("a push that cannot be handled lets the app sleep in time", async (t) => {
  const bob = new Phone(t, "bob", { address: `http://127.0.0.1:${await freePort()}` });
  const device = await bob.open({ device: { foreground: false } });
  device.network(false);
  await device.handlePush({ version: "7" }, { withinS: 0.05 });
});

test("a device registers once, and again where the token is new or that is a day ago", async (t) => {
  const bob = new Phone(t, "bob");
  const watched = watchedFetch();
  let now = 1_000_000;
  const pushToken = fresh("push-token");
  const another = fresh("push-token");
  const rounds = /** @type {[laterS: number, pushToken: string, calls: number][]} */ ([
    [0, pushToken, 1],
    [80_000, pushToken, 1],
    [7_000, pushToken, 2],
    [1, another, 3],
  ]);
  for (const [laterS, given, count] of rounds) {
    now += laterS;
    const device = await bob.open({ means: { fetch: watched }, device: { foreground: false, clock: () => now } });
    await device.register("apns", given);
    await device.settled();
    await device.close();
    assert.equal(watched.asked.filter(({ method }) => method === "PUT").length, count);
  }
});

test("a log-out on a shared phone loses nothing and shows nothing", async (t) => {
  const store = new MemoryStore();
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const carol = new Phone(t, "carol");
  const first = await alice.open({ store });
  const videoId = await carol.app.send(alice.clientId);
  await alice.hears("ready", videoId);
  await first.settled();
  first.network(false);
  await first.viewed(videoId);
  await first.logOut();
  assert.deepEqual([first.sent, first.received, first.version], [[], [], 0]);
  await first.close();
  assert.deepEqual(await carol.app.outgoing(), ["downloaded"]);
  const second = await bob.open({ store });
  await second.settled();
  assert.deepEqual([second.sent, second.received], [[], []]);
  assert.deepEqual(await carol.app.outgoing(), ["viewed"]);
});

test("the end of an account takes its videos along", async (t) => {
  const alice = new Phone(t, "alice");
  const bob = new Phone(t, "bob");
  const device = await alice.open();
  const key = await device.send(alice.video(), bob.clientId);
  await alice.hears("uploaded", key);
  await device.endAccount();
  await device.settled();
  assert.deepEqual((await bob.app.packet()).incoming, []);
});
