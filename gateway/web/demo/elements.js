/** What both pages do with elements: find those that must be there, and make new ones. Text goes in as text. @module */

const SVG = "http://www.w3.org/2000/svg";

/**
 * The first element that a selector finds. Throws where there is none of that kind: the page and its script belong
 * together.
 *
 * @template {Element} T
 * @param {ParentNode} root
 * @param {string} selector
 * @param {new () => T} kind
 * @returns {T}
 */
export function find(root, selector, kind) {
  const found = root.querySelector(selector);
  if (!(found instanceof kind)) throw new Error(`the page has no ${selector}`);
  return found;
}

/**
 * A copy of the one element in the template with that id.
 *
 * @param {string} id
 */
export function copyOf(id) {
  const template = find(document, `#${id}`, HTMLTemplateElement);
  return find(/** @type {DocumentFragment} */ (document.importNode(template.content, true)), "*", HTMLElement);
}

/**
 * A new element with that class and that content; a string is text.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {string} className
 * @param {...(Node | string)} content
 */
export function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

/**
 * A picture from `icons.svg`, for the eye alone.
 *
 * @param {string} name
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `/web/demo/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/**
 * Put a text where it is not there already: a screen reader says again what is set again.
 *
 * @param {Element} element
 * @param {string} text
 */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
