"use strict";
// Attention of a slide's tiles -> what is drawn over the slide: a picture with one pixel a tile, contours, outlines of regions.
// Paths are in pixels of level 0.
window.Overlay = (() => {
  // matplotlib's inferno in nine steps
  const STEPS = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];
  const log2 = (value) => Math.log2(Math.max(value, 1e-6));

  // The colour of `attention` times the mean; `reach`: powers of two that the scale goes up and down from the mean.
  function colour(attention, reach) {
    const share = Math.min(Math.max(0.5 + log2(attention) / (2 * reach), 0), 1) * (STEPS.length - 1);
    const low = Math.min(Math.floor(share), STEPS.length - 2);
    return STEPS[low].map((value, part) => Math.round(value + (STEPS[low + 1][part] - value) * (share - low)));
  }

  function reachOf(values) {
    const logs = values.map((value) => Math.abs(log2(value))).sort((a, b) => a - b);
    return Math.min(Math.max(logs[Math.floor(0.99 * (logs.length - 1))] || 0.5, 0.5), 6);
  }

  // One axis of the tiles' grid: the cell of each corner, where the first cell starts, and the step, fitted to rounded corners.
  function axis(starts, stride) {
    const places = [...new Set(starts)].sort((a, b) => a - b);
    const cells = new Map();
    let cell = 0;
    places.forEach((place, n) => {
      cell += n ? Math.max(Math.round((place - places[n - 1]) / stride), 1) : 0;
      cells.set(place, cell);
    });
    return { of: starts.map((start) => cells.get(start)), first: places[0] || 0, count: cell + 1, step: cell ? (places[places.length - 1] - places[0]) / cell : stride };
  }

  function gridOf(known) {
    const grid = { x: axis(known.corners.map((corner) => corner[0]), known.stride), y: axis(known.corners.map((corner) => corner[1]), known.stride) };
    for (const one of [grid.x, grid.y]) one.first += (known.side - one.step) / 2; // tiles may overlap: a cell is the middle of its tile
    return grid;
  }

  // A canvas with a pixel a cell, for the tiles `shown`.
  function picture(grid, values, shown, reach) {
    const canvas = Object.assign(document.createElement("canvas"), { width: grid.x.count, height: grid.y.count });
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(canvas.width, canvas.height);
    for (const n of shown) pixels.data.set([...colour(values[n], reach), 255], 4 * (grid.y.of[n] * canvas.width + grid.x.of[n]));
    pen.putImageData(pixels, 0, 0);
    return canvas;
  }

  // Lines with the number of their segments and a number that no other shape has.
  let shapes = 0;
  function newShape() {
    shapes += 1;
    return { path: new Path2D(), segments: 0, number: shapes };
  }

  function addLine(shape, from, to) {
    shape.path.moveTo(...from);
    shape.path.lineTo(...to);
    shape.segments += 1;
  }

  // The line between the middles of cells where log2 of the values crosses that of `limit` (marching squares); glass is below it.
  function contour(grid, values, limit) {
    const [wide, level] = [grid.x.count + 2, log2(limit)];
    const above = new Float64Array(wide * (grid.y.count + 2)).fill(-1);
    values.forEach((value, n) => { above[(grid.y.of[n] + 1) * wide + grid.x.of[n] + 1] = log2(value) - level || 1e-9; });
    const shape = newShape();
    for (let row = 0; row <= grid.y.count; row += 1) {
      for (let column = 0; column < wide - 1; column += 1) {
        const corners = [[0, 0], [1, 0], [1, 1], [0, 1]].map(([x, y]) => [column + x, row + y, above[(row + y) * wide + column + x]]);
        const crossings = [];
        corners.forEach(([x, y, value], n) => {
          const [nextX, nextY, next] = corners[(n + 1) % 4];
          if (value > 0 === next > 0) return;
          const share = value / (value - next);
          crossings.push([grid.x.first + (x + share * (nextX - x) - 0.5) * grid.x.step, grid.y.first + (y + share * (nextY - y) - 0.5) * grid.y.step]);
        });
        // of a saddle the two lines around the corners above the limit
        if (crossings.length === 4 && corners[0][2] > 0) crossings.unshift(crossings.pop());
        for (let n = 0; n + 1 < crossings.length; n += 2) {
          addLine(shape, crossings[n], crossings[n + 1]);
        }
      }
    }
    return shape;
  }

  // The edges of the region that the tiles `chosen` cover.
  function outline(grid, chosen) {
    const inside = new Set(chosen.map((n) => `${grid.x.of[n]} ${grid.y.of[n]}`));
    const [x, y] = [(cell) => grid.x.first + cell * grid.x.step, (cell) => grid.y.first + cell * grid.y.step];
    const shape = newShape();
    for (const n of chosen) {
      const [column, row] = [grid.x.of[n], grid.y.of[n]];
      const edges = [[0, -1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 1], [0, 1, 0, 1, 1, 1], [-1, 0, 0, 0, 0, 1]];
      for (const [nextX, nextY, fromX, fromY, toX, toY] of edges) {
        if (inside.has(`${column + nextX} ${row + nextY}`)) continue;
        addLine(shape, [x(column + fromX), y(row + fromY)], [x(column + toX), y(row + toY)]);
      }
    }
    return shape;
  }

  return { STEPS, colour, reachOf, gridOf, picture, contour, outline };
})();
