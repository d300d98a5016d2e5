"use strict";
// The page: the list of slides, one stage or two side by side, the controls, and the tile that is inspected.
(() => {
  const data = window.VIEWER;
  const at = (id) => document.getElementById(id);
  const KEPT_SLIDES = 8; // whose tiles stay in memory
  const AROUND = 0.25; // of the stage, that lines are drawn beyond each of its edges
  const QUICK = 3000; // so many line segments are drawn in a frame; more wait until the slide stands still
  const SETTLED_MS = 100;
  const state = { slide: null, tile: null, ranked: [], position: -1, leader: 0 };
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const stages = [];

  function makeStage(id) {
    const viewer = OpenSeadragon({
      id, drawer: "canvas", showNavigationControl: false, showNavigator: stages.length === 0, navigatorPosition: "TOP_RIGHT",
      navigatorSizeRatio: 0.14, navigatorBackground: "#f3f4f5", navigatorBorderColor: "#9aa1a9", navigatorDisplayRegionColor: "#0b5c94", maxZoomPixelRatio: 6, visibilityRatio: 0.4, animationTime: still ? 0 : 0.5, immediateRender: true,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false }, gestureSettingsTouch: { clickToZoom: false }, gestureSettingsPen: { clickToZoom: false },
    });
    const marks = document.createElement("canvas");
    marks.className = "marks";
    const caption = Object.assign(document.createElement("p"), { className: "caption", hidden: true });
    viewer.canvas.append(marks, caption);
    const stage = { viewer, marks, caption, model: 0, made: {} };
    const number = stages.push(stage) - 1;
    viewer.addHandler("update-viewport", () => draw(stage));
    viewer.addHandler("resize", () => requestAnimationFrame(() => draw(stage)));
    viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; }); // `keys` has them
    for (const name of ["pointerdown", "wheel", "keydown"]) viewer.element.addEventListener(name, () => { state.leader = number; }, { capture: true, passive: true });
    viewer.addHandler("viewport-change", () => {
      const other = stages[1 - number];
      if (number !== state.leader || !other || !other.viewer.world.getItemCount()) return;
      other.viewer.viewport.zoomTo(viewer.viewport.getZoom(true), null, true);
      other.viewer.viewport.panTo(viewer.viewport.getCenter(true), true);
    });
    viewer.addHandler("canvas-click", (event) => {
      if (!event.quick || !state.tiles || annotations.drawing) return;
      const point = viewer.viewport.pointFromPixel(event.position);
      const { width, side } = state.slide.known;
      const [x, y] = [point.x * width, point.y * width];
      if (annotations.hit([x, y], view(stage).scale)) return;
      const tile = state.tiles.find((one) => x >= one.x && y >= one.y && x < one.x + side && y < one.y + side);
      if (tile) inspect(tile, false);
    });
    annotations.listen(marks, (event) => {
      const [box, { x, y, scale }] = [marks.getBoundingClientRect(), view(stage)];
      return [(event.clientX - box.left - x) / scale, (event.clientY - box.top - y) / scale];
    });
    return stage;
  }

  // Where level-0 pixel (0, 0) is on the screen, and pixels of the screen per pixel of level 0.
  function view({ viewer }) {
    const origin = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    const end = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
    return { x: origin.x, y: origin.y, scale: (end.x - origin.x) / state.slide.known.width };
  }

  function source(slide) {
    const { pixels: [width, height], square, levels } = slide.known;
    return { width, height, tileSize: square, minLevel: levels[0], maxLevel: levels[1], getTileUrl: (level, x, y) => `${slide.at}/${level}/${x}_${y}.jpg` };
  }

  // A round length of at most a quarter of the stage; `um` are microns a pixel of the screen.
  function scaleBar(um) {
    const most = (stages[0].viewer.canvas.clientWidth / 4) * um;
    const unit = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].find((step) => step * unit <= most) * unit;
    at("bar").style.width = `${length / um}px`;
    at("length").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(2))} µm`;
    at("magnification").textContent = `${(10 / um).toPrecision(2)}×`;
  }

  // Powers of two that the colours go up and down from the mean: the same on both stages.
  const reachNow = () => Math.max(...stages.map(({ model }) => state.slide.reaches[model]));

  // What is drawn for a model and a threshold, made when one of them changes.
  function prepare(stage) {
    const { known, grid } = state.slide;
    const values = known.attention[stage.model];
    stage.made = {};
    if (!values || !values.length) return;
    const ranked = [...values.keys()].sort((a, b) => values[b] - values[a]);
    const shown = ranked.slice(0, Math.ceil((ranked.length * at("threshold").value) / 100));
    const reach = reachNow();
    stage.made.picture = Overlay.picture(grid, values, shown, reach);
    if (!at("contours").checked) return;
    const lowest = values[shown[shown.length - 1]];
    const limits = [-2, -1, 0, 1, 2, 3, 4, 5].map((power) => 2 ** power).filter((limit) => limit > lowest * 1.2 && limit < values[ranked[0]]);
    stage.made.contours = [lowest, ...limits].map((limit) => [Overlay.contour(grid, values, limit), Overlay.colour(limit, reach)]);
  }

  function draw(stage, settled = false) {
    const { viewer, marks, made } = stage;
    const ratio = window.devicePixelRatio || 1;
    const [wide, high] = [viewer.canvas.clientWidth, viewer.canvas.clientHeight];
    if (marks.width !== Math.round(wide * ratio) || marks.height !== Math.round(high * ratio)) {
      marks.width = Math.round(wide * ratio);
      marks.height = Math.round(high * ratio);
    }
    const pen = marks.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, marks.width, marks.height);
    if (!state.tiles || !viewer.world.getItemCount()) return;
    const { known, grid } = state.slide;
    const { x, y, scale } = view(stage);
    if (stage === stages[0]) scaleBar(known.mpp / scale);
    pen.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y); // level-0 pixels from here on
    if (at("overlay").checked && made.picture) {
      pen.globalAlpha = at("opacity").value / 100;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(made.picture, grid.x.first, grid.y.first, grid.x.count * grid.x.step, grid.y.count * grid.y.step);
      pen.globalAlpha = 1;
    }
    drawLines(stage, pen, { x, y, scale, wide, high, ratio, settled });
    annotations.draw(pen, scale);
    if (state.tile) {
      const box = new Path2D();
      box.rect(state.tile.x, state.tile.y, known.side, known.side);
      stroke(pen, scale, box, [["#fff", 4], ["#0b5c94", 2]]);
    }
  }

  function stroke(pen, scale, path, colours) {
    for (const [colour, line] of colours) {
      pen.strokeStyle = colour;
      pen.lineWidth = line / scale;
      pen.stroke(path);
    }
  }

  // Contours and outlines come from a picture of the stage and of something around it, so that a frame costs the same however
  // many lines there are. It is drawn anew where it no longer fits: at once, or when the slide stands still.
  function drawLines(stage, pen, { x, y, scale, wide, high, ratio, settled }) {
    const lines = [...(stage.made.contours || []).map(([shape, colour]) => [shape, [["#000", 3], [`rgb(${colour.join(",")})`, 1.75]]])];
    if (at("truth").checked && state.slide.truth) lines.push([state.slide.truth, [["#fff", 3.5], ["#00806e", 2]]]);
    if (!lines.length) return;
    const shown = [-x / scale, -y / scale, (wide - x) / scale, (high - y) / scale]; // left, top, right, bottom in level-0 pixels
    const { layer } = stage;
    const key = lines.map(([shape]) => shape.number).join();
    const fits = layer && layer.key === key && Math.abs(layer.scale / scale - 1) < 0.01 && layer.left <= shown[0] && layer.top <= shown[1] && layer.right >= shown[2] && layer.bottom >= shown[3];
    if (!fits) {
      const render = () => {
        const [aroundX, aroundY] = [(wide * AROUND) / scale, (high * AROUND) / scale];
        const canvas = Object.assign(document.createElement("canvas"), { width: Math.ceil(wide * ratio * (1 + 2 * AROUND)), height: Math.ceil(high * ratio * (1 + 2 * AROUND)) });
        const [left, top] = [shown[0] - aroundX, shown[1] - aroundY];
        const brush = canvas.getContext("2d");
        brush.setTransform(ratio * scale, 0, 0, ratio * scale, -left * ratio * scale, -top * ratio * scale);
        brush.lineCap = "round";
        for (const [shape, colours] of lines) stroke(brush, scale, shape.path, colours);
        stage.layer = { canvas, key, scale, left, top, right: left + canvas.width / ratio / scale, bottom: top + canvas.height / ratio / scale };
      };
      clearTimeout(stage.waiting);
      if (settled || !layer || layer.key !== key || lines.reduce((sum, [shape]) => sum + shape.segments, 0) <= QUICK) render();
      else stage.waiting = setTimeout(() => draw(stage, true), SETTLED_MS);
    }
    const { canvas, left, top } = stage.layer;
    const zoom = scale / stage.layer.scale;
    pen.imageSmoothingEnabled = false;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    const [across, down] = [ratio * (x + left * scale), ratio * (y + top * scale)];
    if (Math.abs(zoom - 1) < 1e-3) pen.drawImage(canvas, Math.round(across), Math.round(down)); // whole pixels: a copy is the quickest
    else pen.drawImage(canvas, across, down, canvas.width * zoom, canvas.height * zoom);
    pen.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y);
  }

  const drawAll = () => stages.forEach((stage) => draw(stage));

  function tell() {
    for (const id of ["opacity", "threshold"]) at(`${id}-value`).textContent = `${at(id).value} %`;
    document.body.dataset.overlay = String(at("overlay").checked);
    for (const { caption, model } of stages) Object.assign(caption, { textContent: data.models[model], hidden: stages.length < 2 });
    if (!state.tiles) return;
    stages.forEach(prepare);
    legend();
    at("legend").hidden = !stages.some((stage) => stage.made.picture) || !(at("overlay").checked || at("contours").checked);
    drawAll();
  }

  function facts(list, pairs) {
    list.replaceChildren(...pairs.flatMap(([term, value]) => {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      [dt.textContent, dd.textContent] = [term, value];
      return [dt, dd];
    }));
  }

  function rank() {
    const values = state.slide.known.attention[stages[0].model] || [];
    state.ranked = values.length ? [...state.tiles].sort((a, b) => values[b.n] - values[a.n]) : state.tiles;
    state.position = state.tile ? state.ranked.indexOf(state.tile) : -1;
  }

  function inspect(tile, zoom) {
    state.tile = tile;
    state.position = state.ranked.indexOf(tile);
    const { known } = state.slide;
    at("hint").hidden = true;
    facts(at("tile-facts"), [
      ...stages.flatMap(({ model }) => {
        const values = known.attention[model];
        return values ? [[stages.length > 1 ? data.models[model] : "Attention", `${values[tile.n].toPrecision(3)} × the patient's mean`]] : [];
      }),
      ["Rank", `${state.position + 1} of ${state.ranked.length}`],
      ...(known.truth ? [["Truth", `${Math.round(known.truth[tile.n] * 100)} % positive`]] : []),
      ["Corner", `${tile.x}, ${tile.y} px`],
      ["Side", `${Math.round(known.side * known.mpp)} µm`],
    ]);
    showPixels(tile);
    if (zoom) toSlide([tile.x - 3 * known.side, tile.y - 3 * known.side, tile.x + 4 * known.side, tile.y + 4 * known.side]);
    history.replaceState(null, "", `#slide=${encodeURIComponent(state.slide.id)}&x=${tile.x}&y=${tile.y}`);
    drawAll();
  }

  // Bring a box of level-0 pixels (left, top, right, bottom) into view, with something around it.
  function toSlide([left, top, right, bottom]) {
    const { width, side } = state.slide.known;
    const around = Math.max((right - left) / 10, (bottom - top) / 10, side / 2);
    const rect = new OpenSeadragon.Rect((left - around) / width, (top - around) / width, (right - left + 2 * around) / width, (bottom - top + 2 * around) / width);
    state.leader = 0;
    stages[0].viewer.viewport.fitBounds(rect);
  }

  // The tile at its full size where the folder has it; from a server always.
  function showPixels(tile) {
    const canvas = at("tile");
    const { full } = state.slide.known;
    const there = !full || full.includes(tile.n);
    canvas.hidden = !there;
    canvas.setAttribute("aria-label", `Tile at ${tile.x}, ${tile.y} of slide ${state.slide.id}`);
    at("no-image").hidden = there;
    if (!there) return;
    const image = new Image();
    image.onload = () => state.tile === tile && canvas.getContext("2d").drawImage(image, 0, 0, 256, 256);
    image.src = `${state.slide.at}/tiles/${tile.x}_${tile.y}.jpg`;
  }

  function step(by) {
    const count = state.ranked.length;
    if (count) inspect(state.ranked[(((state.position + by) % count) + count) % count], true);
  }

  function legend() {
    const reach = 2 ** reachNow();
    const bar = document.createElement("i");
    bar.style.background = `linear-gradient(to right, ${Overlay.STEPS.map((part) => `rgb(${part.join(",")})`).join(",")})`;
    const line = document.createElement("span");
    line.append(...[1 / reach, 1, reach].map((value) => Object.assign(document.createElement("b"), { textContent: `${value.toPrecision(2)}×` })));
    at("legend").replaceChildren(bar, line);
  }

  // A slide's tiles, from its own script: that works for a file and from a server.
  const waiting = new Map();
  const loaded = [];
  data.add = (known) => waiting.get(known.id)?.(known);

  function load(slide) {
    if (slide.known) return Promise.resolve(slide);
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      waiting.set(slide.id, (known) => {
        if (known.absent) { reject(new Error(known.absent)); return; }
        const truth = known.truth && known.truth.map((share, n) => (share >= known.positive_share ? n : -1)).filter((n) => n >= 0);
        const grid = Overlay.gridOf(known);
        Object.assign(slide, { known, grid, truth: truth && Overlay.outline(grid, truth), reaches: known.attention.map((values) => Overlay.reachOf(values || [])) });
        loaded.push(slide);
        if (loaded.length > KEPT_SLIDES) delete loaded.shift().known;
        resolve(slide);
      });
      script.onload = () => script.remove();
      script.onerror = () => reject(new Error(data.served ? "The viewer's server does not answer; start `mil view` again." : "Its files are not in this folder."));
      script.src = `${slide.at}/slide.js`;
      document.head.append(script);
    });
  }

  function open(slide, wanted) {
    Object.assign(state, { slide, tile: null, tiles: null, position: -1, ranked: [] });
    stages.forEach((stage) => stage.viewer.close());
    at("name").textContent = slide.id;
    at("absent").hidden = true;
    at("hint").hidden = false;
    at("tile").hidden = true;
    at("no-image").hidden = true;
    at("tile-facts").replaceChildren();
    for (const button of at("slides").querySelectorAll("button")) button.setAttribute("aria-current", String(button.dataset.slide === slide.id));
    say(slide);
    load(slide).then(() => {
      if (state.slide !== slide) return;
      const { known } = slide;
      state.tiles = known.corners.map(([x, y], n) => ({ x, y, n }));
      at("truth-label").hidden = !slide.truth;
      say(slide);
      rank();
      annotations.open(slide);
      stages[0].viewer.addOnceHandler("open", () => {
        if (state.slide !== slide) return;
        tell();
        const tile = wanted && state.tiles.find((one) => one.x === wanted[0] && one.y === wanted[1]);
        if (tile) inspect(tile, true);
      });
      stages.forEach((stage) => stage.viewer.open(source(slide)));
    }, (error) => {
      if (state.slide !== slide) return;
      at("absent").textContent = `Slide ${slide.id} cannot be shown: ${error.message}`;
      at("absent").hidden = false;
      drawAll();
    });
  }

  function say(slide) {
    const shown = stages.map(({ model }) => model);
    const scores = shown.filter((model) => slide.scores[model] !== null).map((model) => `score ${slide.scores[model].toFixed(2)}${shown.length > 1 ? ` (${data.models[model]})` : ""}`);
    const label = slide.label === null ? [] : [`${slide.label ? "positive" : "negative"} for ${data.endpoint}`];
    const tiles = slide.known ? [`${slide.known.corners.length.toLocaleString("en")} tiles`] : [];
    at("facts").textContent = `${[`Site ${slide.site}, patient ${slide.patient}`, ...label, ...scores, ...tiles].join("; ")}.`;
  }

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const slide = data.slides.find((one) => one.id === asked.get("slide")) || data.slides[0];
    const wanted = asked.has("x") && [Number(asked.get("x")), Number(asked.get("y"))];
    if (slide !== state.slide) { open(slide, wanted); return; }
    const tile = wanted && state.tiles && state.tiles.find((one) => one.x === wanted[0] && one.y === wanted[1]);
    if (tile && tile !== state.tile) inspect(tile, true);
  }

  const go = (slide) => {
    history.replaceState(null, "", `#slide=${encodeURIComponent(slide.id)}`);
    open(slide);
  };

  const error = (slide) => (slide.label === null || slide.scores[0] === null ? -1 : Math.abs(slide.label - slide.scores[0]));
  const ORDERS = { error: (a, b) => error(b) - error(a), high: (a, b) => (b.scores[0] ?? -1) - (a.scores[0] ?? -1), low: (a, b) => (a.scores[0] ?? 2) - (b.scores[0] ?? 2) };
  let listed = [];

  function list() {
    const words = at("find").value.trim().toLowerCase();
    listed = data.slides.filter((slide) => `${slide.id}\n${slide.patient}`.toLowerCase().includes(words));
    const order = ORDERS[at("order").value];
    if (order) listed.sort(order);
    let site = null;
    at("slides").replaceChildren(...listed.flatMap((slide) => {
      const head = !order && slide.site !== site ? [Object.assign(document.createElement("h2"), { textContent: slide.site })] : [];
      site = slide.site;
      const [button, image, name] = ["button", "img", "span"].map((tag) => document.createElement(tag));
      button.type = "button";
      button.dataset.slide = slide.id;
      button.setAttribute("aria-current", String(slide === state.slide));
      Object.assign(image, { loading: "lazy", width: 160, height: 80, src: `${slide.at}/thumb.jpg`, alt: "" });
      name.textContent = [slide.id, ...(slide.label === null ? [] : [slide.label ? "positive" : "negative"]), ...(slide.scores[0] === null ? [] : [slide.scores[0].toFixed(2)])].join(", ");
      button.append(image, name);
      button.addEventListener("click", () => go(slide));
      return [...head, button];
    }));
  }

  function besideIs(model) {
    if (model === "" && stages.length > 1) stages.pop().viewer.destroy();
    at("stage-2").hidden = model === "";
    if (model !== "") {
      if (stages.length < 2) {
        const stage = makeStage("stage-2");
        stage.viewer.addHandler("open", () => { state.leader = 0; stages[0].viewer.forceRedraw(); stages[0].viewer.raiseEvent("viewport-change"); });
        if (state.tiles) stage.viewer.open(source(state.slide));
      }
      stages[1].model = Number(model);
    }
    at("beside").value = model;
    if (state.slide) say(state.slide);
    tell();
    if (state.tile) inspect(state.tile, false);
  }

  const annotations = window.Annotations(data.cohort, drawAll, toSlide);
  window.viewer = makeStage("stage").viewer;
  const move = (x, y) => () => viewer.viewport.panBy(new OpenSeadragon.Point(x / viewer.viewport.getZoom() / 6, y / viewer.viewport.getZoom() / 6)).applyConstraints();
  const zoom = (factor) => () => viewer.viewport.zoomBy(factor).applyConstraints();
  const home = () => viewer.viewport.goHome();
  const other = (by) => () => listed.length && go(listed[(listed.indexOf(state.slide) + by + listed.length) % listed.length]);
  const annotateTile = () => state.tile && annotations.add("rectangle", [[state.tile.x, state.tile.y], [state.tile.x + state.slide.known.side, state.tile.y + state.slide.known.side]]);
  const keys = {
    ArrowLeft: move(-1, 0), ArrowRight: move(1, 0), ArrowUp: move(0, -1), ArrowDown: move(0, 1), "+": zoom(1.5), "=": zoom(1.5), "-": zoom(1 / 1.5), 0: home,
    n: () => step(1), p: () => step(-1), "]": other(1), "[": other(-1), "?": () => at("keys").showModal(),
    o: () => at("overlay").click(), c: () => at("contours").click(), t: () => !at("truth-label").hidden && at("truth").click(),
    b: () => besideIs(stages.length > 1 || data.models.length < 2 ? "" : String(stages[0].model ? 0 : 1)),
    r: () => annotations.start("rectangle"), g: () => annotations.start("polygon"), m: () => annotations.start("point"), a: annotateTile,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || at("keys").open || !state.tiles) return;
    if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
    if (annotations.press(event.key)) { event.preventDefault(); return; }
    if (!Object.hasOwn(keys, event.key)) return;
    state.leader = 0;
    event.preventDefault();
    keys[event.key]();
  });

  for (const id of ["overlay", "contours", "truth"]) at(id).addEventListener("change", tell);
  for (const id of ["opacity", "threshold"]) at(id).addEventListener("input", tell);
  at("model").addEventListener("change", () => { stages[0].model = Number(at("model").value); if (state.tiles) rank(); say(state.slide); tell(); if (state.tile) inspect(state.tile, false); });
  at("beside").addEventListener("change", () => besideIs(at("beside").value));
  for (const [id, key] of [["next", "n"], ["previous", "p"], ["closer", "+"], ["farther", "-"], ["home", "0"], ["help", "?"], ["this-tile", "a"]]) at(id).addEventListener("click", () => { state.leader = 0; keys[key](); });
  at("zooms").append(...[1, 5, 10, 20, 40].map((times) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: `${times}×` });
    button.addEventListener("click", () => {
      if (!state.tiles) return;
      state.leader = 0;
      viewer.viewport.zoomTo((state.slide.known.mpp * times * state.slide.known.width) / 10 / viewer.canvas.clientWidth).applyConstraints();
    });
    return button;
  }));
  at("find").addEventListener("input", list);
  at("order").addEventListener("change", list);
  window.addEventListener("hashchange", fromAddress);
  at("title").textContent = data.title;
  at("back").hidden = data.served;
  at("about").textContent = data.served ? "Slides at their full resolution; attention by models that did not train on the patient" : "Attention by models that did not train on the patient";
  for (const id of ["model", "beside"]) at(id).append(...data.models.map((name, n) => new Option(name, n)));
  list();
  fromAddress();
})();
