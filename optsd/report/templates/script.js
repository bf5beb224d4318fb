"use strict";
(() => {
  const one = (selector) => document.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  /* Theme. A page opened from disk may be refused its storage. */
  const stored = { get() { try { return localStorage.getItem("optsd-theme") || ""; } catch { return ""; } },
                   set(value) { try { localStorage.setItem("optsd-theme", value); } catch { /* not kept */ } } };
  const theme = one("#theme");
  const paint = (value) => { if (value) document.documentElement.dataset.theme = value; else delete document.documentElement.dataset.theme; };
  theme.value = stored.get();
  paint(theme.value);
  theme.addEventListener("change", () => { paint(theme.value); stored.set(theme.value); });

  /* What a mark or a missing figure means, for pointer, touch and keyboard. */
  const tip = one("#tip");
  const show = (target) => {
    tip.textContent = target.dataset.tip || target.getAttribute("aria-label");
    tip.hidden = false;
    const mark = target.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(mark.left + mark.width / 2 - box.width / 2, 8), innerWidth - box.width - 8);
    tip.style.left = `${left}px`;
    tip.style.top = `${mark.top - box.height - 8 < 0 ? mark.bottom + 8 : mark.top - box.height - 8}px`;
  };
  const tipped = (event) => event.target instanceof Element && event.target.closest(".point, [data-tip]");
  for (const name of ["pointerover", "focusin"]) document.addEventListener(name, (event) => { const target = tipped(event); if (target) show(target); });
  for (const name of ["pointerout", "focusout"]) document.addEventListener(name, () => { tip.hidden = true; });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { tip.hidden = true; one("#filter").open = false; } });
  /* The focus scrolls its mark into view, and the tip must come along. */
  addEventListener("scroll", () => { if (tip.hidden) return; if (document.activeElement.matches(".point")) show(document.activeElement); else tip.hidden = true; }, { passive: true });

  /* Which variants are shown: in tables, plots and pictures alike. */
  const boxes = all("[data-toggle]");
  const owned = new Map(boxes.map((box) => [box.dataset.toggle, []]));
  for (const element of all("[data-variant]")) owned.get(element.dataset.variant)?.push(element);
  const showVariants = () => {
    for (const box of boxes) for (const element of owned.get(box.dataset.toggle)) element.classList.toggle("off", !box.checked);
    one("#shown-count").textContent = `${boxes.filter((box) => box.checked).length} of ${boxes.length}`;
    countClaims();
  };
  const check = (wanted) => { for (const box of boxes) box.checked = wanted(box); showVariants(); };
  for (const box of boxes) box.addEventListener("change", showVariants);
  one("#all-variants").addEventListener("click", () => { one("#variant-search").value = ""; check(() => true); });
  one("#no-variants").addEventListener("click", () => check(() => false));
  one("#variant-search").addEventListener("input", (event) => { const part = event.target.value.trim().toLowerCase(); check((box) => box.dataset.name.toLowerCase().includes(part)); });
  document.addEventListener("click", (event) => { if (!one("#filter").contains(event.target)) one("#filter").open = false; });

  /* Sorting. What has no figure stays at the end, whichever way is up. */
  const keyOf = (row, column) => {
    const cell = row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim();
    const number = Number(text);
    return text === "" || text === "-" || cell.classList.contains("none") ? null : Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  for (const table of all(".sortable")) {
    const heads = all("thead th", table), body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : down ? compare(b, a) : compare(a, b));
      body.append(...rows.map(([, row]) => row));
    }));
  }

  /* Which tables go on to the right. */
  for (const box of all(".scroll")) {
    const look = () => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
    box.addEventListener("scroll", look, { passive: true });
    new ResizeObserver(look).observe(box);
  }

  /* Verdicts by status and by text. */
  const verdicts = all("#verdicts tbody tr");
  let status = "";
  const countClaims = () => {
    const count = one("#claim-count");
    if (count) count.textContent = `${verdicts.filter((row) => !row.matches(".off, .filtered")).length} of ${verdicts.length} shown`;
  };
  const filterClaims = () => {
    const part = one("#claim-search").value.trim().toLowerCase();
    for (const row of verdicts) row.classList.toggle("filtered", Boolean(status && row.dataset.status !== status) || !row.textContent.toLowerCase().includes(part));
    countClaims();
  };
  const press = (buttons, pressed) => { for (const button of buttons) button.setAttribute("aria-pressed", String(button === pressed)); };
  const chips = all("#claim-filter [data-status]");
  for (const chip of chips) chip.addEventListener("click", () => { status = chip.dataset.status; press(chips, chip); filterClaims(); });
  one("#claim-search")?.addEventListener("input", filterClaims);
  countClaims();

  /* Pictures: each is in the page once, and wherever it is shown it comes from there. */
  if (!one("#picture-data")) return;
  const data = JSON.parse(one("#picture-data").textContent);
  const [variant, prompt, stage, slider] = ["#picture-variant", "#picture-prompt", "#stage", "#slider"].map(one);
  const thumbs = all(".thumb");
  for (const thumb of thumbs) thumb.firstElementChild.src = data.urls[thumb.dataset.picture];
  const put = (image, owner, index) => {
    const url = data.urls[`${owner}/${index}`];
    image.alt = url ? `${data.names[owner]}: ${data.prompts[index].text}` : `no picture of ${data.names[owner] ?? "the baseline"}`;
    image.onload = () => image.classList.toggle("pixels", image.naturalWidth <= 160);
    if (url) image.src = url; else image.removeAttribute("src");
  };
  const showPair = () => {
    const owner = variant.value, index = prompt.value, lost = data.lost[`${owner}/${index}`];
    put(one("#picture-base"), data.baseline, index);
    put(one("#picture-mine"), owner, index);
    one("#picture-tag").textContent = data.names[owner];
    const about = data.prompts[index];
    one("#picture-caption").textContent = about ? `“${about.text}”, seed ${about.seed}${lost ? `; ${data.names[owner]} against the baseline: ${lost}` : ""}` : "";
    for (const thumb of thumbs) thumb.setAttribute("aria-pressed", String(thumb.dataset.picture === `${owner}/${index}`));
  };
  const offerPrompts = (wanted) => {
    prompt.replaceChildren(...(data.choices[variant.value] ?? []).map((index) => new Option(data.prompts[index].text || `picture ${index}`, index)));
    if (wanted !== null && data.choices[variant.value]?.includes(Number(wanted))) prompt.value = wanted;
    showPair();
  };
  const slide = () => stage.style.setProperty("--cut", `${slider.value}%`);
  slider.addEventListener("input", slide);
  variant.addEventListener("change", () => offerPrompts(prompt.value));
  prompt.addEventListener("change", showPair);
  const modes = all("[data-mode]", one("#viewer .controls"));
  for (const mode of modes) mode.addEventListener("click", () => { stage.dataset.mode = mode.dataset.mode; press(modes, mode); });
  for (const thumb of thumbs) thumb.addEventListener("click", () => {
    const [owner, index] = thumb.dataset.picture.split("/");
    if ([...variant.options].some((option) => option.value === owner)) variant.value = owner;
    offerPrompts(index);
    one("#viewer").scrollIntoView({ block: "nearest" });
  });
  slide();
  offerPrompts(data.first);
})();
