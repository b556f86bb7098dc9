// Elements, messages and words for the screen reader.

/** Makes an element: properties, `on…` listeners, `class`, `aria-…` and `data-…` attributes, then children (null is left out). */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && !name.includes("-") && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const ICONS = {
  back: "M10 3 5 8l5 5",
  plus: "M8 3v10M3 8h10",
  pencil: "m3 13 .6-3L11 2.6 13.4 5 6 12.4z",
  bin: "M3 4.5h10M6.5 4.5V3h3v1.5M4.5 4.5 5 13h6l.5-8.5",
  people: "M6 7.5a2.2 2.2 0 1 0 0-4.5 2.2 2.2 0 0 0 0 4.5M2 13c0-2.4 1.6-4 4-4s4 1.6 4 4M10.5 3.3a2.2 2.2 0 0 1 0 4M12 9.5c1.3.5 2 1.800 2 3.5",
  cross: "m4 4 8 8M12 4l-8 8",
};

/** A small line drawing; the button around it has the words. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Shows a message for a while, with something to do about it if `action` is given. */
export function toast(text, action) {
  const box = el("div", { class: "toast", role: "status" }, el("span", {}, text));
  const close = () => box.remove();
  if (action) {
    box.append(el("button", { class: "plain-button", onclick: () => { close(); action.run(); } }, action.label));
  }
  document.getElementById("toasts").append(box);
  setTimeout(close, action ? 8000 : 5000);
}

/** Announces something to people who use a screen reader. */
export function announce(text) {
  const spoken = document.getElementById("spoken");
  spoken.append(el("p", {}, text));
  while (spoken.childElementCount > 4) spoken.firstElementChild.remove();
}
