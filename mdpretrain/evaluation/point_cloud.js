"use strict";
// Draws the report's point clouds on plain 2-D canvases with a depth buffer: no library, no WebGL, works from a file.
// Drag: turn. Wheel: nearer or farther. Double click: the first view again.
function decodeBytes(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

function pointsOf(sample, name) {
  const depth = new Float32Array(decodeBytes(sample.depths[name]).buffer);
  const { fx, fy, cx, cy } = sample.camera;
  const points = new Float32Array(depth.length * 3);
  for (let i = 0; i < depth.length; i++) {
    const row = Math.floor(i / sample.width), column = i % sample.width;
    points[3 * i] = (column - cx) / fx * depth[i];
    points[3 * i + 1] = (row - cy) / fy * depth[i];
    points[3 * i + 2] = depth[i];
  }
  return points;
}

function startViewer(box) {
  const sample = JSON.parse(box.querySelector("script").textContent);
  const canvas = box.querySelector("canvas"), context = canvas.getContext("2d");
  const rgb = decodeBytes(sample.rgb), names = Object.keys(sample.depths);
  const clouds = {};
  for (const name of names) clouds[name] = pointsOf(sample, name);
  const sorted = Array.from(clouds[names[0]].filter((_, i) => i % 3 === 2)).filter((z) => z > 0).sort((a, b) => a - b);
  const pivot = sorted[Math.floor(sorted.length / 2)] || 1;
  const farthest = 3 * (sorted[Math.floor(sorted.length * 0.95)] || 1);
  const first = { yaw: 0.22, pitch: -0.14, distance: 1.1 };
  let view = { ...first }, shown = names[0], pending = false;

  function draw() {
    pending = false;
    const width = canvas.width, height = canvas.height;
    const frame = context.createImageData(width, height), pixels = new Uint32Array(frame.data.buffer);
    const nearest = new Float32Array(width * height).fill(Infinity);
    pixels.fill(0xff1c1714);
    const cosYaw = Math.cos(view.yaw), sinYaw = Math.sin(view.yaw), cosPitch = Math.cos(view.pitch), sinPitch = Math.sin(view.pitch);
    const focal = sample.camera.fx * Math.min(width / sample.width, height / sample.height);
    const points = clouds[shown];
    for (let i = 0; i < points.length / 3; i++) {
      const depth = points[3 * i + 2];
      if (depth <= 0 || depth > farthest) continue;
      const x0 = points[3 * i], y0 = points[3 * i + 1], z0 = depth - pivot;
      const x = cosYaw * x0 + sinYaw * z0, z1 = -sinYaw * x0 + cosYaw * z0;
      const y = cosPitch * y0 + sinPitch * z1, z = -sinPitch * y0 + cosPitch * z1 + pivot * view.distance;
      if (z < 0.05 * pivot) continue;
      const size = Math.max(1, Math.min(8, Math.ceil(1.45 * focal / sample.camera.fx * depth / z)));
      const left = Math.round(width / 2 + focal * x / z - size / 2), top = Math.round(height / 2 + focal * y / z - size / 2);
      const colour = 0xff000000 | (rgb[3 * i + 2] << 16) | (rgb[3 * i + 1] << 8) | rgb[3 * i];
      for (let v = Math.max(0, top); v < Math.min(height, top + size); v++) {
        for (let u = Math.max(0, left); u < Math.min(width, left + size); u++) {
          const at = v * width + u;
          if (z < nearest[at]) { nearest[at] = z; pixels[at] = colour; }
        }
      }
    }
    context.putImageData(frame, 0, 0);
  }
  function redraw() { if (!pending) { pending = true; requestAnimationFrame(draw); } }

  const bar = box.querySelector(".choices");
  for (const name of names) {
    const button = document.createElement("button");
    button.textContent = name;
    button.className = name === shown ? "chosen" : "";
    button.onclick = () => {
      shown = name;
      for (const other of bar.children) other.className = other === button ? "chosen" : "";
      redraw();
    };
    bar.appendChild(button);
  }
  canvas.onpointerdown = (event) => canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = (event) => {
    if (!event.buttons) return;
    view.yaw -= event.movementX * 0.006;
    view.pitch = Math.max(-1.5, Math.min(1.5, view.pitch + event.movementY * 0.006));
    redraw();
  };
  canvas.onwheel = (event) => {
    event.preventDefault();
    view.distance = Math.max(0.2, Math.min(6, view.distance * Math.exp(event.deltaY * 0.001)));
    redraw();
  };
  canvas.ondblclick = () => { view = { ...first }; redraw(); };
  draw();
}
document.querySelectorAll(".cloud").forEach(startViewer);
