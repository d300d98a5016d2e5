"use strict";
// Rectangles, polygons and points with a class and a text, in pixels of level 0: kept in this browser, by cohort and slide, and
// exchanged as GeoJSON in the form of QuPath's.
window.Annotations = (cohort, redraw, toSlide) => {
  const at = (id) => document.getElementById(id);
  const COLOURS = { Tumor: [200, 0, 0], Stroma: [150, 200, 150], "Immune cells": [160, 90, 160], Necrosis: [50, 50, 50], Other: [255, 200, 0] }; // QuPath's
  const NONE = [0, 114, 178];
  const EDGE_PX = 6; // how near to a line a click selects it
  const state = { slide: null, all: [], chosen: null, tool: null, points: [] };
  const colourOf = (one) => (Object.hasOwn(COLOURS, one.class) ? COLOURS[one.class] : NONE);
  const title = (one) => `${state.all.indexOf(one) + 1}. ${one.class || one.kind}${one.text ? `: ${one.text}` : ""}`;
  const key = () => `mil annotations ${cohort} ${state.slide.id}`;
  const say = (text) => { at("kept").textContent = text; };

  function keep() {
    try {
      if (state.all.length) localStorage.setItem(key(), JSON.stringify(state.all));
      else localStorage.removeItem(key());
      say("Kept in this browser alone; export to share them.");
    } catch {
      say("This browser keeps nothing (private window or full storage): export before you close the page.");
    }
  }

  function open(slide) {
    Object.assign(state, { slide, all: [], chosen: null });
    stop();
    try {
      const kept = JSON.parse(localStorage.getItem(key()) || "[]");
      state.all = Array.isArray(kept) ? kept.filter((one) => one && isPlace(one.points)).map((one) => ({ id: newId(), kind: "polygon", class: "", text: "", ...one })) : [];
    } catch { /* no storage, or not ours: none */ }
    say("");
    list();
  }

  const isPlace = (points) => Array.isArray(points) && points.length > 0 && points.every((point) => Array.isArray(point) && point.length >= 2 && point.slice(0, 2).every(Number.isFinite));
  const within = ([x, y]) => [Math.min(Math.max(x, 0), state.slide.known.width), Math.min(Math.max(y, 0), state.slide.known.height)];
  const rounded = (points) => points.map((point) => within(point).map((value) => Math.round(value * 10) / 10));

  function add(kind, points) {
    const one = { id: newId(), kind, points: rounded(points), class: "", text: "" };
    state.all.push(one);
    stop();
    choose(one);
    keep();
    at("annotation-class").focus();
  }

  // a UUID, also where the page is no secure context (a file)
  function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    bytes[6] = (bytes[6] & 15) | 64;
    bytes[8] = (bytes[8] & 63) | 128;
    const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  }

  function choose(one) {
    state.chosen = one;
    list();
    redraw();
  }

  function remove() {
    if (!state.chosen) return;
    state.all = state.all.filter((one) => one !== state.chosen);
    choose(null);
    keep();
  }

  function list() {
    at("annotations").replaceChildren(...state.all.map((one) => {
      const [item, button] = [document.createElement("li"), document.createElement("button")];
      button.type = "button";
      button.textContent = title(one);
      button.setAttribute("aria-pressed", String(one === state.chosen));
      button.addEventListener("click", () => { choose(one); toSlide(bounds(one)); });
      item.append(button);
      return item;
    }));
    at("annotation").hidden = !state.chosen;
    at("annotation-class").value = state.chosen ? state.chosen.class : "";
    at("annotation-text").value = state.chosen ? state.chosen.text : "";
  }

  function bounds(one) {
    const [xs, ys] = [0, 1].map((part) => one.points.map((point) => point[part]));
    return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  }

  // Corners of a shape in their order.
  function ring(one) {
    if (one.kind !== "rectangle") return one.points;
    const [left, top, right, bottom] = bounds(one);
    return [[left, top], [right, top], [right, bottom], [left, bottom]];
  }

  function draw(pen, scale) {
    const shapes = [...state.all, ...(state.points.length ? [{ kind: state.tool === "rectangle" ? "rectangle" : "open", points: state.points, class: "" }] : [])];
    for (const one of shapes) {
      const path = new Path2D();
      const corners = ring(one);
      if (corners.length === 1) path.arc(...corners[0], 6 / scale, 0, 2 * Math.PI);
      else corners.forEach((corner) => path.lineTo(...corner));
      if (one.kind !== "open") path.closePath();
      for (const [colour, wide] of [["#fff", 4], [`rgb(${colourOf(one).join(",")})`, one === state.chosen ? 3 : 1.75]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = wide / scale;
        pen.stroke(path);
      }
    }
  }

  function start(tool) {
    state.tool = state.tool === tool ? null : tool;
    state.points = [];
    show();
  }

  function stop() {
    state.tool = null;
    state.points = [];
    show();
  }

  function show() {
    document.body.dataset.tool = state.tool || "";
    for (const tool of ["rectangle", "polygon", "point"]) at(tool).setAttribute("aria-pressed", String(state.tool === tool));
    at("how").textContent = { rectangle: "Drag over the slide.", polygon: "Click corner by corner; Enter or a double click ends, Backspace takes a corner back.", point: "Click on the slide." }[state.tool] || "";
    redraw();
  }

  function finish() {
    const points = state.points.filter((point, n) => n === 0 || Math.hypot(point[0] - state.points[n - 1][0], point[1] - state.points[n - 1][1]) > 0);
    if (state.tool === "polygon" && points.length > 2) add("polygon", points);
    else stop();
  }

  // Pointer events of a stage while a tool is chosen; `place` gives level-0 pixels.
  function listen(canvas, place) {
    const events = {
      pointerdown: (event) => {
        const point = place(event);
        if (state.tool === "rectangle") {
          canvas.setPointerCapture(event.pointerId);
          state.points = [point, point];
        } else if (state.tool === "point") add("point", [point]);
        else state.points.push(point);
        redraw();
      },
      pointermove: (event) => {
        if (state.tool === "rectangle" && state.points.length) {
          state.points[1] = place(event);
          redraw();
        }
      },
      pointerup: () => {
        if (state.tool !== "rectangle" || !state.points.length) return;
        const [[left, top], [right, bottom]] = state.points;
        if (left !== right && top !== bottom) add("rectangle", state.points);
        else state.points = [];
      },
      dblclick: finish,
    };
    for (const [name, handler] of Object.entries(events)) {
      canvas.addEventListener(name, (event) => {
        if (!state.tool) return;
        event.stopPropagation();
        handler(event);
      });
    }
  }

  // Choose the annotation whose line is at a level-0 point; whether there is one.
  function hit([x, y], scale) {
    const near = (one) => {
      const corners = ring(one);
      return corners.some(([x1, y1], n) => {
        const [x2, y2] = corners[(n + 1) % corners.length];
        const length = (x2 - x1) ** 2 + (y2 - y1) ** 2;
        const share = length ? Math.min(Math.max(((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length, 0), 1) : 0;
        return Math.hypot(x - x1 - share * (x2 - x1), y - y1 - share * (y2 - y1)) * scale <= EDGE_PX;
      });
    };
    const one = state.all.findLast(near);
    if (one) choose(one);
    return Boolean(one);
  }

  const geojson = () => ({
    type: "FeatureCollection",
    features: state.all.map((one) => ({
      type: "Feature",
      id: one.id,
      geometry: one.kind === "point" ? { type: "Point", coordinates: one.points[0] } : { type: "Polygon", coordinates: [[...ring(one), ring(one)[0]]] },
      properties: { objectType: "annotation", ...(one.text && { name: one.text }), ...(one.class && { classification: { name: one.class, color: colourOf(one) } }) },
    })),
  });

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(geojson(), null, 1)], { type: "application/geo+json" }));
    link.download = `${state.slide.id}.geojson`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  async function load(file) {
    try {
      const read = JSON.parse(await file.text());
      const shapes = (Array.isArray(read) ? read : (read && read.features) || [read]).map(shapeOf);
      state.all.push(...shapes);
      keep();
      say(`${shapes.length} read from ${file.name}.`);
      choose(null);
    } catch (error) {
      say(`${file.name}: ${error instanceof SyntaxError ? "is no JSON" : error.message}; nothing was read.`);
    }
  }

  function shapeOf(feature, n) {
    const { type, coordinates } = (feature && feature.geometry) || {};
    const points = { Point: () => [coordinates], Polygon: () => coordinates?.[0]?.slice?.(0, -1) }[type];
    if (!points) throw new Error(`feature ${n + 1} is ${type || "no geometry"}; points and polygons can be read`);
    if (type === "Polygon" && coordinates?.length > 1) throw new Error(`feature ${n + 1} has a hole; only outlines can be read`);
    const about = feature.properties || {};
    const one = { id: newId(), kind: type.toLowerCase(), points: points(), class: String((about.classification && about.classification.name) || ""), text: String(about.name || "") };
    if (!isPlace(one.points)) throw new Error(`feature ${n + 1} has no coordinates`);
    one.points = rounded(one.points);
    return one;
  }

  for (const tool of ["rectangle", "polygon", "point"]) at(tool).addEventListener("click", () => start(tool));
  for (const [id, part] of [["annotation-class", "class"], ["annotation-text", "text"]]) {
    at(id).addEventListener("input", () => {
      state.chosen[part] = at(id).value;
      at("annotations").children[state.all.indexOf(state.chosen)].firstChild.textContent = title(state.chosen);
      keep();
      redraw();
    });
  }
  at("remove").addEventListener("click", remove);
  at("export").addEventListener("click", save);
  at("import").addEventListener("change", () => { load(at("import").files[0]).then(() => { at("import").value = ""; }); });
  at("classes").replaceChildren(...Object.keys(COLOURS).map((name) => Object.assign(document.createElement("option"), { value: name })));

  // Keys that belong to drawing; whether the key was one.
  function press(name) {
    if (state.tool && name === "Escape") stop();
    else if (state.tool === "polygon" && name === "Enter") finish();
    else if (state.tool === "polygon" && name === "Backspace") { state.points.pop(); redraw(); }
    else if (!state.tool && name === "Delete" && state.chosen) remove();
    else return false;
    return true;
  }

  return { open, add, start, draw, listen, hit, press, geojson, get drawing() { return Boolean(state.tool); } };
};
