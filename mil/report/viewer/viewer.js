"use strict";
(() => {
  const data = window.VIEWER;
  const at = (id) => document.getElementById(id);
  // matplotlib's inferno in nine steps
  const STEPS = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];
  const state = { slide: null, tile: null, ranked: [], position: -1 };

  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const viewer = OpenSeadragon({
    id: "stage", drawer: "canvas", showNavigationControl: false, showNavigator: true, navigatorPosition: "TOP_RIGHT",
    navigatorSizeRatio: 0.14, navigatorBackground: "#f3f4f5", navigatorBorderColor: "#9aa1a9", navigatorDisplayRegionColor: "#0b5c94", maxZoomPixelRatio: 6, visibilityRatio: 0.4, animationTime: still ? 0 : 0.5, immediateRender: true,
    gestureSettingsMouse: { clickToZoom: false }, gestureSettingsTouch: { clickToZoom: false },
  });
  const marks = document.createElement("canvas");
  marks.className = "marks";
  viewer.canvas.append(marks);

  function colour(attention) {
    const share = Math.min(Math.max(0.5 + Math.log2(Math.max(attention, 1e-6)) / (2 * state.slide.reach), 0), 1) * (STEPS.length - 1);
    const low = Math.min(Math.floor(share), STEPS.length - 2);
    return STEPS[low].map((value, part) => Math.round(value + (STEPS[low + 1][part] - value) * (share - low)));
  }

  function source(slide) {
    const [width, height] = slide.pixels;
    return {
      width, height, tileSize: slide.square, minLevel: slide.levels[0], maxLevel: slide.levels[1],
      getTileUrl: (level, x, y) => `${encodeURIComponent(slide.id)}/${level}/${x}_${y}.jpg`,
    };
  }

  // Level-0 pixels -> the viewer's own coordinates, in which the slide is 1 wide.
  const toView = (slide, length) => length / slide.width;

  // A round length of at most a quarter of the stage; `um` are microns a pixel of the screen.
  function scaleBar(um) {
    const most = (viewer.canvas.clientWidth / 4) * um;
    const unit = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].find((step) => step * unit <= most) * unit;
    at("bar").style.width = `${length / um}px`;
    at("length").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(2))} µm`;
  }

  function draw() {
    const slide = state.slide;
    const ratio = window.devicePixelRatio || 1;
    const [wide, high] = [viewer.canvas.clientWidth, viewer.canvas.clientHeight];
    if (marks.width !== wide * ratio || marks.height !== high * ratio) {
      marks.width = wide * ratio;
      marks.height = high * ratio;
    }
    const pen = marks.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, wide, high);
    if (!slide || !viewer.world.getItemCount()) return;
    const origin = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    const scale = (viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true).x - origin.x) / slide.width;
    scaleBar(slide.mpp / scale);
    const side = slide.side * scale;
    const box = (tile) => [origin.x + tile[0] * scale, origin.y + tile[1] * scale];
    const visible = ([x, y]) => x < wide && y < high && x + side > 0 && y + side > 0;
    const shown = at("overlay").checked;
    at("legend").hidden = !shown;
    if (shown) {
      pen.globalAlpha = at("opacity").value / 100;
      const limit = Math.ceil((state.ranked.length * at("threshold").value) / 100);
      for (const tile of state.ranked.slice(0, limit)) {
        const place = box(tile);
        if (!visible(place)) continue;
        pen.fillStyle = `rgb(${colour(tile[2]).join(",")})`;
        pen.fillRect(place[0], place[1], side + 0.5, side + 0.5);
      }
      pen.globalAlpha = 1;
    }
    if (at("truth").checked && slide.positive_share !== null) {
      pen.strokeStyle = "#00a087";
      pen.lineWidth = 1.5;
      for (const tile of slide.tiles) {
        const place = box(tile);
        if (tile[3] !== null && tile[3] >= slide.positive_share && visible(place)) pen.strokeRect(place[0], place[1], side, side);
      }
    }
    if (state.tile) {
      const place = box(state.tile);
      pen.strokeStyle = "#fff";
      pen.lineWidth = 4;
      pen.strokeRect(place[0], place[1], side, side);
      pen.strokeStyle = "#0b5c94";
      pen.lineWidth = 2;
      pen.strokeRect(place[0], place[1], side, side);
    }
  }

  function tell() {
    at("opacity-value").textContent = `${at("opacity").value} %`;
    at("threshold-value").textContent = `${at("threshold").value} %`;
    document.body.dataset.overlay = String(at("overlay").checked);
    draw();
  }

  function facts(list, pairs) {
    list.replaceChildren(...pairs.flatMap(([term, value]) => {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      [dt.textContent, dd.textContent] = [term, value];
      return [dt, dd];
    }));
  }

  function inspect(tile, zoom) {
    state.tile = tile;
    state.position = state.ranked.indexOf(tile);
    const slide = state.slide;
    at("hint").hidden = true;
    facts(at("tile-facts"), [
      ["Attention", `${tile[2].toPrecision(3)} × the patient's mean`],
      ["Rank", `${state.position + 1} of ${state.ranked.length}`],
      ...(tile[3] === null ? [] : [["Truth", `${Math.round(tile[3] * 100)} % positive`]]),
      ["Corner", `${tile[0]}, ${tile[1]} px`],
      ["Side", `${Math.round(slide.side * slide.mpp)} µm`],
    ]);
    showPixels(tile);
    if (zoom) {
      const reach = 3;
      const unit = toView(slide, slide.side);
      viewer.viewport.fitBounds(new OpenSeadragon.Rect(toView(slide, tile[0]) - unit * reach, toView(slide, tile[1]) - unit * reach, unit * (2 * reach + 1), unit * (2 * reach + 1)));
    }
    history.replaceState(null, "", `#slide=${encodeURIComponent(slide.id)}&x=${tile[0]}&y=${tile[1]}`);
    draw();
  }

  // The tile at its full size where the folder has it.
  function showPixels(tile) {
    const canvas = at("tile");
    canvas.hidden = !tile[4];
    canvas.setAttribute("aria-label", `Tile at ${tile[0]}, ${tile[1]} of slide ${state.slide.id}`);
    at("no-image").hidden = Boolean(tile[4]);
    if (!tile[4]) return;
    const image = new Image();
    image.onload = () => state.tile === tile && canvas.getContext("2d").drawImage(image, 0, 0, 256, 256);
    image.src = `${encodeURIComponent(state.slide.id)}/tiles/${tile[0]}_${tile[1]}.jpg`;
  }

  function step(by) {
    const count = state.ranked.length;
    if (count) inspect(state.ranked[(((state.position + by) % count) + count) % count], true);
  }

  function legend() {
    const reach = 2 ** state.slide.reach;
    const bar = document.createElement("i");
    bar.style.background = `linear-gradient(to right, ${STEPS.map((step) => `rgb(${step.join(",")})`).join(",")})`;
    const line = document.createElement("span");
    line.append(...[1 / reach, 1, reach].map((value) => {
      const part = document.createElement("b");
      part.textContent = `${value.toPrecision(2)}×`;
      return part;
    }));
    at("legend").replaceChildren(bar, line);
  }

  function open(slide, wanted) {
    state.slide = slide;
    state.tile = null;
    state.position = -1;
    state.ranked = [...slide.tiles].sort((a, b) => b[2] - a[2]);
    const logs = slide.tiles.map((tile) => Math.abs(Math.log2(Math.max(tile[2], 1e-6)))).sort((a, b) => a - b);
    slide.reach = Math.min(Math.max(logs[Math.floor(0.99 * (logs.length - 1))] || 0.5, 0.5), 6);
    at("name").textContent = slide.id;
    at("facts").textContent = `Site ${slide.site}, patient ${slide.patient}: ${slide.label ? "positive" : "negative"} for ${data.endpoint}, score ${slide.score.toFixed(2)}; ${slide.tiles.length.toLocaleString("en")} tiles.`;
    at("truth-label").hidden = slide.positive_share === null;
    at("hint").hidden = false;
    at("tile").hidden = true;
    at("no-image").hidden = true;
    at("tile-facts").replaceChildren();
    for (const button of at("slides").querySelectorAll("button")) button.setAttribute("aria-current", String(button.dataset.slide === slide.id));
    legend();
    viewer.addOnceHandler("open", () => {
      tell();
      if (wanted) inspect(wanted, true);
    });
    viewer.open(source(slide));
  }

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const slide = data.slides.find((one) => one.id === asked.get("slide")) || data.slides[0];
    const tile = slide.tiles.find((one) => one[0] === Number(asked.get("x")) && one[1] === Number(asked.get("y")) && asked.has("x"));
    if (slide !== state.slide) open(slide, tile);
    else if (tile && tile !== state.tile) inspect(tile, true);
  }

  function list() {
    let site = null;
    for (const slide of data.slides) {
      if (slide.site !== site) {
        site = slide.site;
        const head = document.createElement("h2");
        head.textContent = site;
        at("slides").append(head);
      }
      const [button, image, name] = ["button", "img", "span"].map((tag) => document.createElement(tag));
      button.type = "button";
      button.dataset.slide = slide.id;
      image.src = `${encodeURIComponent(slide.id)}/thumb.jpg`;
      image.alt = "";
      name.textContent = `${slide.id}, ${slide.label ? "positive" : "negative"}, ${slide.score.toFixed(2)}`;
      button.append(image, name);
      button.addEventListener("click", () => {
        history.replaceState(null, "", `#slide=${encodeURIComponent(slide.id)}`);
        open(slide);
      });
      at("slides").append(button);
    }
  }

  viewer.addHandler("canvas-click", (event) => {
    if (!event.quick || !state.slide) return;
    const point = viewer.viewport.pointFromPixel(event.position);
    const [x, y] = [point.x * state.slide.width, point.y * state.slide.width];
    const { side } = state.slide;
    const tile = state.slide.tiles.find((one) => x >= one[0] && y >= one[1] && x < one[0] + side && y < one[1] + side);
    if (tile) inspect(tile, false);
  });
  viewer.addHandler("update-viewport", draw);
  viewer.addHandler("resize", () => requestAnimationFrame(draw));
  for (const id of ["overlay", "truth"]) at(id).addEventListener("change", tell);
  for (const id of ["opacity", "threshold"]) at(id).addEventListener("input", tell);
  at("next").addEventListener("click", () => step(1));
  at("previous").addEventListener("click", () => step(-1));
  for (const [id, factor] of [["closer", 1.5], ["farther", 1 / 1.5]]) {
    at(id).addEventListener("click", () => viewer.viewport.zoomBy(factor).applyConstraints());
  }
  at("home").addEventListener("click", () => viewer.viewport.goHome());
  const keys = { n: () => step(1), p: () => step(-1), 0: () => viewer.viewport.goHome(), o: () => at("overlay").click(), t: () => !at("truth-label").hidden && at("truth").click() };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range]")) return;
    if (keys[event.key]) keys[event.key]();
  });
  window.addEventListener("hashchange", fromAddress);
  window.viewer = viewer;
  at("title").textContent = data.title;
  at("model").textContent = `Attention of ${data.model}, by models that did not train on the patient`;
  list();
  fromAddress();
})();
