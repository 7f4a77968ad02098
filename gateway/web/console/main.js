/** The console: signing in and out, the stream, and which of its views is shown. */

import { Board } from "./board.js";
import { byId, mark, say } from "./dom.js";
import { Fleet } from "./fleet.js";
import { clock } from "./format.js";
import { Lookup, addressOf, wanted, wireDialog } from "./lookup.js";
import { Session } from "./session.js";
import { follow } from "./stream.js";

/** @typedef {import("./stream.js").State} State */
/** @typedef {import("./stream.js").Told} Told */

const NAMED = "Console";

/** From signing in to signing out. */
class Visit {
  #session;
  #fleet = new Fleet();
  #board = new Board(this.#fleet);
  #over = new AbortController();
  #lookup;
  #left;

  /**
   * @param {Session} session
   * @param {(reason: string) => void} left called when the token is refused
   */
  constructor(session, left) {
    this.#session = session;
    this.#left = left;
    this.#lookup = new Lookup(session, left);
  }

  begin() {
    const { signal } = this.#over;
    for (const radio of byId("reach", HTMLElement).querySelectorAll("input")) {
      radio.addEventListener("change", () => this.#board.reach(radio.value), { signal });
      if (radio.checked) this.#board.reach(radio.value);
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#board.recolour(), { signal });
    addEventListener("hashchange", () => this.#open(wanted()), { signal });
    byId("retry", HTMLButtonElement).addEventListener("click", () => dispatchEvent(new Event("online")), { signal });
    void follow(this.#session, {
      heard: told => this.#heard(told), changed: state => this.#changed(state), signal, sooner: window,
    });
  }

  end() {
    this.#over.abort();
    this.#lookup.show(null);
    show("door");
  }

  /** @param {State} state */
  #changed(state) {
    if (state.name === "refused") {
      this.#left(state.reason);
      return;
    }
    if (state.name === "live") this.#session.keep();
    if (byId("board", HTMLElement).hidden && state.name !== "connecting") {
      show("board");
      this.#open(wanted());
    }
    mark(document.body, "data-connection", state.name);
    this.#board.stale(state.name === "lost");
    say(byId("connection", HTMLElement), sentence(state));
    byId("retry", HTMLButtonElement).hidden = state.name !== "lost";
  }

  /** @param {Told} told */
  #heard({ name, data }) {
    const now = performance.now();
    if (name === "process") {
      this.#fleet.describe(/** @type {import("./fleet.js").Description} */ (data), now);
      this.#board.refresh();
    } else if (name === "samples") {
      this.#fleet.take(/** @type {import("./fleet.js").Samples} */ (data), now);
      this.#board.draw();
    } else if (name === "facts") {
      this.#fleet.facts = /** @type {import("./fleet.js").Facts} */ (data);
    }
  }

  /** @param {string | null} clientId */
  #open(clientId) {
    byId("overview", HTMLElement).hidden = clientId !== null;
    byId("wanted", HTMLInputElement).value = clientId ?? "";
    document.title = clientId === null ? NAMED : `${clientId} · ${NAMED}`;
    this.#lookup.show(clientId);
    this.#board.refresh();
  }
}

/** @param {State} state */
function sentence(state) {
  switch (state.name) {
    case "live": return "Live";
    case "lost": return `Not connected since ${clock(state.since)}: ${state.reason}. Numbers are of then.`;
    default: return "Connecting …";
  }
}

/** @param {"door" | "board"} view */
function show(view) {
  byId("door", HTMLElement).hidden = view !== "door";
  for (const id of ["board", "bar", "link"]) byId(id, HTMLElement).hidden = view !== "board";
  if (view === "door") mark(document.body, "data-connection", "none");
}

function start() {
  /** @type {Visit | null} */
  let visit = null;
  const token = byId("token", HTMLInputElement);

  const leave = (/** @type {string} */ reason) => {
    visit?.end();
    visit = null;
    Session.forget();
    say(byId("refusal", HTMLElement), reason);
    token.focus();
  };
  const enter = (/** @type {Session} */ session) => {
    visit?.end();
    say(byId("refusal", HTMLElement), "");
    visit = new Visit(session, leave);
    visit.begin();
  };

  byId("sign-in", HTMLFormElement).addEventListener("submit", event => {
    event.preventDefault();
    enter(new Session(token.value.trim()));
    token.value = "";
  });
  byId("find", HTMLFormElement).addEventListener("submit", event => {
    event.preventDefault();
    location.hash = addressOf(byId("wanted", HTMLInputElement).value.trim());
  });
  byId("skip", HTMLAnchorElement).addEventListener("click", event => {
    event.preventDefault();
    byId("main", HTMLElement).focus();
  });
  byId("leave", HTMLButtonElement).addEventListener("click", () => leave(""));
  wireDialog();

  const kept = Session.kept();
  if (kept !== null) enter(kept);
  else show("door");
}

start();
