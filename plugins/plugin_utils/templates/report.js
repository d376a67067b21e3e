// Copyright: (c) 2026, vmimage.qcow contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
//
// The page is whole without this. It adds sorting, filtering, grouping, and buttons that copy. The rows of the tables are the data: they are moved,
// never written a second time. What is shown is in the address after the #, so that it can be sent to a colleague.
(() => {
  "use strict";
  const SHORT = 10, ROWS = 100;
  const PENDING = ["failed", "interrupted", "running", "left", "deferred"];
  const ORDER = [...PENDING, "migrated", "other"];
  const COLUMNS = ["image", "domain", "state", "virtual", "disk", "result", "time"];

  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const byText = new Intl.Collator("en", { numeric: true }).compare;
  function make(tag, facts = {}, ...inside) {
    const element = Object.assign(document.createElement(tag), facts);
    element.append(...inside);
    return element;
  }
  function size(bytes) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (bytes >= 1000 && unit < 4) { bytes /= 1024; unit += 1; }
    return `${bytes.toFixed(bytes >= 100 || !unit ? 0 : 1)} ${units[unit]}`;
  }
  const number = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const counted = (value, what) => `${number(value)} ${what}${value === 1 ? "" : "s"}`;

  // ---- copying: the text is selected, so that where a browser forbids the rest, Ctrl+C is left to do

  function copyButton(code) {
    const button = make("button", { type: "button", textContent: "Copy" });
    button.addEventListener("click", () => {
      getSelection().selectAllChildren(code);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    return button;
  }
  function offerCopies(within) {
    all(".copy, summary + code", within).forEach((code) => {
      if (code.dataset.offered) { return; }
      code.dataset.offered = "yes";
      code.after(" ", copyButton(code));
    });
  }
  offerCopies(document.querySelector("main > section"));
  document.addEventListener("toggle", (event) => { if (event.target.open) { offerCopies(event.target); } }, true);

  // ---- the images, as the page has them

  const list = one("#list"), form = one("form"), output = one("output"), fields = form.elements;
  const head = one(".images thead"), images = [];
  all(".images", list).forEach((table) => {
    for (const row of table.tBodies[0].rows) {
      const why = row.cells[2].getElementsByClassName("why")[0];
      images.push({ row, host: table.dataset.host, state: row.className, reason: why ? why.textContent : "" });
    }
  });
  const names = {};
  all("option", fields.state).forEach((option) => { names[option.value] = option.text; });
  const means = {};
  all("option[title]", fields.reason).forEach((option) => { means[option.value] = option.title; });
  const figures = (image) => image.figures || (image.figures = image.row.dataset.n.split(" ").map(Number));
  const text = (image) => image.text || (image.text = `${image.host} ${image.row.textContent}`.toLowerCase());
  const cell = (image, index) => image.row.cells[index].firstChild.textContent;
  const domains = (image) => image.domains || (image.domains = cell(image, 1).toLowerCase().split(", "));

  const hostTable = one(".hosts"), hosts = [...hostTable.tBodies[0].rows].map((row) => ({ row, name: one("a", row).textContent }));
  one("#host-names").append(...hosts.map((host) => make("option", { value: host.name })));

  // ---- what is asked for

  let sort = "", hostSort = "", hostsShown = SHORT, groupsShown = SHORT;
  const opened = new Map();

  function fitting() {
    const wanted = (name) => fields[name].value.trim().toLowerCase();
    const [contains, state, reason, host, domain] = ["text", "state", "reason", "host", "domain"].map(wanted);
    const exactHost = hosts.some((one) => one.name.toLowerCase() === host);
    const exactDomain = domain && images.some((image) => domains(image).includes(domain));
    const isHost = (name) => !host || (exactHost ? name.toLowerCase() === host : name.toLowerCase().includes(host));
    const found = images.filter((image) => isHost(image.host) &&
      (!state || (state === "pending" ? PENDING.includes(image.state) : image.state === state)) &&
      (!reason || image.reason === reason) &&
      (!domain || domains(image).some((name) => (exactDomain ? name === domain : name.includes(domain)))) &&
      (!contains || text(image).includes(contains)));
    const having = new Set(found.map((image) => image.host)), only = state || reason || domain;
    const shown = hosts.filter((one) => isHost(one.name) &&
      (having.has(one.name) || (!only && (!contains || one.row.textContent.toLowerCase().includes(contains)))));
    return { found, shown, filtered: contains || host || only };
  }

  function sorted(found) {
    const column = COLUMNS.indexOf(sort.replace("-", "")), sign = sort.startsWith("-") ? -1 : 1;
    if (column < 0) { return found; }
    const compare = column > 2 ? (a, b) => figures(a)[column - 3] - figures(b)[column - 3]
      : column === 2 ? (a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || byText(a.reason, b.reason)
        : (a, b) => byText(cell(a, column), cell(b, column));
    return found.slice().sort((a, b) => sign * compare(a, b));
  }

  function grouped(found, shown) {
    const by = fields.group.value;
    if (by === "none") { return [["", found]]; }
    const groups = new Map();
    found.forEach((image) => {
      const key = by === "reason" ? image.reason || names[image.state] : by === "state" ? names[image.state] : image.host;
      groups.has(key) ? groups.get(key).push(image) : groups.set(key, [image]);
    });
    const order = (images) => Math.min(...images.map((image) => ORDER.indexOf(image.state)));
    const entries = [...groups], place = new Map(shown.map((host, index) => [host.name, index]));
    return by ? entries.sort((a, b) => order(a[1]) - order(b[1]) || b[1].length - a[1].length) : entries.sort((a, b) => place.get(a[0]) - place.get(b[0]));
  }

  // ---- what is shown

  function sortable(thead, keys, current, choose) {
    [...thead.rows[0].cells].forEach((th, index) => {
      if (!keys[index]) { return; }
      const button = one("button", th) || make("button", { type: "button", textContent: th.textContent });
      button.dataset.key = keys[index];
      if (!button.parentElement) { th.replaceChildren(button); }
      th.removeAttribute("aria-sort");
      if (current.replace("-", "") === keys[index]) { th.setAttribute("aria-sort", current.startsWith("-") ? "descending" : "ascending"); }
      button.onclick = () => choose(current === keys[index] ? `-${keys[index]}` : keys[index]);
    });
  }

  function summaryOf(found) {
    const states = ORDER.map((state) => [found.filter((image) => image.state === state).length, names[state]]).filter(([n]) => n);
    const bytes = found.reduce((sum, image) => sum + figures(image)[1], 0);
    return ` ${counted(found.length, "image")}, ${size(bytes)}: ${states.map(([n, name]) => `${number(n)} ${name}`).join(", ")}`;
  }

  function tableOf(name, found) {
    const thead = head.cloneNode(true), tbody = make("tbody"), box = make("div");
    const table = make("table", { className: "wide images" }, make("caption", { className: "hidden", textContent: `Images: ${name || "all"}` }), thead, tbody);
    sortable(thead, COLUMNS, sort, (key) => { sort = key; show(); again(name, key); });
    const more = make("button", { type: "button" });
    const add = () => {
      const from = tbody.rows.length, part = found.slice(from, from + ROWS);
      part.forEach((image) => {
        if (!one(".host", image.row)) { image.row.cells[0].append(make("span", { className: "host sub", textContent: image.host })); }
      });
      tbody.append(...part.map((image) => image.row));
      more.textContent = `Show more (${counted(found.length - tbody.rows.length, "image")} of ${number(found.length)} not shown yet)`;
      more.hidden = tbody.rows.length === found.length;
      return from;
    };
    more.addEventListener("click", () => {
      const from = add();
      if (more.hidden) { tbody.rows[from].tabIndex = -1; tbody.rows[from].focus(); }
    });
    add();
    box.append(table, more);
    return box;
  }

  function again(name, key) {
    const place = all(".entry, .flat", list).find((element) => element.dataset.name === name);
    const button = place && one(`button[data-key="${key.replace("-", "")}"]`, place);
    if (button) { button.focus(); }
  }

  function showImages(found, shown, filtered) {
    const groups = grouped(sorted(found), shown), few = filtered && (groups.length === 1 || found.length <= 30);
    const by = fields.group.value;
    list.className = by ? "" : "by-host";
    list.replaceChildren(...groups.slice(0, groupsShown).map(([name, group]) => {
      if (by === "none") {
        const flat = make("div", { className: "flat" }, tableOf("", group));
        flat.dataset.name = "";
        return flat;
      }
      const details = make("details", { className: "entry" }, make("summary", {}, make("strong", { textContent: by === "reason" && means[name] ? `${means[name]} (${name})` : name }), summaryOf(group)));
      details.dataset.name = name;
      const fill = () => { if (details.open && !one("table", details)) { details.append(tableOf(name, group)); } };
      details.open = opened.has(name) ? opened.get(name) : few;
      details.addEventListener("toggle", () => { fill(); });
      one("summary", details).addEventListener("click", () => opened.set(name, !details.open));
      fill();
      return details;
    }));
    if (!found.length) { list.append(make("p", { className: "muted", textContent: "No image fits." })); }
    if (groups.length > groupsShown) {
      list.append(moreButton(`Show the images of all ${number(groups.length)} ${by === "reason" ? "reasons" : "hosts"}`, () => {
        const from = groupsShown;
        groupsShown = Infinity;
        show();
        one("summary", list.children[from]).focus();
      }));
    }
  }

  function moreButton(label, action) {
    const button = make("button", { type: "button", className: "show-all", textContent: label });
    button.addEventListener("click", action);
    return button;
  }

  function showHosts(shown) {
    const column = HOST_COLUMNS.indexOf(hostSort.replace("-", "")), sign = hostSort.startsWith("-") ? -1 : 1;
    const value = (host) => (column ? host.row.cells[column].dataset.v : host.name);
    const order = column < 0 ? shown : shown.slice().sort((a, b) => sign * byText(value(a), value(b)));
    hostTable.tBodies[0].replaceChildren(...order.slice(0, hostsShown).map((host) => host.row));
    sortable(hostTable.tHead, HOST_COLUMNS, hostSort, (key) => { hostSort = key; show(); });
    all(":scope > .show-all", hostTable.parentElement).forEach((button) => button.remove());
    if (order.length > hostsShown) {
      hostTable.after(moreButton(`Show all ${counted(order.length, "host")}`, () => {
        const from = hostsShown;
        hostsShown = Infinity;
        show();
        one("a", hostTable.tBodies[0].rows[from]).focus();
      }));
    }
    return order;
  }
  const HOST_COLUMNS = ["host", "state", "known", "left", "disk", "failed", "migrated", "time"];

  function show() {
    const { found, shown, filtered } = fitting();
    showImages(found, showHosts(shown), filtered);
    const bytes = found.reduce((sum, image) => sum + figures(image)[1], 0);
    const told = `${filtered ? `${number(found.length)} of ` : ""}${counted(images.length, "image")} on ${counted(shown.length, "host")}, ${size(bytes)} on disk`;
    if (output.textContent !== told) { output.textContent = told; }
    remember();
  }

  // ---- the address

  const FIELDS = ["text", "state", "reason", "host", "domain", "group"];
  function remember() {
    const asked = new URLSearchParams();
    FIELDS.forEach((name) => { if (fields[name].value) { asked.set(name, fields[name].value); } });
    if (sort) { asked.set("sort", sort); }
    if (hostSort) { asked.set("hosts", hostSort); }
    const fragment = asked.toString();
    if (fragment !== location.hash.slice(1)) { history.replaceState(null, "", `#${fragment}`); }
  }
  function recall() {
    const asked = new URLSearchParams(location.hash.slice(1));
    FIELDS.forEach((name) => {
      fields[name].value = asked.get(name) || "";
      if (fields[name].selectedIndex === -1) { fields[name].selectedIndex = 0; }
    });
    sort = asked.get("sort") || "";
    hostSort = asked.get("hosts") || "";
    opened.clear();
    groupsShown = SHORT;
    show();
    if ([...FIELDS, "sort", "hosts"].some((name) => asked.has(name))) { one("#find").scrollIntoView(); }
  }

  form.hidden = output.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { groupsShown = SHORT; opened.clear(); show(); });
  form.addEventListener("reset", () => setTimeout(() => { sort = hostSort = ""; hostsShown = groupsShown = SHORT; opened.clear(); show(); }));
  addEventListener("hashchange", recall);
  recall();
})();
