// Plays what pack.py has packed. It touches nothing outside its own element, fetches nothing, and
// builds SVG by createElementNS and setAttribute alone, which any content policy allows.
(async function (root, data) {
  const svg = root.querySelector("svg"), NS = "http://www.w3.org/2000/svg";
  const make = (tag, parent, attributes = {}) => {
    const element = parent.appendChild(document.createElementNS(NS, tag));
    for (const name in attributes) element.setAttribute(name, attributes[name]);
    return element;
  };
  const through = async (bytes, stream) =>
    new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());

  // What was packed: the length of some JSON, the JSON, the pixels of the sheets.
  const bytes = await through(
    Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), new DecompressionStream("deflate"));
  let at = 4 + new DataView(bytes.buffer).getUint32(0, true);
  const { n, interval, repeat, labels, slots, sheets } =
    JSON.parse(new TextDecoder().decode(bytes.subarray(4, at)));
  const take = (length) => bytes.subarray(at, at += length);

  // A frame of a slot is SVG split at the quotes: pieces at even places are markup, at odd ones
  // values. It is packed as 0 (like the frame before), as a whole text, or as edits of values:
  // place, how much of its beginning and of its end stays, and what comes between.
  const frames = slots.map((packed) => {
    let now = [];
    return packed.map((frame) => {
      if (typeof frame === "string") now = frame.split('"');
      else if (frame) {
        now = now.slice();
        for (let j = 0; j < frame.length; j += 4) {
          const [place, head, tail, between] = frame.slice(j, j + 4), old = now[place];
          now[place] = old.slice(0, head) + between + old.slice(old.length - tail);
        }
      }
      return now;
    });
  });

  // Sheets become PNG files, because a canvas cannot be shown inside SVG.
  const crcs = Uint32Array.from({ length: 256 }, (_, c) => {
    for (let k = 8; k--;) c = c & 1 ? 0xEDB88320 ^ (c >>> 1) : c >>> 1;
    return c;
  });
  function chunk(name, body) {
    const out = new Uint8Array(body.length + 12), view = new DataView(out.buffer);
    view.setUint32(0, body.length);
    for (let i = 0; i < 4; i++) out[4 + i] = name.charCodeAt(i);
    out.set(body, 8);
    let crc = -1;
    for (let i = 4; i < body.length + 8; i++) crc = crcs[(crc ^ out[i]) & 255] ^ (crc >>> 8);
    view.setUint32(body.length + 8, ~crc);
    return out;
  }
  async function png(width, height, rgba) {
    const rows = new Uint8Array(height * (4 * width + 1));
    for (let y = 0; y < height; y++)
      rows.set(rgba.subarray(4 * width * y, 4 * width * (y + 1)), y * (4 * width + 1) + 1);
    const head = new Uint8Array([0, 0, 0, 0, 0, 0, 0, 0, 8, 6, 0, 0, 0]);
    const view = new DataView(head.buffer);
    view.setUint32(0, width);
    view.setUint32(4, height);
    const packed = await through(rows, new CompressionStream("deflate"));
    const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
    const parts = [signature, chunk("IHDR", head), chunk("IDAT", packed), chunk("IEND", [])];
    return new Promise((done) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.readAsDataURL(new Blob(parts, { type: "image/png" }));
    });
  }
  // Pixels are differences in time: of numbers in a palette, or of the bytes of RGBA.
  function unpack([, w, h, count, columns, colors, planes]) {
    const palette = take(4 * colors), plane = Array.from({ length: planes }, () => take(w * h * count));
    const width = w * Math.min(columns, count), rgba =
      new Uint8Array(4 * width * h * Math.ceil(count / columns));
    const last = colors ? new Int32Array(w * h) : new Uint8Array(4 * w * h);
    for (let j = 0, i = 0; j < count; j++) {
      const corner = Math.floor(j / columns) * h * width + (j % columns) * w;
      for (let q = 0; q < w * h; q++, i++) {
        const to = 4 * (corner + Math.floor(q / w) * width + q % w);
        if (colors) {
          const z = plane[0][i] + 256 * plane[1][i]; // 0, 1, 2, 3, … stand for 0, -1, 1, -2, …
          const color = 4 * (last[q] += z & 1 ? -(z + 1) / 2 : z / 2);
          for (let k = 0; k < 4; k++) rgba[to + k] = palette[color + k];
        } else for (let k = 0; k < 4; k++) rgba[to + k] = last[4 * q + k] += plane[k][i];
      }
    }
    return [width, rgba.length / (4 * width), rgba];
  }
  const definitions = make("defs", svg);
  for (const sheet of sheets) {
    const [width, height, rgba] = unpack(sheet), style = sheet[7] ? "image-rendering:pixelated" : "";
    const image = make("image", definitions, { id: sheet[0], width, height, style });
    image.setAttribute("href", await png(width, height, rgba));
    await image.decode?.().catch(() => 0);
  }

  // A frame is shown by setting the values that differ, or by building what has other markup.
  const groups = [...svg.querySelectorAll(".jaxfit-slot")];
  const shown = groups.map(() => []), places = [];
  function build(slot, pieces) {
    const stack = [groups[slot]];
    let value = 1;
    groups[slot].replaceChildren();
    places[slot] = [];
    for (const [, close, tag, rest, empty] of pieces.join('"').matchAll(/<(\/?)(\w+)([^>]*?)(\/?)>/g)) {
      if (close) { stack.pop(); continue; }
      const element = make(tag, stack.at(-1));
      for (const [, name] of rest.replace(/"[^"]*"/g, "").matchAll(/([\w:-]+)=/g)) {
        element.setAttribute(name, pieces[value]);
        places[slot][value] = [element, name];
        value += 2;
      }
      if (!empty) stack.push(element);
    }
  }
  let frame = -1;
  function show(k) {
    frame = k;
    for (let slot = 0; slot < frames.length; slot++) {
      const was = shown[slot], now = frames[slot][k];
      if (was === now) continue;
      let same = was.length === now.length;
      for (let i = 0; same && i < now.length; i += 2) same = was[i] === now[i];
      if (!same) build(slot, now);
      else for (let i = 1; i < now.length; i += 2)
        if (was[i] !== now[i]) places[slot][i][0].setAttribute(places[slot][i][1], now[i]);
      shown[slot] = now;
    }
    slider.value = k;
    label.textContent = labels[k];
    slider.setAttribute("aria-valuetext", labels[k]);
  }

  // The controls.
  const bar = root.querySelector(".jaxfit-bar"), slider = bar.querySelector("input");
  const [play, loop] = bar.querySelectorAll("button"), speed = bar.querySelector("select");
  const label = bar.querySelector("output");
  bar.hidden = false;
  slider.max = n - 1;
  label.style.minWidth = Math.max(...labels.map((text) => text.length)) + "ch";
  let timer = 0, began, from, again;
  function setLoop(on) { again = on; loop.setAttribute("aria-pressed", on); }
  function tick(time) {
    if (began === undefined) { began = time; from = frame; }
    const k = from + Math.floor((time - began) * speed.value / interval);
    if (k >= n && !again) { pause(); show(n - 1); return; }
    if (k % n !== frame) show(k % n);
    timer = requestAnimationFrame(tick);
  }
  function name(sign, text) { play.textContent = sign; play.setAttribute("aria-label", text); }
  function pause() { cancelAnimationFrame(timer); timer = 0; name("▶", "play"); }
  function start() {
    if (timer || n < 2) return;
    if (frame === n - 1 && !again) show(0);
    began = undefined;
    timer = requestAnimationFrame(tick);
    name("❚❚", "pause");
  }
  const toggle = () => (timer ? pause() : start());
  const seek = (k) => { pause(); show(Math.min(n - 1, Math.max(0, k))); };
  const faster = (by) => {
    speed.selectedIndex = Math.min(speed.length - 1, Math.max(0, speed.selectedIndex + by));
    began = undefined;
  };
  play.onclick = svg.onclick = toggle;
  loop.onclick = () => setLoop(!again);
  slider.oninput = () => seek(+slider.value);
  speed.onchange = () => { began = undefined; };
  const keys = {
    " ": toggle, k: toggle, l: loop.onclick, Home: () => seek(0), End: () => seek(n - 1),
    ArrowLeft: (e) => seek(frame - (e.shiftKey ? 10 : 1)), "+": () => faster(1),
    ArrowRight: (e) => seek(frame + (e.shiftKey ? 10 : 1)), "-": () => faster(-1),
  };
  root.onkeydown = (e) => {
    const act = keys[e.key];
    if (!act || e.ctrlKey || e.metaKey || e.altKey || e.target === speed) return;
    if (e.key === " " && e.target === loop) return; // which presses it
    e.preventDefault();
    e.stopPropagation();
    act(e);
  };
  setLoop(repeat);
  show(0);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
  root.dataset.ready = "";
})
