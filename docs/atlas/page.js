"use strict";
// Rows are arrays in the data; here is what stands where.
const [PATTERN, ROLE, NORM, LABEL, TRAINED, COUNT, ELEMENTS, BITS, EVIDENCE, EXEMPTIONS] = Array(10).keys();
const [DECAYS, EXEMPT, DISPUTED] = [0, 1, 2];
const SHOULD = ["should decay", "should not decay", "opinions differ"];
const $ = (id) => document.getElementById(id);

// An element with attributes and children. Text is text: nothing of the data is ever read as markup.
function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child != null && child !== ""));
  return made;
}

const short = (n) => {
  for (const [unit, size] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]])
    if (n >= size) return `${(n / size).toPrecision(3).replace(/\.0+$/, "")} ${unit}`;
  return String(n);
};
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const link = (name, pattern) => "#" + encodeURIComponent(name) + (pattern ? "/" + encodeURIComponent(pattern) : "");

let data, models, chosen = "transformers", sorted = "name", filter = "";

async function read() {
  const bytes = Uint8Array.from(atob($("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  data = JSON.parse(await new Response(stream).text());
  models = data.architectures.map(([name, type, kind, own, missing, rows]) => {
    const model = { name, type, kind, own, missing, rows, elements: 0, tensors: 0, wrong: [] };
    model.wrong = data.policies.map(() => ({ tensors: 0, elements: 0 }));
    for (const row of rows) {
      model.elements += row[ELEMENTS];
      model.tensors += row[COUNT];
      data.policies.forEach((_, place) => {
        if (!isWrong(row, place)) return;
        model.wrong[place].tensors += row[COUNT];
        model.wrong[place].elements += row[ELEMENTS];
      });
    }
    model.text = `${name} ${type} ${rows.map((row) => data.words[row[PATTERN]]).join(" ")}`.toLowerCase();
    return model;
  });
}

const decays = (row, place) => (row[BITS] >> place) & 1;
const isWrong = (row, place) =>
  row[TRAINED] && row[LABEL] !== DISPUTED && Boolean(decays(row, place)) !== (row[LABEL] === DECAYS);

// --- the list

function showList() {
  document.title = "The atlas of weight decay";
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const found = models.filter((model) => words.every((word) => model.text.includes(word)));
  const byName = (a, b) => a.name.localeCompare(b.name);
  // What is called so comes before what has it in its name, and that before what has such a tensor.
  const near = (model) => {
    const name = model.name.toLowerCase(), called = `${name} ${model.type.toLowerCase()}`;
    if (!words.length || name.startsWith(words[0]) || model.type.toLowerCase() === words[0]) return 0;
    return words.every((word) => called.includes(word)) ? 1 : 2;
  };
  const place = data.policies.findIndex((policy) => policy.name === sorted);
  found.sort((a, b) =>
    near(a) - near(b) ||
    (sorted === "parameters" ? b.elements - a.elements : place >= 0 ? b.wrong[place].elements - a.wrong[place].elements : 0) ||
    byName(a, b));

  const sorter = (key, label) =>
    h("button", { type: "button", "aria-sort": sorted === key ? "descending" : null, onclick: () => { sorted = key; showList(); } }, label);
  const picker = h("select", { class: "only", "aria-label": "the policy that is shown", onchange: (event) => { chosen = event.target.value; showList(); } },
    data.policies.map((policy) => h("option", { value: policy.name, selected: policy.name === chosen }, policy.name)));
  const other = (policy) => (policy.name === chosen ? "number" : "number other");

  const head = h("tr", {}, h("th", {}, sorter("name", "architecture")), h("th", { class: "number" }, sorter("parameters", "size")),
    data.policies.map((policy) => h("th", { class: other(policy), title: policy.source }, sorter(policy.name, policy.name))));
  const right = h("tr", { class: "right" }, h("td", { colspan: 2 }, "wholly right"),
    data.policies.map((policy, at) => h("td", { class: other(policy) }, found.filter((model) => !model.wrong[at].tensors).length)));
  const row = (model) => h("tr", {},
    h("td", {}, h("a", { href: link(model.name) }, model.name), " ", h("span", { class: "muted" }, model.type)),
    h("td", { class: "number" }, model.own ? short(model.elements) : "–"),
    data.policies.map((policy, at) => {
      const wrong = model.wrong[at];
      const said = `${policy.name}: ${plural(wrong.tensors, "tensor")}, ${short(wrong.elements)} parameters`;
      return h("td", { class: other(policy) }, wrong.tensors
        ? h("span", { class: policy.meant ? "meant" : "bad", title: said }, wrong.tensors)
        : h("span", { class: "none", title: said }, "·"));
    }));

  const body = h("tbody");
  const table = h("table", { class: "list" }, h("thead", {}, head, right), body);
  $("main").replaceChildren(
    h("p", { id: "count" }, `${plural(found.length, "architecture")}; in the columns, how many tensors a rule decays wrongly, or fails to decay. `, picker),
    found.length ? h("div", { class: "scroll" }, table) : h("p", { id: "nothing" }, "Nothing is named so."));

  // What is seen first is there first.
  const next = (from) => {
    if (!table.isConnected) return;
    body.append(...found.slice(from, from + AT_ONCE).map(row));
    if (from + AT_ONCE < found.length) setTimeout(next, 0, from + AT_ONCE);
    else table.dataset.whole = "";
  };
  next(0);
}

const AT_ONCE = 60; // rows

// --- one architecture

function showModel(model, pattern) {
  document.title = `${model.name}: what decays wrongly`;
  const list = h("div", { id: "tensors" });
  const note = h("p", { class: "muted" });
  let only = pattern ? null : data.policies.findIndex((policy) => policy.name === chosen);

  const draw = () => {
    const rows = model.rows.filter((row) => only === null || (only < 0 ? anyWrong(row) : isWrong(row, only)));
    list.replaceChildren(...rows.map((row) => showTensor(model, row, data.words[row[PATTERN]] === pattern)));
    note.textContent = only === null ? `All ${plural(model.tensors, "tensor")}.`
      : rows.length ? `What ${only < 0 ? "any framework" : data.policies[only].name} decays wrongly, or fails to decay.`
      : `${data.policies[only] ? data.policies[only].name : "No framework"} is right on every tensor on which opinions do not differ.`;
    for (const card of cards.children) card.setAttribute("aria-pressed", String(card.dataset.place === String(only)));
  };
  const pick = (place) => () => { only = place; if (place !== null && place >= 0) chosen = data.policies[place].name; draw(); };
  const cards = h("div", { class: "cards" },
    data.policies.map((policy, place) => {
      const wrong = model.wrong[place];
      return h("button", { type: "button", class: "card", "data-place": place, onclick: pick(place), title: policy.source }, h("strong", {}, policy.name),
        h("span", { class: wrong.tensors ? (policy.meant ? "muted" : "wrong") : "right" },
          wrong.tensors ? `${plural(wrong.tensors, "tensor")}, ${short(wrong.elements)} parameters${policy.meant ? ", as it means to" : ""}` : "right"));
    }),
    h("button", { type: "button", class: "card", "data-place": null, onclick: pick(null) }, h("strong", {}, "all tensors"), h("span", { class: "muted" }, plural(model.tensors, "tensor"))));

  $("main").replaceChildren(
    h("p", {}, h("a", { href: "#" }, "All architectures")),
    h("h2", {}, model.name),
    h("p", { class: "muted" }, model.own
      ? `${short(model.elements)} parameters at the default configuration of transformers' class${model.type ? `, model type ${model.type}` : ""}${model.missing ? `; ${short(model.missing)} more are of kinds that were not recorded` : ""}.`
      : "Its default configuration does not build: parameters are those of the small recorded model."),
    cards, note, list);
  draw();
  const open = list.querySelector("details[open]");
  if (open) open.scrollIntoView({ block: "start" });
}

const anyWrong = (row) => data.policies.some((policy, place) => !policy.meant && isWrong(row, place));

function showTensor(model, row, isOpen) {
  const pattern = data.words[row[PATTERN]];
  const role = data.words[row[ROLE]], norm = data.words[row[NORM]];
  const wrong = data.policies.filter((policy, place) => isWrong(row, place) && !policy.meant);
  const verdict = `${row[TRAINED] ? SHOULD[row[LABEL]] : "does not train"}${row[COUNT] ? "" : "; not in the default configuration"}`;
  const box = h("details", { open: isOpen, "data-pattern": pattern },
    h("summary", {},
      h("span", { class: "pattern" }, pattern),
      h("span", { class: "size" }, `${row[COUNT] > 1 ? `${row[COUNT]} × ` : ""}${short(row[ELEMENTS])}`),
      h("span", { class: "what" }, `${role}${norm ? ` of ${/^[aeiou]/.test(norm) ? "an" : "a"} ${norm}` : ""}, `,
        h("span", { class: row[LABEL] === DISPUTED ? "open" : "muted" }, verdict), " ",
        wrong.map((policy) => h("span", { class: "chip" }, `${policy.name} ${row[LABEL] === DECAYS ? "exempts it" : "decays it"}`)))));
  const fill = () => { if (box.open && box.children.length === 1) box.append(story(model, row)); };
  box.addEventListener("toggle", fill);
  fill();
  return box;
}

// What a tensor is for, what decay does to it, and who does what with it, and why.
function story(model, row) {
  const role = data.words[row[ROLE]], norm = data.words[row[NORM]], pattern = data.words[row[PATTERN]];
  const known = data.roles[role] || {};
  const both = data.norms[norm] && data.norms[norm].decay ? data.norms[norm] : known;
  const lines = data.policies.map((policy, place) => {
    const at = data.emulated.indexOf(policy.name);
    const reason = at >= 0 && row[EXEMPTIONS][at] != null ? data.words[row[EXEMPTIONS][at]] : "";
    return h("tr", {}, h("td", {}, policy.name),
      h("td", { class: isWrong(row, place) ? (policy.meant ? "muted" : "wrong") : "" }, decays(row, place) ? "decays" : "exempts"),
      h("td", { class: "muted" }, reason && !decays(row, place) ? `${reason} (${policy.source})` : policy.source));
  });
  return h("div", { class: "story" },
    h("p", {}, h("strong", {}, `Seen: `), data.words[row[EVIDENCE]], "."),
    known.consequence && h("p", {}, h("strong", {}, row[LABEL] === DECAYS ? "If it does not: " : "If it decays: "), known.consequence, "."),
    both.decay && h("p", {}, h("strong", { class: "open" }, "Opinions differ. "), `Decay: ${both.decay}. No decay: ${both.exempt}.`),
    h("table", {}, h("tbody", {}, lines)),
    h("p", {}, h("a", { href: link(model.name, pattern) }, "A link to this tensor"), h("span", { class: "muted" },
      "; for a model of yours: "), h("code", {}, `weightdecay plan MODEL --why ${pattern.replace(/\{(\d+)[^}]*\}/g, "$1")}`)));
}

// --- a config.json

function landed(config) {
  if (!config || typeof config !== "object" || Array.isArray(config)) return say("That is no configuration: a config.json is a JSON object.");
  const names = [].concat(config.architectures || []).map(String);
  const exact = names.map((name) => models.find((model) => model.name === name)).find(Boolean);
  const types = [config, ...Object.values(config).filter((value) => value && typeof value === "object")]
    .map((part) => part.model_type).filter((type) => typeof type === "string");
  const byType = types.map((type) => models.filter((model) => model.type === type)).find((list) => list.length);
  // A family's causal model, where there is one, for what generates; its base model for what does not.
  const causal = names.some((name) => /CausalLM|LMHead|ConditionalGeneration/.test(name));
  const model = exact || (byType && (byType.find((one) => (one.kind === "causal") === causal) || byType[0]));
  if (!model) {
    const said = names.concat(types).join(", ");
    return say(said ? `${said}: the atlas has no such architecture. \`weightdecay plan config.json\` plans it.`
      : "This configuration names neither architectures nor a model_type.");
  }
  go(link(model.name));
  say(exact ? `${model.name}, as config.json says.`
    : `${names[0] || "It"} is not recorded by itself; this is ${model.name}, of the same model type ${model.type}.`);
}

async function opened(file) {
  if (!file) return;
  say(""); // what was said of another file
  try { landed(JSON.parse(await file.text())); }
  catch (error) { say(`${file.name} cannot be read: ${error.message}`); }
}

const say = (text) => { $("message").textContent = text; };

// --- the page

// Be there at once: the event of a changed fragment comes later, and what is said meanwhile would speak of another page.
function go(place) {
  if (location.hash !== place) history.pushState(null, "", place);
  route();
}

function route() {
  const [name, pattern] = location.hash.slice(1).split("/").map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
  const model = models.find((one) => one.name === name);
  if (model) { showModel(model, pattern); if (!pattern) scrollTo(0, 0); }
  else {
    if (name) say(`${name}: the atlas has no such architecture.`);
    showList();
  }
}

function foot() {
  const rows = data.policies.map((policy) => h("tr", {}, h("td", {}, policy.name), h("td", {}, `λ ${policy.weight_decay}, ${policy.form}`), h("td", {}, policy.source)));
  $("footer").replaceChildren(
    h("h3", {}, "What is compared"),
    h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, rows))),
    h("p", {}, `Made with weightdecay ${data.made_with.weightdecay} and transformers ${data.made_with.transformers}. What should decay was written down from reading the sources of the architectures; `,
      "tensors on which published practice differs, or which do not train, count as wrong for nobody. The column transformers is what its Trainer.get_decay_parameter_names returned. ",
      "Policies that mean to do otherwise than ours are grey. Parameters are those of each class's default configuration."));
}

async function main() {
  await read();
  $("lead").textContent = `Which tensors each framework's rule decays wrongly, in ${models.length} architectures of transformers ${data.made_with.transformers}, tensor by tensor.`;
  foot();
  $("search").addEventListener("input", (event) => {
    filter = event.target.value;
    say("");
    if (location.hash.length > 1) history.pushState(null, "", "#");
    showList();
  });
  $("search").addEventListener("keydown", (event) => {
    const first = document.querySelector(".list tbody a");
    if (event.key === "Enter" && first) go(first.getAttribute("href"));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== $("search")) { event.preventDefault(); $("search").focus(); }
  });
  $("file").addEventListener("change", (event) => { opened(event.target.files[0]); event.target.value = ""; });
  document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  document.addEventListener("drop", (event) => { event.preventDefault(); $("drop").hidden = true; opened(event.dataTransfer.files[0]); });
  addEventListener("hashchange", () => { say(""); route(); });
  route();
}

main().catch((error) => { $("main").textContent = `The atlas cannot be shown: ${error.message}. It needs a browser of 2023 or later.`; });
