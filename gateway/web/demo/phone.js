/**
 * A phone: its screen, its network, the app that runs on it or does not, and the pushes that arrive. Here it plays what
 * the phone's operating system is in reality; the app on it knows nothing of this.
 *
 * @module
 */

import { copyOf, find, icon, write } from "./elements.js";
import { fingerprint } from "./fingerprint.js";
import { AppFrame } from "./frame.js";
import { Inspector } from "./inspector.js";
import { forget, installed, markRegistered, reinstall } from "./installation.js";
import { LockScreen } from "./lockscreen.js";
import { PushService } from "./pushes.js";
import * as says from "./sentences.js";

/**
 * Hears of what happens to a phone: what somebody did or saw, and a sentence about it.
 *
 * @typedef {(what: import("./story.js").Event | null, sentence: string) => void} Tell
 */

/** One phone of one person. */
export class Phone {
  /** @type {HTMLElement} */
  element = copyOf("phone");
  #person;
  #recipient;
  #tell;
  #pushes;
  #lock;
  #inspector;
  /** @type {AppFrame | null} */
  #app = null;
  #locked = false;
  #online = true;
  #installing = false;
  #elsewhere = false;

  /**
   * @param {import("./people.js").Person} person whose it is
   * @param {Readonly<{ name: string, chooses: boolean }>} recipient whom the app sends to: by name, or at first
   * @param {Tell} tell
   */
  constructor(person, recipient, tell) {
    this.#person = person;
    this.#recipient = recipient;
    this.#tell = tell;
    this.#inspector = new Inspector(find(this.element, ".inspector", HTMLElement));
    this.#lock = new LockScreen(find(this.element, ".lock", HTMLElement), () => this.#open());
    this.#pushes = new PushService(person.clientId, {
      arrive: (push) => void this.#arrived(push),
      keep: () => tell(null, says.pushKept(person.title)),
      unknown: () => this.#app?.tell({ type: "register", pushToken: forget(person.clientId).pushToken }),
    });
    this.#label();
    this.#wire();
    this.#start();
    this.#render();
  }

  /**
   * What its clock says.
   *
   * @param {Date} now
   */
  tick(now) {
    const clock = find(this.element, ".clock", HTMLTimeElement);
    write(clock, now.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false }));
    this.#lock.tick(now);
  }

  // --- What its user does

  #toggleBackground() {
    if (this.#locked) {
      this.#open();
      return;
    }
    this.#locked = true;
    this.#app?.tell({ type: "foreground", active: false });
    this.#tell(null, says.background(this.#person.title));
    this.#render();
  }

  /** @param {import("./pushes.js").Arrival} [push] what was tapped, if it was that */
  #open(push) {
    const { title } = this.#person;
    const wasDead = this.#app === null;
    this.#locked = false;
    this.#lock.clear();
    const app = this.#start();
    if (push !== undefined) app.tell({ type: "push", payload: push.payload });
    app.tell({ type: "foreground", active: true });
    if (wasDead) this.#tell("started", says.started(title));
    if (push !== undefined) this.#tell("tapped", says.tapped(title));
    else if (!wasDead) this.#tell(null, says.opened(title));
    this.#render();
  }

  #toggleNetwork() {
    this.#online = !this.#online;
    this.#app?.tell({ type: "network", online: this.#online });
    this.#tell(this.#online ? "reconnected" : null, says.network(this.#person.title, this.#online));
    this.#pushes.network(this.#online);
    this.#render();
  }

  #kill() {
    this.#stop();
    this.#tell(null, says.killed(this.#person.title));
    this.#render();
  }

  async #reinstall() {
    this.#stop();
    this.#pushes.stop();
    this.#lock.count(0);
    this.#installing = true;
    this.#render();
    await reinstall(this.#person.clientId);
    this.#installing = false;
    this.#locked = false;
    this.#tell("reinstalled", says.reinstalled(this.#person.title));
    this.#start();
    this.#render();
  }

  // --- What happens to it

  /** @param {import("./pushes.js").Arrival} push */
  async #arrived(push) {
    const { title } = this.#person;
    const { version, packet, alert, payload } = push;
    if (this.#app !== null && (!this.#locked || alert === null)) {
      this.#app.tell({ type: "push", payload });
      this.#tell(null, says.pushedToApp(title));
      return;
    }
    if (alert !== null) this.#lock.notify(alert, () => this.#open(push));
    this.#tell(null, says.pushed(title, this.#app !== null));
    const print = packet === null ? { bytes: 0, hash: null } : await fingerprint(packet.text);
    this.#inspector.add({ channel: "push", version, ...print, fate: alert === null ? "dropped" : "shown" });
  }

  /** @param {import("./bridge.js").ToPhone} message */
  #heard(message) {
    const { clientId, title } = this.#person;
    switch (message.type) {
      case "loaded":
        this.#elsewhere = false;
        this.#render();
        if (!this.#locked) this.#app?.tell({ type: "foreground", active: true });
        break;
      case "registered":
        this.#pushes.listen(markRegistered(clientId).deviceId);
        break;
      case "elsewhere":
        this.#elsewhere = true;
        this.#pushes.stop();
        this.#render();
        break;
      case "heard":
        this.#inspector.add(message);
        break;
      case "moved":
        this.#tell(eventOf(message.status), says.moved(title, message, this.#online));
        break;
      case "waiting":
        this.#lock.count(message.videos);
    }
  }

  // --- The app's life

  #start() {
    if (this.#app !== null) return this.#app;
    const { deviceId, registered } = installed(this.#person.clientId);
    this.#app = new AppFrame(find(this.element, ".app", HTMLElement), `${this.#person.title}'s app`, {
      begin: () => this.#circumstances,
      hear: (message) => this.#heard(message),
    });
    if (registered) this.#pushes.listen(deviceId);
    return this.#app;
  }

  #stop() {
    this.#app?.kill();
    this.#app = null;
    this.#locked = true;
    this.#lock.clear();
  }

  /** @returns {import("./bridge.js").Begin} */
  get #circumstances() {
    const { name, room, clientId } = this.#person;
    const { deviceId, pushToken } = installed(clientId);
    const { name: recipient, chooses } = this.#recipient;
    return { type: "begin", name, room, deviceId, pushToken, recipient, chooses, online: this.#online };
  }

  // --- What one sees

  #label() {
    const { name, clientId, title } = this.#person;
    this.element.dataset.person = name;
    this.element.setAttribute("aria-label", `${title}'s phone`);
    find(this.element, ".name", HTMLElement).textContent = title;
    find(this.element, ".account", HTMLElement).textContent = clientId;
    find(this.element, ".switches", HTMLElement).setAttribute("aria-label", `What happens to ${title}'s phone`);
    find(this.element, ".inspector", HTMLElement).setAttribute("aria-label", `What came in at ${title}'s phone`);
  }

  #wire() {
    this.#button("background").addEventListener("click", () => this.#toggleBackground());
    this.#button("airplane").addEventListener("click", () => this.#toggleNetwork());
    this.#button("kill").addEventListener("click", () => this.#kill());
    this.#button("reinstall").addEventListener("click", () => void this.#reinstall());
  }

  #render() {
    const dead = this.#app === null;
    this.#button("background").ariaPressed = String(this.#locked);
    this.#button("background").disabled = dead;
    this.#button("airplane").ariaPressed = String(!this.#online);
    this.#button("kill").disabled = dead;
    this.#button("reinstall").disabled = this.#installing || this.#elsewhere;
    find(this.element, ".app", HTMLElement).inert = this.#locked;
    this.#lock.show({ visible: this.#locked, ready: !this.#installing, ...says.lockScreen(dead, this.#installing) });
    const reception = find(this.element, ".reception", HTMLElement);
    write(find(reception, ".unseen", HTMLElement), this.#online ? "has a network" : "no network");
    find(reception, ".icon", SVGElement).replaceWith(icon(this.#online ? "signal" : "plane"));
  }

  /** @param {string} name */
  #button(name) {
    return find(this.element, `.switches .${name}`, HTMLButtonElement);
  }
}

/**
 * What the new status of a sent video is to the story.
 *
 * @param {string} status
 * @returns {import("./story.js").Event | null}
 */
function eventOf(status) {
  if (status === "queued") return "sent";
  return status === "viewed" ? "viewed" : null;
}
