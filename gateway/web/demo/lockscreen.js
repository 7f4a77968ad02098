/** What a phone shows while no app is on its screen: the time, the newest push, and how to open the app. @module */

import { find, icon, make, write } from "./elements.js";
import { titleOf } from "./people.js";

/** The lock screen of one phone. */
export class LockScreen {
  #root;
  #notifications;
  #badge;
  #launch;

  /**
   * @param {HTMLElement} root
   * @param {() => void} launch the user opens the app
   */
  constructor(root, launch) {
    this.#root = root;
    this.#notifications = find(root, ".notifications", HTMLUListElement);
    this.#badge = find(root, ".badge", HTMLElement);
    this.#launch = find(root, ".launch", HTMLButtonElement);
    this.#launch.addEventListener("click", launch);
  }

  /**
   * Whether it is what one sees, whether there is an app to be opened, and what is said of it.
   *
   * @param {{ visible: boolean, ready: boolean, state: string, launch: string }} look
   */
  show({ visible, ready, state, launch }) {
    this.#root.classList.toggle("away", !visible);
    this.#root.inert = !visible;
    this.#launch.disabled = !ready;
    write(find(this.#root, ".state", HTMLElement), state);
    write(find(this.#launch, ".what", HTMLElement), launch);
  }

  /**
   * The time.
   *
   * @param {Date} now
   */
  tick(now) {
    const hour = find(this.#root, ".hour", HTMLTimeElement);
    write(hour, now.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false }));
    const date = find(this.#root, ".date", HTMLElement);
    write(date, now.toLocaleDateString("en", { weekday: "long", day: "numeric", month: "long" }));
  }

  /**
   * Show what a push says, in the place of the one before: pushes of one client replace each other.
   *
   * @param {import("../client.js").Alert} alert
   * @param {() => void} open the user opens it
   */
  notify({ loc_args: [videos, sender], badge, sound }, open) {
    const from = titleOf(sender);
    const text = videos === "1" ? `A video from ${from}` : `${videos} videos, the newest from ${from}`;
    const manner = make("span", "manner", icon(sound ? "sound" : "muted"), sound ? "with sound" : "silent");
    const button = make("button", "notification", icon("mark"), make("strong", "", "Videos"), manner);
    button.type = "button";
    button.append(make("span", "text", text));
    button.addEventListener("click", open);
    this.#notifications.replaceChildren(make("li", "", button));
    this.count(badge);
  }

  /**
   * The number on the app's icon: so many videos wait.
   *
   * @param {number} videos
   */
  count(videos) {
    this.#badge.hidden = videos === 0;
    this.#badge.replaceChildren(String(videos), make("span", "unseen", videos === 1 ? " video waits" : " videos wait"));
  }

  /** Take away what was shown: the app is open, or gone. */
  clear() {
    this.#notifications.replaceChildren();
  }
}
