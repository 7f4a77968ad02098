/** The few things that this page does to its document. Whatever is inserted is inserted as text. */

/** @typedef {Node | string | null} Child null: nothing */

/**
 * A new element. `class` and other attributes by their names; one that is null is left out.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | null>} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children.filter(child => child !== null));
  return made;
}

/**
 * A new element of a drawing, as `element` makes those of a page.
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | null>} [attributes]
 * @param {...SVGElement} children
 * @returns {SVGElementTagNameMap[Tag]}
 */
export function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) mark(made, name, value);
  made.append(...children);
  return made;
}

/**
 * The element of this id, which must be there and of this type.
 * @template {Element} Type
 * @param {string} id
 * @param {new () => Type} type
 * @returns {Type}
 */
export function byId(id, type) {
  const found = document.getElementById(id);
  if (found instanceof type) return found;
  throw new TypeError(`there is no ${type.name} called ${id}`);
}

/**
 * Make `text` the text of `node`; one that says it already is left alone.
 * @param {Element} node
 * @param {string} text
 */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make an attribute what it should be; null removes it.
 * @param {Element} node
 * @param {string} name
 * @param {string | null} value
 */
export function mark(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/**
 * Make `parent` hold one element for each of `items`, in their order. Those that stay are kept, and with them the
 * focus.
 * @template Item
 * @template {HTMLElement} Made
 * @param {Element} parent it holds nothing else
 * @param {readonly Item[]} items
 * @param {(item: Item) => string} keyOf no two are the same
 * @param {(item: Item) => Made} make
 * @param {(made: Made, item: Item) => void} [update] what is done with it every time
 */
export function keyed(parent, items, keyOf, make, update) {
  const children = /** @type {Made[]} */ ([...parent.children]);
  const kept = new Map(children.map(child => [child.getAttribute("data-key"), child]));
  items.forEach((item, place) => {
    const key = keyOf(item);
    let made = kept.get(key);
    kept.delete(key);
    if (made === undefined) {
      made = make(item);
      made.setAttribute("data-key", key);
    }
    update?.(made, item);
    if (parent.children[place] !== made) parent.insertBefore(made, parent.children[place] ?? null);
  });
  for (const left of kept.values()) left.remove();
}
