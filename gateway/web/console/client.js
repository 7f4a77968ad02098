/** One client, as the operator sees it. What it says is foreign: all of it is shown as text. */

import { element, keyed, say } from "./dom.js";
import { count } from "./format.js";
import { timeOf } from "./tables.js";

/**
 * @typedef {object} Found what is answered about a client
 * @property {string} client_id
 * @property {number} at
 * @property {string} packet
 * @property {Device[]} devices
 * @property {{text: string, since: number | null, next_at: number | null}[]} waits
 * @property {Told[]} processes
 * @property {number} silent
 * @property {Happened[]} events newest first
 */
/**
 * @typedef {{at: number, process: string, event: string, device_id: string | null} & Record<string, unknown>} Happened
 */
/**
 * @typedef {object} Device
 * @property {string} device_id
 * @property {string} platform
 * @property {string} environment
 * @property {number} registered_at
 * @property {number} heard_at
 * @property {number} acked
 * @property {boolean} behind
 * @property {number} pushes
 * @property {number} failures
 * @property {number | null} next_push_at
 */
/**
 * @typedef {object} Told
 * @property {string} process
 * @property {number} remembers_since
 * @property {{device_id: string, opened_at: number, version: number, acked: number}[]} sockets
 * @property {{device_id: string | null, since: number, version: number}[]} polls
 */
/** @typedef {{key: string, process: string, kind: string, deviceId: string | null, since: number, version: number,
 *   acked: number | null}} Connection */

/** @type {Record<string, string>} */
const EVENTS = {
  opened: "socket opened", closed: "socket closed", status: "status reported", deleted: "video deleted",
  completed: "upload completed by the gateway", acknowledged: "acknowledged", packet: "packet published",
  late: "packet handed on late", pushed: "pushed", registered: "device registered", unregistered: "device unregistered",
  left: "account ended",
};
const COMMON = new Set(["at", "process", "event", "device_id"]);

/** A client in the page: it is made empty, and shows what is found, again and again. */
export class ClientView {
  #close;
  #message = element("p", { class: "message", role: "status" });
  #body = element("div", { class: "about", hidden: "" });
  #facts = element("p", { class: "facts" });
  #packet = element("pre", { tabindex: "0", role: "region", "aria-label": "The packet, indented" });
  #waits = element("ul", { class: "waits" });
  #devices = element("tbody");
  #sockets = element("tbody");
  #events = element("tbody");
  #noDevices = nothing("No device is registered.");
  #noSockets = nothing("It is not connected: no socket, no held poll.");
  #noEvents = nothing("No process remembers anything of it.");
  #remembered = element("p", { class: "hint" });
  #closeAll = element("button", { type: "button", class: "danger" }, "Close its sockets");

  /**
   * @param {HTMLElement} place
   * @param {string} clientId
   * @param {(deviceId: string | null) => void} close what is done to close its sockets, or those of a device
   */
  constructor(place, clientId, close) {
    this.#close = close;
    this.#closeAll.addEventListener("click", () => close(null));
    const connections = table("Its sockets and held polls",
      ["Process", "By", "Device", "Since", "Version", "Acknowledged", ""], this.#sockets);
    const devices = table("Its devices; tokens are not shown", [
      "Device", "Platform", "Registered", "Heard", "Acknowledged", "News", "Pushes", "Failures", "Next push",
    ], this.#devices);
    const events = table("What happened to it, newest first", ["When", "What", "Device", "Details", "Process"],
      this.#events);
    this.#body.append(
      part("Waits for", this.#waits),
      part("Packet", this.#facts, this.#packet),
      part("Connections", connections, this.#noSockets, this.#closeAll),
      part("Devices", devices, this.#noDevices),
      part("Last events", events, this.#noEvents, this.#remembered),
    );
    const title = element("h2", { id: "client-title", tabindex: "-1" }, "Client ", element("code", {}, clientId));
    place.replaceChildren(
      element("div", { class: "heading" }, title, element("a", { href: "#", class: "back" }, "Back to all")),
      this.#message, this.#body,
    );
    this.say("Looking it up …");
    title.focus({ preventScroll: true });
  }

  /**
   * Say what happened.
   * @param {string} text
   */
  say(text) {
    this.#message.classList.remove("failed");
    say(this.#message, text);
  }

  /**
   * Say that something failed. What was shown before stays.
   * @param {string} text
   */
  fail(text) {
    say(this.#message, text);
    this.#message.classList.add("failed");
  }

  /** @param {Found} found */
  show(found) {
    const packet = JSON.parse(found.packet);
    const size = new TextEncoder().encode(found.packet).length;
    const isUnknown = packet.version === 0 && !found.devices.length && !found.events.length;
    if (this.#body.hidden || this.#message.classList.contains("failed")) {
      this.say(isUnknown ? "Nothing is known of this client: it has not been heard of." : "");
    }
    this.#body.hidden = false;
    say(this.#facts, `Version ${packet.version}, ${count(size)} bytes: ${count(packet.outgoing.length)} outgoing, `
      + `${count(packet.incoming.length)} incoming`);
    say(this.#packet, JSON.stringify(packet, null, 2));
    this.#showWaits(found);
    this.#showDevices(found);
    this.#showConnections(found);
    this.#showEvents(found);
  }

  /** @param {Found} found */
  #showWaits({ waits, at }) {
    const lines = waits.map(({ text, since, next_at: next }) => element("li", {},
      text,
      element("span", { class: "times" },
        ...(since === null ? [] : [" since ", timeOf(since, at)]),
        ...(next === null ? [] : ["; the gateway acts ", timeOf(next, at)]))));
    const none = nothing("Nothing: everything has come where it should.", "li");
    this.#waits.replaceChildren(...(lines.length ? lines : [none]));
  }

  /** @param {Found} found */
  #showDevices({ devices, at }) {
    rows(this.#devices, devices.map(device => [
      element("code", {}, device.device_id),
      device.environment === "production" ? device.platform : `${device.platform}, ${device.environment}`,
      timeOf(device.registered_at, at),
      timeOf(device.heard_at, at),
      device.acked ? String(device.acked) : "never",
      device.behind ? "behind" : "up to date",
      count(device.pushes),
      count(device.failures),
      device.next_push_at === null ? "none planned" : timeOf(device.next_push_at, at),
    ]), this.#noDevices);
  }

  /** @param {Found} found */
  #showConnections({ processes, at }) {
    /** @type {Connection[]} */
    const open = processes.flatMap(({ process, sockets, polls }) => [
      ...sockets.map(({ device_id: deviceId, opened_at: since, version, acked }, index) => ({
        key: `${process} socket ${deviceId} ${since} ${index}`, process, kind: "socket", deviceId, since, version,
        acked,
      })),
      ...polls.map(({ device_id: deviceId, since, version }, index) => ({
        key: `${process} poll ${deviceId} ${since} ${index}`, process, kind: "held poll", deviceId, since, version,
        acked: null,
      })),
    ]);
    const isConnected = open.length > 0;
    this.#closeAll.hidden = !isConnected;
    this.#noSockets.hidden = isConnected;
    tableOf(this.#sockets).hidden = !isConnected;
    keyed(this.#sockets, open, ({ key }) => key, connection => this.#connection(connection), (made, connection) => {
      const { since, version, acked } = connection;
      made.cells[3].replaceChildren(timeOf(since, at));
      say(made.cells[4], String(version));
      say(made.cells[5], acked === null ? "" : acked ? String(acked) : "none");
    });
  }

  /** @param {Connection} connection */
  #connection({ process, kind, deviceId }) {
    const label = `Close the socket of device ${deviceId}`;
    const button = element("button", { type: "button", "aria-label": label }, "Close");
    button.addEventListener("click", () => this.#close(deviceId));
    return element("tr", {},
      element("td", {}, element("code", {}, process)), element("td", {}, kind),
      element("td", {}, deviceId === null ? "not named" : element("code", {}, deviceId)),
      element("td"), element("td"), element("td"),
      element("td", {}, kind === "socket" ? button : null));
  }

  /** @param {Found} found */
  #showEvents({ events, processes, silent, at }) {
    rows(this.#events, events.map(({ at: happened, process, event, device_id: device, ...members }) => [
      timeOf(happened, at),
      EVENTS[event] ?? event,
      device === null ? "" : element("code", {}, device),
      element("span", { class: "details" }, ...details(members)),
      element("code", {}, process),
    ]), this.#noEvents);
    const since = processes.map(told => told.remembers_since);
    this.#remembered.replaceChildren(
      ...(since.length ? ["Complete since ", timeOf(Math.max(...since), at), ". "] : []),
      silent ? `${silent} ${silent === 1 ? "process" : "processes"} did not answer within a second.` : "",
    );
  }
}

/**
 * The further members of an event, each by its name.
 * @param {Record<string, unknown>} members
 */
function details(members) {
  return Object.entries(members).filter(([name]) => !COMMON.has(name)).flatMap(([name, value], index) => [
    index ? ", " : "", element("span", { class: "name" }, `${name.replace("_", " ")} `), shown(name, value),
  ]);
}

/**
 * @param {string} name
 * @param {unknown} value
 */
function shown(name, value) {
  if (name === "devices" && value === -1) return "not known";
  return typeof value === "string" ? value : JSON.stringify(value);
}

/**
 * @param {string} title
 * @param {...HTMLElement} content
 */
function part(title, ...content) {
  return element("section", {}, element("h3", {}, title), ...content);
}

/**
 * @param {string} caption
 * @param {readonly string[]} heads
 * @param {HTMLElement} body
 */
function table(caption, heads, body) {
  const cells = heads.map(text => (text ? element("th", { scope: "col" }, text) : element("td")));
  return element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
    element("table", {}, element("caption", { class: "unseen" }, caption),
      element("thead", {}, element("tr", {}, ...cells)), body));
}

/**
 * @param {HTMLElement} body
 * @param {(string | HTMLElement)[][]} lines
 * @param {HTMLElement} none what is said where there are none
 */
function rows(body, lines, none) {
  none.hidden = lines.length > 0;
  tableOf(body).hidden = !lines.length;
  body.replaceChildren(...lines.map(([first, ...others]) => element("tr", {},
    element("th", { scope: "row" }, first), ...others.map(cell => element("td", {}, cell)))));
}

/** @param {HTMLElement} body */
function tableOf(body) {
  const found = body.closest(".scroll");
  if (!(found instanceof HTMLElement)) throw new TypeError("a table's body lies in what scrolls");
  return found;
}

/**
 * @param {string} text
 * @param {"p" | "li"} [tag]
 */
function nothing(text, tag = "p") {
  return element(tag, { class: "hint" }, text);
}
