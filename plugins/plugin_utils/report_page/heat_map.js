// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// Hosts x rules on a canvas that draws what is in sight, and the whole fleet in miniature beside it.

const map = (() => {
  const LAYERS = [
    ...new Set(["network", "transport", "authentication", "access_control", ...rules.map((rule) => rule.layer)]),
  ];
  const columns = [...rules].sort((a, b) => LAYERS.indexOf(a.layer) - LAYERS.indexOf(b.layer) || compare(a.id, b.id));
  const SIZES = [0.36, 0.52, 0.74, 1],
    GAP = 9;
  let cells = null,
    used = columns,
    at = null,
    colours = null,
    box = {};
  const canvas = h("canvas", { "aria-hidden": "true" }),
    spacer = h("div"),
    mini = h("canvas.mini", { "aria-hidden": "true" });
  const cursor = h("div.cursor", { role: "status" }),
    only = h("input", { type: "checkbox", id: "only" });
  const scroll = h(
    "div.scroll",
    {
      tabindex: 0,
      role: "application",
      "aria-label": "Heat map of hosts and rules",
      "aria-describedby": "map-help",
    },
    canvas,
    spacer,
  );
  const legend = h(
    "p.legend",
    severity("critical"),
    severity("high"),
    severity("medium"),
    severity("low"),
    h("span.sev.unseen", "not observed"),
    h("span.sev.waived", "waived"),
    h("span.sev.passed", "passed"),
  );
  const node = h(
    "div",
    h("div.found", legend, h("label.check", only, "only rules that some host breaks")),
    cursor,
    h("div.map", scroll, mini),
    h(
      "p.label",
      { id: "map-help" },
      "Arrow keys move from cell to cell, Enter opens the host. The same is told by the ",
      h("a", { href: "#hosts" }, "table of hosts"),
      " and the ",
      h("a", { href: "#rules" }, "table of rules"),
      ".",
    ),
  );

  // One Map of findings a host, by rule.
  const cellsOf = (host) =>
    (cells ??= new Map()).get(host) ||
    (cells.set(host, new Map(host.findings.map((one) => [one.rule, one]))), cells.get(host));
  const passedOf = new Map();
  const passes = (host, rule) => {
    if (!passedOf.has(host.passed)) passedOf.set(host.passed, new Set(host.passed));
    return passedOf.get(host.passed).has(rule.index);
  };

  function palette() {
    const style = getComputedStyle(document.documentElement),
      get = (name) => style.getPropertyValue(name).trim();
    const fills = SEVERITIES.map((name) => get(`--${name}-fill`));
    const words = SEVERITIES.map((name) => get(`--${name}`));
    return {
      fills,
      words,
      paper: get("--paper"),
      ink: get("--ink"),
      muted: get("--muted"),
      line: get("--line"),
      cell: get("--cell"),
      raised: get("--raised"),
      good: get("--good"),
      off: get("--off"),
      strong: get("--strong"),
      sans: get("--sans"),
      mono: get("--mono"),
    };
  }

  function measure() {
    used = only.checked
      ? columns.filter((rule) => rule.open.length + rule.unseen.length + rule.waived.length)
      : columns;
    const width = scroll.clientWidth,
      height = scroll.clientHeight,
      left = width < 560 ? 116 : 180,
      top = 88;
    const layers = used.map((rule, index) => index > 0 && rule.layer !== used[index - 1].layer),
      gaps = layers.filter(Boolean).length * GAP;
    const cell = Math.max(width < 560 ? 15 : 11, Math.min(20, (width - left - 8 - gaps) / Math.max(used.length, 1)));
    const row = shown.length > 120 ? 13 : 18;
    let x = 0;
    const xs = layers.map((begins, index) => (x += (index ? cell : 0) + (begins ? GAP : 0)));
    box = {
      width,
      height,
      left,
      top,
      cell,
      row,
      xs,
      wide: left + x + cell + 8,
      high: top + shown.length * row + 8,
    };
    spacer.style.width = `${box.wide}px`;
    spacer.style.height = `${Math.max(0, box.high - height)}px`;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }

  function mark(g, finding, x, y, wide, high) {
    const side = Math.min(wide, high) - 2,
      colour = colours.fills[finding.severity],
      left = x + (wide - side) / 2,
      top = y + (high - side) / 2;
    if (finding.state === "open") {
      const size = side * SIZES[finding.severity],
        pad = (side - size) / 2;
      g.fillStyle = colour;
      g.fillRect(left + pad, top + pad, size, size);
      return;
    }
    g.strokeStyle = colours.off;
    g.lineWidth = 1;
    g.setLineDash(finding.state === "unseen" ? [2, 1.5] : []);
    g.strokeRect(left + 0.5, top + 0.5, side - 1, side - 1);
    g.setLineDash([]);
    if (finding.state === "waived") {
      g.beginPath();
      g.moveTo(left, top + side);
      g.lineTo(left + side, top);
      g.stroke();
    }
  }

  function paint() {
    const g = canvas.getContext("2d"),
      ratio = window.devicePixelRatio || 1,
      { width, height, left, top, cell, row, xs } = box;
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.fillStyle = colours.paper;
    g.fillRect(0, 0, width, height);
    const dx = scroll.scrollLeft,
      dy = scroll.scrollTop;
    const first = Math.max(0, Math.floor(dy / row)),
      last = Math.min(shown.length, Math.ceil((dy + height - top) / row));
    g.save();
    g.beginPath();
    g.rect(left, top, width - left, height - top);
    g.clip();
    for (let index = first; index < last; index++) {
      const host = shown[index],
        y = top + index * row - dy,
        mine = cellsOf(host);
      if (at && at.row === index) {
        g.fillStyle = colours.raised;
        g.fillRect(left, y, width, row);
      }
      if (!host.audited) {
        g.fillStyle = colours.cell;
        g.fillRect(left, y + 1, box.wide - left - 8 - dx, row - 2);
        g.fillStyle = colours.muted;
        g.font = `${row - 3}px ${colours.sans}`;
        g.textBaseline = "middle";
        g.fillText("not audited", left + 6, y + row / 2);
        continue;
      }
      used.forEach((rule, column) => {
        const x = left + xs[column] - dx,
          finding = mine.get(rule);
        if (x < left - cell || x > width) return;
        if (finding) {
          g.globalAlpha = matches(host, finding) ? 1 : 0.18;
          mark(g, finding, x, y, cell, row);
          g.globalAlpha = 1;
        } else if (passes(host, rule)) {
          g.fillStyle = colours.line;
          g.fillRect(x + cell / 2 - 1.5, y + row / 2 - 1, 3, 2);
        }
      });
    }
    if (at) {
      g.strokeStyle = colours.ink;
      g.lineWidth = 1.5;
      g.strokeRect(left + xs[at.column] - dx, top + at.row * row - dy, cell, row);
    }
    g.restore();
    labels(g, first, last, dx, dy);
    heads(g, dx);
    frame();
  }

  function labels(g, first, last, dx, dy) {
    const { left, top, row, height } = box;
    g.save();
    g.beginPath();
    g.rect(0, top, left - 6, height - top);
    g.clip();
    g.textBaseline = "middle";
    g.textAlign = "left";
    for (let index = first; index < last; index++) {
      const host = shown[index],
        y = top + index * row - dy + row / 2,
        hot = at && at.row === index;
      g.font = `700 ${row - 3}px ${colours.sans}`;
      g.fillStyle = host.grade ? colours.words[{ F: 3, D: 2, C: 1, B: 0 }[host.grade]] || colours.good : colours.off;
      g.fillText(host.grade || "\u2013", 8, y);
      g.font = `${hot ? "600 " : ""}${row - 2 > 12 ? 12.5 : 11}px ${colours.sans}`;
      g.fillStyle = hot ? colours.ink : colours.muted;
      g.fillText(plain(host.name.slice(0, 80)), 24, y);
    }
    g.restore();
  }

  function heads(g, dx) {
    const { left, top, cell, width, xs } = box;
    g.save();
    g.beginPath();
    g.rect(left - 4, 0, width, top);
    g.clip();
    const begins = used
      .map((rule, column) => column)
      .filter((column) => column === 0 || used[column].layer !== used[column - 1].layer);
    begins.forEach((column, index) => {
      const x = left + xs[column] - dx,
        end = index + 1 < begins.length ? begins[index + 1] - 1 : used.length - 1,
        wide = xs[end] + cell - xs[column];
      g.save();
      g.beginPath();
      g.rect(x, 0, wide, top);
      g.clip();
      g.fillStyle = colours.ink;
      g.font = `600 11px ${colours.sans}`;
      g.textBaseline = "alphabetic";
      g.textAlign = "left";
      g.fillText(used[column].layer.replace("_", " "), x + 1, 16);
      g.fillStyle = colours.strong;
      g.fillRect(x, 22, wide, 1);
      g.restore();
    });
    used.forEach((rule, column) => {
      const x = left + xs[column] - dx,
        hot = at && at.column === column;
      g.save();
      g.translate(x + cell / 2, top - 7);
      g.rotate(-Math.PI / 2);
      g.textAlign = "left";
      g.textBaseline = "middle";
      g.font = `${hot ? "700 " : ""}10.5px ${colours.sans}`;
      g.fillStyle = hot ? colours.ink : colours.muted;
      g.fillText(plain(rule.id.slice(0, 40)).replace(/^NMQ-/, ""), 0, 0);
      g.restore();
    });
    g.restore();
    g.fillStyle = colours.line;
    g.fillRect(0, top - 1, width, 1);
  }

  // The whole fleet, one pixel a rule and the worst of the hosts that share a line; and where the window is.
  let fleetImage = null;
  function miniature() {
    mini.hidden = box.high < box.height * 1.5;
    if (mini.hidden) {
      fleetImage = null;
      return;
    }
    const high = Math.max(1, Math.min(shown.length, Math.round(scroll.offsetHeight))),
      wide = Math.max(used.length, 1);
    const image = new ImageData(wide, high),
      parse = (colour) => [1, 3, 5].map((index) => parseInt(colour.slice(index, index + 2), 16));
    const full = (colour) =>
      parse(colour.length === 4 ? "#" + [...colour.slice(1)].map((digit) => digit + digit).join("") : colour);
    const tints = colours.fills.map(full),
      columnOf = new Map(used.map((rule, index) => [rule, index])),
      blank = full(colours.cell),
      paper = full(colours.paper);
    const best = new Int8Array(wide * high).fill(-1),
      seen = new Uint8Array(high);
    shown.forEach((host, index) => {
      const line = Math.floor((index * high) / shown.length);
      seen[line] |= host.audited ? 1 : 2;
      for (const finding of host.findings) {
        const column = columnOf.get(finding.rule);
        if (column === undefined || finding.state !== "open" || !matches(host, finding)) continue;
        best[line * wide + column] = Math.max(best[line * wide + column], finding.severity);
      }
    });
    for (let pixel = 0; pixel < best.length; pixel++) {
      const colour = best[pixel] >= 0 ? tints[best[pixel]] : seen[Math.floor(pixel / wide)] === 2 ? blank : paper;
      image.data.set([...colour, 255], pixel * 4);
    }
    fleetImage = new OffscreenCanvas(wide, high);
    fleetImage.getContext("2d").putImageData(image, 0, 0);
    mini.width = Math.min(wide, 90);
    mini.height = scroll.offsetHeight - 2;
  }
  function frame() {
    if (!fleetImage) return;
    const g = mini.getContext("2d"),
      rows = box.high - box.top;
    g.imageSmoothingEnabled = false;
    g.drawImage(fleetImage, 0, 0, mini.width, mini.height);
    const y = (scroll.scrollTop / rows) * mini.height,
      size = Math.max(4, ((box.height - box.top) / rows) * mini.height);
    g.strokeStyle = colours.ink;
    g.lineWidth = 1.5;
    g.strokeRect(1, y + 1, mini.width - 2, size - 2);
  }

  let waiting = false;
  function draw(whole = false) {
    if (whole) {
      colours = palette();
      measure();
      if (at && (at.row >= shown.length || at.column >= used.length)) at = null;
      miniature();
      tell();
    }
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (box.width) paint();
    });
  }

  function tell() {
    if (!at) {
      cursor.replaceChildren(h("p.muted", "Point at a cell to see what was found."));
      return;
    }
    const host = shown[at.row],
      rule = used[at.column],
      finding = host.audited && cellsOf(host).get(rule);
    const state = !host.audited
      ? "not audited"
      : finding
        ? stateOf(finding)
        : passes(host, rule)
          ? severity("passed", "Passed")
          : "not asked";
    cursor.replaceChildren(
      h("p", h("b", bdi(host.name.slice(0, 80))), h("span.mono", rule.id), h("span", state), h("span", rule.title)),
      h("p.mono.muted", bdi(finding ? finding.evidence.join("; ").slice(0, 300) : "")),
    );
  }

  function point(event) {
    const area = canvas.getBoundingClientRect(),
      x = event.clientX - area.left,
      y = event.clientY - area.top;
    const inside = x - box.left + scroll.scrollLeft,
      column = box.xs.findIndex((start) => inside >= start && inside < start + box.cell),
      row = Math.floor((y - box.top + scroll.scrollTop) / box.row);
    return { row: y >= box.top && row < shown.length ? row : -1, column: x >= box.left ? column : -1 };
  }
  const open = ({ row, column }) => {
    const host = shown[row],
      rule = used[column];
    if (host) location.hash = `#host/${host.route}${rule && cellsOf(host).has(rule) ? "/" + encode(rule.id) : ""}`;
    else if (rule) location.hash = "#rule/" + encode(rule.id);
  };
  canvas.addEventListener("click", (event) => open(point(event)));
  canvas.addEventListener("mousemove", (event) => {
    const here = point(event),
      next = here.row >= 0 && here.column >= 0 ? here : null;
    if (next?.row === at?.row && next?.column === at?.column) return;
    at = next;
    tell();
    draw();
  });
  scroll.addEventListener("scroll", () => draw(), { passive: true });
  scroll.addEventListener("keydown", (event) => {
    const page = Math.floor((box.height - box.top) / box.row);
    const moves = {
      ArrowDown: [1, 0],
      ArrowUp: [-1, 0],
      ArrowRight: [0, 1],
      ArrowLeft: [0, -1],
      PageDown: [page, 0],
      PageUp: [-page, 0],
      Home: [-shown.length, 0],
      End: [shown.length, 0],
    };
    if (event.key === "Enter" && at) {
      open(at);
      return;
    }
    if (!moves[event.key] || !shown.length || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const [down, right] = moves[event.key],
      start = at || { row: 0, column: 0 },
      moved = Boolean(at);
    const clamp = (value, most) => Math.max(0, Math.min(most, value));
    at = {
      row: clamp(start.row + (moved ? down : 0), shown.length - 1),
      column: clamp(start.column + (moved ? right : 0), used.length - 1),
    };
    const x = box.xs[at.column],
      y = at.row * box.row;
    scroll.scrollTop = Math.min(y, Math.max(scroll.scrollTop, y + box.row - (box.height - box.top)));
    scroll.scrollLeft = Math.min(x, Math.max(scroll.scrollLeft, x + box.cell - (box.width - box.left)));
    tell();
    draw();
  });
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const area = mini.getBoundingClientRect();
    scroll.scrollTop = ((event.clientY - area.top) / area.height) * (box.high - box.top) - (box.height - box.top) / 2;
  };
  mini.addEventListener("pointerdown", drag);
  mini.addEventListener("pointermove", drag);
  only.addEventListener("change", () => draw(true));
  new ResizeObserver(() => {
    if (view === "heat-map") draw(true);
  }).observe(scroll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (view === "heat-map") draw(true);
  });
  return { node, draw };
})();
