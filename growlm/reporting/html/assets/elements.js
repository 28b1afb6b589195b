// Build the elements of the page. Data are inserted as text nodes and never parsed as markup.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function status(word, label = word.replace("_", " ")) {
  return element("span", { class: `status status-${word}` }, label);
}

const sections = [];

function section(id, title, hint, ...children) {
  sections.push({ id, title });
  return element(
    "section",
    { id, "aria-labelledby": `${id}-title` },
    element(
      "div",
      { class: "section-head" },
      element("h2", { id: `${id}-title` }, element("a", { href: `#${id}` }, title)),
      hint ? element("p", { class: "hint" }, hint) : null,
    ),
    ...children,
  );
}

function figure(caption, note, holder) {
  const words = element("figcaption", {}, caption, note ? element("small", {}, ` ${note}`) : null);
  return element("figure", {}, words, holder);
}

// A group of radio buttons: `options` are [value, label] pairs.
function choices(name, legend, options, chosen, onChange) {
  const radios = options.map(([value, label]) =>
    element(
      "label",
      { class: "choice" },
      element("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onChange(value) }),
      element("span", {}, label),
    ),
  );
  return element("fieldset", { id: name }, element("legend", {}, legend), ...radios);
}

function picker(id, label, options, onChange) {
  const select = element("select", { id, onchange: () => onChange(Number(select.value)) });
  options.forEach((text, index) => select.append(element("option", { value: String(index) }, text)));
  return element("label", { class: "select" }, label, select);
}

function head(data) {
  const values = data.strip.map(({ label, value, note }) =>
    element(
      "div",
      {},
      element("dt", {}, label),
      element("dd", { class: "value" }, value),
      note ? element("dd", { class: "note" }, note) : null,
    ),
  );
  const notes = (data.notes ?? []).map((note) => element("li", {}, note));
  return [
    element(
      "header",
      { class: "head" },
      element("h1", {}, data.title),
      data.status ? status(data.status) : null,
      element("p", { class: "subtitle" }, data.subtitle),
    ),
    notes.length ? element("ul", { class: "notes" }, ...notes) : null,
    element("dl", { class: "strip" }, ...values),
    provenance(data.provenance ?? []),
  ];
}

function provenance(facts) {
  if (!facts.length) return null;
  const rows = facts.map(({ label, value, copy, wide }) => {
    const text = element("span", { class: copy ? "literal" : null }, value);
    return element("div", { class: wide ? "wide" : null }, element("dt", {}, label), element("dd", {}, text, copy ? copyButton(value, text, label) : null));
  });
  return element("dl", { class: "provenance", "aria-label": "Where these numbers come from" }, ...rows);
}

function copyButton(text, shown, what) {
  const button = element("button", { class: "copy", type: "button", "aria-label": `Copy ${what}`, onclick: () => copyText(text, shown, button) }, "Copy");
  return button;
}

function contents() {
  const links = sections.map(({ id, title }) => element("a", { href: `#${id}` }, title));
  return element("nav", { "aria-label": "Sections" }, ...links);
}

function commandList(commands) {
  return commands.map(({ title, command, note }) => {
    const code = element("pre", { class: "wrapped" }, command);
    const copy = copyButton(command, code, `the command ${title}`);
    return element(
      "div",
      { class: "command" },
      element("h3", {}, title),
      element("p", { class: "hint" }, note),
      element("div", { class: "row" }, code, copy),
    );
  });
}

async function copyText(text, shown, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(shown);
    button.textContent = "Selected";
  }
}

function sample(title, text) {
  return element("div", { class: "sample" }, element("h3", {}, title), element("blockquote", {}, text));
}

function messageList(messages) {
  const items = messages.map(({ where, text }) => element("li", {}, element("b", {}, `${where}: `), text));
  return element("ul", { class: "warnings" }, ...items);
}
