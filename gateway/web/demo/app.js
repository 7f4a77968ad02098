/**
 * The app on a phone: the JavaScript client, and a screen for it. It is an app like any other: it knows of the gateway
 * through its client alone, and of its phone what an operating system tells.
 *
 * @module
 */

import { Client, Device, IndexedDbStore, StoreInUse, VideoDatabase, receivedStatus } from "../client.js";
import { listen, say } from "./bridge.js";
import { Camera, NoCamera } from "./camera.js";
import { find, make, write } from "./elements.js";
import { fingerprint } from "./fingerprint.js";
import { Network } from "./network.js";
import { person } from "./people.js";
import { Player } from "./player.js";
import { ReceivedList } from "./receivedlist.js";
import { SentList } from "./sentlist.js";
import { issueToken } from "./tokens.js";

/** @type {ReadonlySet<string>} */
const RECEIVED = new Set(["arrived", "ready", "gone"]);

/** Speaks for one person on one phone. */
class App {
  #me;
  #network;
  #videos;
  #device;
  #camera = new Camera(find(document, "#camera", HTMLDialogElement));
  #player = new Player(find(document, "#player", HTMLDialogElement));
  #sent = new SentList(find(document, "#sent", HTMLUListElement), (key) => void this.#device.delete(key));
  #received = new ReceivedList(find(document, "#received", HTMLUListElement), (...video) => void this.#play(...video));

  /** @param {import("./bridge.js").Begin} begin */
  constructor({ name, room, deviceId, recipient, chooses, online }) {
    this.#me = person(name, room);
    this.#network = new Network(online, () => this.#showLink());
    const { clientId } = this.#me;
    const { fetch, WebSocket, XMLHttpRequest } = this.#network;
    const means = { clientId, deviceId, fetch, WebSocket, XMLHttpRequest };
    const client = new Client(location.origin, () => issueToken(clientId, fetch), means);
    this.#videos = new VideoDatabase(client, clientId);
    this.#device = new Device(client, new IndexedDbStore(clientId), this.#videos, {
      foreground: false,
      watch: (key, soFar, size) => this.#showProgress(key, soFar / size),
      heard: (channel, packet, applied) => void heard(channel, packet, applied),
    });
    this.#showMe(recipient, chooses);
    this.#showLink();
  }

  /** Go on where this app was, and tell of what changes from then on. Throws StoreInUse. */
  async start() {
    await this.#device.open();
    this.#device.network(this.#network.online);
    for (const video of this.#device.sent) this.#sent.show({ ...video, peer_id: video.recipient_id });
    for (const video of this.#device.received) {
      await this.#showReceived(video.video_id, video.sender_id, receivedStatus(video));
    }
    void this.#tellChanges();
    this.#enable();
  }

  /**
   * The phone was told, by its push service, how it is to be woken.
   *
   * @param {string} pushToken
   */
  async register(pushToken) {
    await this.#device.register("apns", pushToken);
    await this.#device.settled();
    say(parent, { type: "registered" });
  }

  /** @param {import("./bridge.js").ToApp} message */
  hear(message) {
    switch (message.type) {
      case "foreground":
        if (!message.active) closeDialogs(); // what plays or records is not on the screen any more
        this.#device.foreground(message.active);
        break;
      case "network":
        if (message.online) this.#network.restore();
        else this.#network.cut();
        this.#device.network(message.online);
        break;
      case "push":
        void this.#device.handlePush(message.payload);
        break;
      case "register":
        void this.register(message.pushToken);
    }
  }

  async #tellChanges() {
    for await (const change of this.#device.changes()) {
      const { key, peer_id, status } = change;
      if (RECEIVED.has(status)) {
        await this.#showReceived(key, peer_id, status);
      } else {
        this.#sent.show(change);
        say(parent, { type: "moved", status, peer: peer_id });
      }
    }
  }

  // --- What its user does

  /**
   * Make a video and send it.
   *
   * @param {() => Promise<Blob | null>} make null where they changed their mind
   */
  async #send(make) {
    notice("");
    try {
      const recipient = this.#recipient();
      const video = await make();
      if (video === null) return;
      const contentType = video.type || "application/octet-stream";
      const key = await this.#device.send(await this.#videos.add(video), recipient.clientId, { contentType });
      this.#sent.show({ key, peer_id: recipient.clientId, status: "queued", at: 0, reason: null });
      say(parent, { type: "moved", status: "queued", peer: recipient.clientId });
    } catch (error) {
      if (!(error instanceof NoCamera || error instanceof RangeError)) throw error;
      notice(`${error.message}`);
    }
  }

  /** Whom it sends to. Throws RangeError where that is nobody. */
  #recipient() {
    const name = find(document, "#recipient", HTMLInputElement).value.trim().toLowerCase();
    const recipient = person(name, this.#me.room);
    if (recipient.clientId === this.#me.clientId) throw new RangeError("Somebody else must be the recipient.");
    return recipient;
  }

  /**
   * @param {string} videoId
   * @param {string} title
   */
  async #play(videoId, title) {
    const blob = await this.#videos.blob(videoId);
    if (blob !== null) await this.#player.play(blob, title, () => void this.#seen(videoId));
  }

  /** @param {string} videoId */
  async #seen(videoId) {
    this.#received.remove(videoId);
    this.#countWaiting();
    await this.#device.viewed(videoId);
    await this.#videos.remove(videoId);
  }

  // --- What one sees

  /**
   * @param {string} videoId
   * @param {string} senderId
   * @param {string} status
   */
  async #showReceived(videoId, senderId, status) {
    if (status === "gone") this.#received.remove(videoId);
    else if (status === "arrived") this.#received.arrive(videoId, senderId);
    else this.#received.ready(videoId, senderId, await this.#videos.blob(videoId));
    this.#countWaiting();
  }

  #countWaiting() {
    say(parent, { type: "waiting", videos: this.#received.size });
  }

  /**
   * @param {string} key
   * @param {number} part
   */
  #showProgress(key, part) {
    this.#sent.progress(key, part);
    this.#received.progress(key, part);
  }

  /**
   * @param {string} recipient
   * @param {boolean} chooses
   */
  #showMe(recipient, chooses) {
    document.title = `${this.#me.title}'s app`;
    document.body.dataset.person = this.#me.name;
    write(find(document, "#name", HTMLElement), this.#me.title);
    write(find(document, "#initial", HTMLElement), this.#me.title.charAt(0));
    find(document, "#recipient", HTMLInputElement).value = recipient;
    find(document, "#to", HTMLElement).hidden = !chooses;
  }

  #showLink() {
    const link = find(document, "#link", HTMLElement);
    const { online, live } = this.#network;
    link.dataset.link = online ? (live ? "live" : "connecting") : "cut";
    write(link, online ? (live ? "Live" : "Connecting") : "No network");
  }

  #enable() {
    const file = find(document, "#file", HTMLInputElement);
    file.addEventListener("change", () => {
      const chosen = file.files?.[0] ?? null;
      file.value = "";
      void this.#send(async () => chosen);
    });
    onClick("#choose", () => file.click());
    onClick("#record", () => void this.#send(() => this.#camera.film()));
    onClick("#sample", () => void this.#send(() => this.#camera.sample(this.#me.title)));
  }
}

/**
 * @param {string} selector
 * @param {() => void} act
 */
function onClick(selector, act) {
  const button = find(document, selector, HTMLButtonElement);
  button.addEventListener("click", act);
  button.disabled = false;
}

/**
 * Tell the phone of a packet that came in, for whoever looks on.
 *
 * @param {string} channel
 * @param {import("../client.js").Packet} packet
 * @param {boolean} applied
 */
async function heard(channel, packet, applied) {
  const print = await fingerprint(packet.text);
  say(parent, { type: "heard", channel, version: packet.version, ...print, fate: applied ? "applied" : "dropped" });
}

function closeDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
}

/** @param {string} text */
function notice(text) {
  write(find(document, "#notice", HTMLElement), text);
}

/**
 * The app, once it runs; null where another tab has it.
 *
 * @param {import("./bridge.js").Begin} begin
 */
async function started(begin) {
  const app = new App(begin);
  try {
    await app.start();
  } catch (error) {
    if (!(error instanceof StoreInUse)) throw error;
    say(parent, { type: "elsewhere" });
    showElsewhere(person(begin.name, begin.room).title);
    return null;
  }
  void app.register(begin.pushToken);
  return app;
}

/** @param {string} title */
function showElsewhere(title) {
  const text = `${title}'s phone is open in another tab. Close it there, or open this address on another device.`;
  const again = make("button", "", "Try again");
  again.type = "button";
  again.addEventListener("click", () => location.reload());
  document.body.replaceChildren(make("main", "alone", make("p", "", text), again));
}

if (parent === window) location.replace("/");

/** @type {Promise<App | null>} */
let app = Promise.resolve(null);
listen(
  () => parent,
  async (/** @type {import("./bridge.js").ToApp} */ message) => {
    if (message.type === "begin") app = started(message);
    else (await app)?.hear(message);
  },
);
say(parent, { type: "loaded" });
