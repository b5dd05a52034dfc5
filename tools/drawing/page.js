/* The page that page.py writes: a player of skeletons, a map of joint-segments linked to it, classes over time.
 * `scenes` holds the data (see page.py), `state` what the reader chooses; `change` sets it and draws. Axis letters:
 * M bodies, T frames, V joints, P segments of u frames, L = P·V joint-segments, H heads, R rank of attention factors.
 */
'use strict';
const RATE = 30;            // frames a second at speed 1, that of the Kinect
const state = {
  scene: 0, beside: -1, focus: 0, frame: 0, playing: false, speed: 1, yaw: 0, pitch: 0.12, zoom: 1, overlay: 'arrows',
  map: 'intensity', body: 0, mask: '', hover: null, query: null,    // hover and query: {joint, segment} of `focused`
  block: -1, head: -1,                                              // block -1: the last one; head -1: mean of all
};
const CHOICES = ['scene', 'beside', 'focus', 'map', 'body', 'mask', 'block', 'head', 'speed', 'overlay'];
const palette = {};
const element = id => document.getElementById(id);
const range = count => [...Array(count).keys()];
const within = (value, least, most) => Math.max(least, Math.min(value, most));
const tenths = frame => Math.floor(10 * frame / RATE);     // of a second
const significant = value => Number(value.toPrecision(2)).toString();
const clock = frame => `${Math.floor(tenths(frame) / 600)}:${(tenths(frame) % 600 / 10).toFixed(1).padStart(4, '0')}`;

// ---- data -----------------------------------------------------------------------------------------------------------

/** Decode {dtype, data} to a typed array; float16 becomes Float32Array. */
function unpack({dtype, data}) {
  const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
  if (dtype === 'float16') return Float32Array.from(new Uint16Array(bytes.buffer), halfToFloat);
  return new {uint8: Uint8Array, int8: Int8Array, float32: Float32Array}[dtype](bytes.buffer);
}

function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const {scenes, start} = JSON.parse(element('data').textContent, (_, value) => value?.dtype ? unpack(value) : value);
const shownScenes = () => [state.scene, state.beside].filter(i => i >= 0).map(i => scenes[i]);
const focused = () => shownScenes()[state.focus] ?? scenes[state.scene];
const currentMask = scene => scene.masks?.find(({name}) => name === state.mask) ?? scene.masks?.[0];
const longest = () => Math.max(...shownScenes().map(({frames}) => frames));
const currentBody = scene => Math.min(state.body, scene.bodies - 1);
const currentBlock = scene => state.block < 0 ? scene.blocks - 1 : Math.min(state.block, scene.blocks - 1);
const segmentAt = (scene, t) => Math.floor(t / scene.u);
const middle = (scene, segment) => Math.floor((segment + 0.5) * scene.u);

/** The cell of a scene with the joint and the time of a cell of the focused scene, or null. */
function cellOf(scene, cell) {
  const source = focused();
  if (!cell || scene === source) return cell;
  const joint = scene.joints.indexOf(source.joints[cell.joint]);
  const segment = segmentAt(scene, middle(source, cell.segment));
  return joint >= 0 && segment < scene.segments ? {joint, segment} : null;
}

/** The frame of a scene that is drawn, the last one of a scene that is over; a hovered cell shows its middle. */
function shownFrame(scene) {
  const {hover, playing, frame} = state;
  const t = hover && !playing ? hover.frame ?? middle(focused(), hover.segment) : Math.round(frame);
  return Math.min(t, scene.frames - 1);
}

/** The coordinates of a joint in an array (M, T, V, 3). */
function vector(scene, array, body, t, joint) {
  const i = ((body * scene.frames + t) * scene.joints.length + joint) * 3;
  return [array[i], array[i + 1], array[i + 2]];
}

/** The index of a joint-segment in an array (M, P, V). */
const cellIndex = (scene, body, segment, joint) => (body * scene.segments + segment) * scene.joints.length + joint;
const isMasked = (scene, ...cell) => !!currentMask(scene)?.masked[cellIndex(scene, ...cell)];

/** True and predicted vectors, in metres, of the masked joints of a body in a frame. */
function arrows(scene, body, t) {
  const read = (array, joint) => vector(scene, array, body, t, joint), {pred} = currentMask(scene);
  return range(scene.joints.length).filter(joint => isMasked(scene, body, segmentAt(scene, t), joint))
    .map(joint => ({joint, true: read(scene.true, joint), pred: read(pred, joint)}));
}

/** Predicted positions (M, T, V, 3): motion is added up from the last frame in which a joint was visible. */
function predictedPath(scene) {
  const mask = currentMask(scene), size = scene.joints.length * 3, path = mask.path ?? scene.pose.slice();
  for (let i = scene.lag * size; i < path.length && !mask.path; i++) {
    const from = i - scene.lag * size, [body, t] = [Math.floor(from / size / scene.frames), from / size % scene.frames];
    if (body !== Math.floor(i / size / scene.frames)) continue;     // the first frames of a body have none before them
    if (isMasked(scene, body, segmentAt(scene, t), Math.floor(from % size / 3))) path[i] = path[from] + mask.pred[from];
  }
  return mask.path = path;
}

/** Attention (P, V) in multiples of uniform attention: that of the selected query, or the mean over all queries. */
function attentionMap(scene) {
  const {head} = state, query = cellOf(scene, state.query), count = scene.segments * scene.joints.length;
  const first = (currentBlock(scene) * scene.bodies + currentBody(scene)) * scene.heads;
  const key = [first, head, query?.segment, query?.joint, !state.query].join();
  if (scene.attentionKey === key) return scene.attentionMap;
  const heads = head < 0 ? range(scene.heads) : [Math.min(head, scene.heads - 1)], sum = new Float32Array(count);
  const queries = query ? [query.segment * scene.joints.length + query.joint] : range(state.query ? 0 : count);
  for (const number of heads) queries.forEach(i => addAttention(scene, first + number, i, sum));
  const multiple = count / heads.length / Math.max(queries.length, 1);
  scene.attentionKey = key;
  return scene.attentionMap = sum.map(value => value * multiple);
}

/** Add softmax(q kᵀ) of one query to `sum` (L). `index` numbers block, body and head; `scale` undoes the rounding. */
function addAttention(scene, index, query, sum) {
  const {queries, keys, scale, rank} = scene.attention, count = sum.length, first = index * count * rank;
  const q = range(rank).map(r => queries[first + query * rank + r] * scale[index * rank + r]);
  const scores = new Float32Array(count);
  for (let i = 0; i < count * rank; i++) scores[Math.floor(i / rank)] += q[i % rank] * keys[first + i];
  const most = scores.reduce((a, b) => Math.max(a, b));
  let total = 0;
  for (let i = 0; i < count; i++) total += scores[i] = Math.exp(scores[i] - most);
  for (let i = 0; i < count; i++) sum[i] += scores[i] / total;
}

// ---- drawing --------------------------------------------------------------------------------------------------------

function readPalette() {
  const style = getComputedStyle(document.documentElement), names = [...document.styleSheets[0].cssRules[0].style];
  for (const name of names) palette[name.replace('--', '')] = style.getPropertyValue(name).trim();
}

/** The colour of a share (0 to 1) on a scale from the ground over a hue towards ink. */
function shade(hue, share) {
  if (hue === 'mask') return share ? palette.masked : palette.visible;
  const position = within(share, 0, 1) * 1.7, i = position < 1 ? 0 : 1;     // ends before ink, for frames
  const [from, to] = [palette.low, palette[hue], palette.high].slice(i, i + 2)
    .map(hex => [1, 3, 5].map(start => parseInt(hex.slice(start, start + 2), 16)));
  return `rgb(${from.map((value, c) => Math.round(value + (to[c] - value) * (position - i)))})`;
}

/** Fit a canvas to its size on the screen and clear it; returns its context in CSS pixels, width and height. */
function fit(canvas) {
  const ratio = window.devicePixelRatio || 1, {clientWidth: width, clientHeight: height} = canvas;
  Object.assign(canvas, {width: Math.round(width * ratio), height: Math.round(height * ratio)});      // clears it
  const context = canvas.getContext('2d');
  context.scale(ratio, ratio);
  Object.assign(context, {lineCap: 'round', lineJoin: 'round', textBaseline: 'middle'});
  return {context, width, height};
}

function line(context, from, to, colour, width) {
  Object.assign(context, {strokeStyle: colour, lineWidth: width});
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

function arrow(context, from, to, colour, width) {
  const [x, y] = [to[0] - from[0], to[1] - from[1]], angle = Math.atan2(y, x);
  const head = Math.min(7, Math.hypot(x, y) / 2.5);
  const side = turn => [to[0] + head * Math.cos(angle + turn), to[1] + head * Math.sin(angle + turn)];
  if (head >= 0.6) for (const end of [from, side(2.6), side(-2.6)]) line(context, to, end, colour, width);
}

function circle(context, [x, y], radius, colour, fill) {
  Object.assign(context, {strokeStyle: colour, lineWidth: fill ? 1 : 2.5, fillStyle: fill ?? 'transparent'});
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fill();
  context.stroke();
}

// ---- player ---------------------------------------------------------------------------------------------------------

/** Views of the scenes shown, side by side; `project` turns a point in metres about the middle and gives its pixels. */
function makeViews(width, height) {
  const shown = shownScenes(), panel = width / shown.length;
  const scale = state.zoom * Math.min(...shown.map(({reach, low, high}) =>
    Math.min(panel / (2.3 * reach), height / (1.2 * Math.max(high - low, 0.1)))));
  return shown.map((scene, i) => {
    const t = shownFrame(scene), [x0, z0] = scene.centre.subarray(2 * t, 2 * t + 2), y0 = (scene.low + scene.high) / 2;
    const yaw = scene.yaw + state.yaw, distance = 5 * Math.max(scene.reach, scene.high - scene.low);
    const project = ([x, y, z]) => {
      const across = (x - x0) * Math.cos(yaw) + (z - z0) * Math.sin(yaw);
      const depth = (z - z0) * Math.cos(yaw) - (x - x0) * Math.sin(yaw);
      const up = (y - y0) * Math.cos(state.pitch) - depth * Math.sin(state.pitch);
      const toward = (y - y0) * Math.sin(state.pitch) + depth * Math.cos(state.pitch);
      const enlarged = scale * distance / (distance - toward);
      return [(i + 0.5) * panel + across * enlarged, height / 2 - up * enlarged];
    };
    return {scene, t, project, left: i * panel, width: panel, x0, z0, dots: []};
  });
}

function drawPlayer() {
  const {context, width, height} = fit(element('player'));
  state.views = makeViews(width, height);
  for (const view of state.views) {
    context.save();
    context.beginPath();
    context.rect(view.left, 0, view.width, height);
    context.clip();
    if (!view.scene.planar) drawFloor(context, view);
    const isPresent = body => view.scene.present[body * view.scene.frames + view.t];
    range(view.scene.bodies).filter(isPresent).forEach(body => drawBody(context, view, body));
    context.restore();
  }
  if (state.views.length > 1) line(context, [width / 2, 0], [width / 2, height], palette.line, 1);
}

/** Lines half a metre apart that stay in place while the view follows the body. */
function drawFloor(context, {scene, project, x0, z0}) {
  const size = Math.ceil(scene.reach + 0.5), y = scene.low, x = Math.round(x0 * 2) / 2, z = Math.round(z0 * 2) / 2;
  for (let i = -size; i <= size; i += 0.5) {
    line(context, project([x + i, y, z - size]), project([x + i, y, z + size]), palette.floor, 1);
    line(context, project([x - size, y, z + i]), project([x + size, y, z + i]), palette.floor, 1);
  }
}

function drawBody(context, {scene, t, project, dots}, body) {
  const read = array => scene.joints.map((_, joint) => vector(scene, array, body, t, joint));
  const points = read(scene.pose), pixels = points.map(project);
  const bones = (ends, colour, width) =>
    scene.parents.forEach((parent, joint) => line(context, ends[joint], ends[parent], colour, width));
  bones(pixels, palette.bone, 3);
  dots.push(...pixels.map(([x, y], joint) => ({x, y, joint, body})));
  const overlay = scene.masks && state.map !== 'attention' ? state.overlay : 'none';      // attention is without a mask
  if (overlay === 'path' && scene.lag !== null) {
    bones(read(predictedPath(scene)).map(project), palette.predicted, 2);
  }
  pixels.forEach((pixel, joint) => circle(context, pixel, ...jointStyle(scene, body, t, joint)));
  if (overlay === 'arrows') {
    const tip = (joint, value) => project(points[joint].map((x, c) => x + value[c] * scene.enlarged));
    for (const vectors of arrows(scene, body, t)) {
      arrow(context, pixels[vectors.joint], tip(vectors.joint, vectors.true), palette.ink, 3.5);
      arrow(context, pixels[vectors.joint], tip(vectors.joint, vectors.pred), palette.predicted, 2);
    }
  }
  for (const [selected, colour] of [[state.hover, palette.ink], [state.query, palette.predicted]]) {
    const cell = cellOf(scene, selected);
    if (!pixels[cell?.joint] || body !== currentBody(scene)) continue;
    const [x, y] = pixels[cell.joint], label = [scene.joints[cell.joint], x + 15, y - 8];
    circle(context, [x, y], 11, colour);
    Object.assign(context, {font: '13px system-ui', strokeStyle: palette.panel, lineWidth: 4, fillStyle: palette.ink});
    context.strokeText(...label);
    context.fillText(...label);
  }
}

/** Radius, edge and fill of a joint: its attention where the map shows attention, else masked or visible. */
function jointStyle(scene, body, t, joint) {
  const segment = segmentAt(scene, t), masked = isMasked(scene, body, segment, joint);
  if (state.map === 'attention' && scene.u && body === currentBody(scene)) {
    const share = Math.min(attentionMap(scene)[segment * scene.joints.length + joint] / state.limit, 1);
    return [4 + 7 * share, palette.bone, shade('attention', share)];
  }
  return masked ? [5, palette.bone, palette.masked] : [5.5, palette.panel, palette.visible];
}

// ---- map of joint-segments ------------------------------------------------------------------------------------------

/** Values (P, V) of the map for one body. */
function mapValues(scene) {
  const count = scene.segments * scene.joints.length, first = currentBody(scene) * count, mask = currentMask(scene);
  const values = {intensity: scene.intensity, mask: mask?.masked, error: mask?.error}[state.map];
  return values ? values.subarray(first, first + count) : attentionMap(scene);
}

function drawMap(scene) {
  const canvas = element('cells'), names = scene.joints, left = canvas.clientWidth < 420 ? 92 : 118;
  const height = names.length > 22 ? 16 : 19, values = mapValues(scene), body = currentBody(scene);
  const hasFrames = scene.masks && 'intensity error'.includes(state.map);
  canvas.style.height = `${names.length * height + 20}px`;
  const {context, width: total} = fit(canvas), width = (total - left) / scene.segments;
  // The last colour begins at a quantile, so that a few outliers do not make the rest pale.
  Object.assign(state, {grid: {left, width, height}, limit: values.toSorted()[Math.floor(values.length * 0.99)] || 1});
  const frame = ({segment, joint}, gap, strokeStyle, lineWidth, rows = 1) => {
    Object.assign(context, {strokeStyle, lineWidth});
    context.strokeRect(left + segment * width + gap, joint * height + gap, width - 2 * gap, rows * height - 2 * gap);
  };
  for (const joint of range(names.length)) {
    const isMarked = [state.hover, state.query].some(cell => cell?.joint === joint);
    Object.assign(context, {font: `${isMarked ? 'bold ' : ''}12px system-ui`, textAlign: 'right',
      fillStyle: isMarked ? palette.ink : palette.soft});
    context.fillText(names[joint], left - 7, (joint + 0.5) * height, left - 9);
    for (const segment of range(scene.segments)) {
      const masked = isMasked(scene, body, segment, joint), value = values[segment * names.length + joint];
      context.fillStyle = state.map === 'error' && !masked ? palette.paper : shade(state.map, value / state.limit);
      context.fillRect(left + segment * width + 0.5, joint * height + 0.5, width - 1, height - 1);
      if (hasFrames && !masked) frame({segment, joint}, 2, palette.visible, 2);
    }
  }
  Object.assign(context, {fillStyle: palette.soft, font: '11px system-ui'});
  context.fillText('segment', left - 7, names.length * height + 10);
  context.textAlign = 'center';
  for (let segment = 0; segment < scene.segments; segment += 5) {
    context.fillText(segment, left + (segment + 0.5) * width, names.length * height + 10);
  }
  frame({segment: segmentAt(scene, shownFrame(scene)), joint: 0}, 0, palette.ink, 1.5, names.length);
  if (state.hover) frame(state.hover, 0, palette.ink, 2.5);
  if (state.query) frame(state.query, 0, palette.predicted, 3);
}

function describeMap(scene) {
  const {limit, map, query} = state, {unit, text} = scene.maps[map];
  const queries = query ? `Query: ${scene.joints[query.joint]}, segment ${query.segment}. ` : 'Mean over all queries. ';
  element('ramp').style.background = `linear-gradient(90deg, ${[0, 0.3, 0.6, 1].map(share => shade(map, share))})`;
  [element('low').textContent, element('high').textContent] =
    map === 'mask' ? ['visible', 'masked'] : ['0', `${significant(limit)} ${unit} or more`];
  element('explanation').textContent = (map === 'attention' ? queries : '') + text;
}

function describeCell(scene) {
  const cell = state.hover ?? state.query, mask = currentMask(scene), readout = element('readout');
  if (!cell) return readout.replaceChildren();         // page.css shows a hint
  const i = cellIndex(scene, currentBody(scene), cell.segment, cell.joint), from = cell.segment * scene.u;
  const {title, unit} = scene.maps.intensity, isAttention = state.map === 'attention';
  const values = isAttention ?
    [`attention ${significant(attentionMap(scene)[cell.segment * scene.joints.length + cell.joint])} × average`] :
    [`${title} ${significant(scene.intensity[i])} ${unit}`,
      mask && (mask.masked[i] ? `masked, squared error ${significant(mask.error[i])}` : 'visible')];
  return readout.textContent = [`${scene.joints[cell.joint]}, frames ${from + 1} to ${from + scene.u}`, ...values]
    .filter(Boolean).join('; ');
}

// ---- words, classes, controls ---------------------------------------------------------------------------------------

/** Fill the choices and texts of the scenes shown. */
function setUp() {
  const scene = focused(), mask = currentMask(scene), predicted = shownScenes().find(({masks}) => masks);
  if (scene.u && !scene.maps[state.map]) state.map = 'intensity';
  const isAttention = scene.u && state.map === 'attention', hasLegend = predicted && !isAttention;
  const isFor = {attention: isAttention, plain: mask && !isAttention, bodies: scene.bodies > 1, map: scene.u,
    masks: mask, predicted, legend: hasLegend, true: hasLegend && state.overlay === 'arrows' && predicted.isMotion,
    overlay: hasLegend && state.overlay !== 'none',
    frames: mask && 'intensity error'.includes(state.map), classes: scene.windows, timeline: scene.timeline,
    scenes: scenes.length > 1, beside: state.beside >= 0};
  for (const part of document.querySelectorAll('[data-for]')) part.hidden = !isFor[part.dataset.for];
  const titles = scenes.map(({name}, i) => [i, name]), focus = [[0, 'left'], [1, 'right']];
  const choices = {...scene.choices, scene: titles, beside: [[-1, 'none'], ...titles], focus};
  for (const [id, entries] of Object.entries(choices)) {
    element(id).replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
    element(id).value = {block: currentBlock(scene), body: currentBody(scene), mask: mask?.name}[id] ?? state[id];
  }
  const texts = {...scene, masked: mask?.text};
  for (const name of ['title', 'intro', 'kept', 'masked', 'predicted']) element(name).textContent = texts[name] ?? '';
  for (const name of ['facts', 'table', 'labels', 'key']) element(name).innerHTML = texts[name] ?? '';    // is escaped
  element('good').textContent = shownScenes().map((shown, i) => ({...currentMask(shown), side: ['Left', 'Right'][i]}))
    .filter(({quality}) => quality).map(({side, name, quality}) =>
      state.beside < 0 ? quality : `${side}, mask ${name}: ${quality}`).join('\n');
  [element('left').textContent, element('right').textContent] = [...shownScenes(), {name: ''}].map(({name}) => name);
  element('frame').max = longest() - 1;
  element('labels').style.width = `calc((100% - 16px) * ${scene.frames / longest()})`;
  element('overlay').options[1].disabled = scene.lag === null;
  state.window = undefined;
}

/** List the most likely classes of the window that the frame belongs to. */
function showClasses(scene) {
  const t = shownFrame(scene), current = scene.windows.find(({begin, stop}) => begin <= t && t < stop) ?? null;
  if (state.window === current) return;
  state.window = current;
  const when = current ? `Frames ${current.start + 1} to ${current.end}.` : 'No body in these frames.';
  element('when').textContent = when + (scene.label === null ? '' : ` True class: ${scene.classes[scene.label]}.`);
  element('top').replaceChildren(...(current?.top ?? []).map(([index, probability]) => {
    const item = document.createElement('li');
    item.innerHTML = `<span></span><b></b><span>${(100 * probability).toFixed(1)} %</span>`;
    Object.assign(item.children[1].style, {width: `${100 * probability}%`, background: scene.colours?.[index]});
    item.firstChild.textContent = scene.classes[index] + (index === scene.label ? ' (true)' : '');
    return item;
  }));
  scene.timeline?.forEach(({start, end}, i) =>
    element('labels').children[i].setAttribute('aria-current', start <= t && t < end));
}

/** Draw what depends on the frame or the pointer. */
function render() {
  const scene = focused(), {hover} = state, t = Math.max(...shownScenes().map(shownFrame));
  for (const show of scene.u ? [drawMap, describeMap, describeCell] : []) show(scene);
  drawPlayer();
  if (scene.windows) showClasses(scene);
  element('frame').value = state.frame;
  element('play').textContent = state.playing ? 'Pause' : 'Play';
  element('time').textContent = `frame ${t + 1} of ${longest()}${scene.u ? '' : ` · ${clock(t)}`}`;
  const width = 100 * scene.u / longest(), left = width * hover?.segment;
  Object.assign(element('mark'), {hidden: !hover, style: `left: ${left}%; width: ${width}%`});
}

function change(values) {
  Object.assign(state, values);
  if (CHOICES.some(name => name in values)) setUp();
  render();
}

// ---- pointer and keyboard -------------------------------------------------------------------------------------------

function play(time) {
  if (!state.playing) return;
  const passed = Math.min((time - (state.time ?? time)) / 1000, 0.2);       // after a hidden tab, go on without a jump
  Object.assign(state, {time, frame: (state.frame + passed * RATE * state.speed) % (longest() - 0.5)});
  render();
  requestAnimationFrame(play);
}

function toggle() {
  change({playing: !state.playing, time: null, hover: null});
  requestAnimationFrame(play);
}

const turn = (across, up) => change({yaw: state.yaw - across, pitch: within(state.pitch + up, -1.5, 1.5)});
const zoom = factor => change({zoom: within(state.zoom * factor, 0.3, 8)});
const step = count => change({playing: false, hover: null,
  frame: within(Math.round(state.frame) + count, 0, longest() - 1)});

/** Go to the next (way 1) or previous (way -1) label. */
function jump(way) {
  const segments = focused().timeline, now = segments.findLastIndex(({start}) => start <= state.frame);
  if (segments[now + way]) change({playing: false, frame: segments[now + way].start});
}

/** Select a cell as the query of attention and go there, or clear the selection. */
function select(cell) {
  if (!focused().u) return;
  const frame = state.playing || !cell ? state.frame : cell.frame ?? middle(focused(), cell.segment);
  change(cell ? {query: cell, body: cell.body ?? state.body, map: 'attention', frame} : {query: null, hover: null});
}

/** Point at a joint-segment; one of another body selects that body, if no cell is selected. */
function point(hover) {
  const isOther = hover && (hover.body ?? state.body) !== state.body;
  if (hover || state.hover) change(!isOther ? {hover} : state.query ? {hover: null} : {hover, body: hover.body});
}

/** The joint within 16 pixels of a point of the player, in the scene that the map belongs to. */
function jointAt(x, y) {
  const {scene, t, dots} = state.views[state.focus] ?? state.views[0];
  const distance = dot => Math.hypot(dot.x - x, dot.y - y);
  const [nearest] = dots.filter(dot => scene.u && distance(dot) < 16).sort((a, b) => distance(a) - distance(b));
  return nearest ? {joint: nearest.joint, body: nearest.body, segment: segmentAt(scene, t), frame: t} : null;
}

function cellAt(x, y) {
  const {left, width, height} = state.grid, joint = Math.floor(y / height), segment = Math.floor((x - left) / width);
  return segment >= 0 && segment < focused().segments && joint >= 0 && joint < focused().joints.length ?
    {joint, segment} : null;
}

const player = element('player'), cells = element('cells');
let drag = null;
player.onpointerdown = event => {
  drag = {x: event.offsetX, y: event.offsetY, length: 0};
  player.setPointerCapture(event.pointerId);
};
player.onpointermove = ({offsetX: x, offsetY: y}) => {
  if (!drag) return state.playing || point(jointAt(x, y));
  const [across, up] = [x - drag.x, y - drag.y];
  drag = {x, y, length: drag.length + Math.hypot(across, up)};
  return turn(across * 0.01, up * 0.01);
};
player.onpointerup = ({offsetX: x, offsetY: y}) => {
  const cell = drag?.length < 4 && jointAt(x, y);
  drag = null;
  if (cell) select(cell);
};
player.onpointercancel = () => drag = null;       // the browser scrolls instead
player.onwheel = event => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * 0.001));
};
cells.onpointermove = event => point(cellAt(event.offsetX, event.offsetY));
cells.onclick = event => select(cellAt(event.offsetX, event.offsetY));
player.onpointerleave = cells.onpointerleave = cells.onblur = () => point(null);

/** Keys of the whole page, of the player and of the map; controls keep their own. */
document.onkeydown = event => {
  const {key, target} = event, isButton = target.matches('summary, button:not(#labels *)');
  const isControl = isButton ? [' ', 'Enter'].includes(key) : /^(SELECT|INPUT)$/.test(target.tagName)
    && !(key === ' ' && target.id === 'frame');
  const [x, y] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[key] ?? [0, 0];
  if (isControl || event.ctrlKey || event.altKey || event.metaKey) return;
  if (key === ' ') toggle();
  else if (key === 'Home' || key === 'End') step(key === 'Home' ? -Infinity : Infinity);
  else if (key === 'Escape') select(null);
  else if ('+=-−'.includes(key)) zoom('+='.includes(key) ? 1.15 : 1 / 1.15);
  else if (key === 'Enter' && state.hover) select(state.hover);
  else if (event.shiftKey && (x || y)) turn(x * 0.15, y * 0.15);
  else if (target.closest('#labels') && x) jump(x);
  else if (target.id === 'cells' && (x || y)) {
    const scene = focused();
    const {joint, segment} = state.hover ?? state.query ?? {joint: 0, segment: segmentAt(scene, shownFrame(scene))};
    point({joint: within(joint + y, 0, scene.joints.length - 1), segment: within(segment + x, 0, scene.segments - 1)});
  } else if (x) step(x);
  else return;
  event.preventDefault();
};

for (const id of CHOICES) {
  element(id).onchange = ({target: {value}}) => change({      // a cell of one scene need not exist in another
    query: /scene|beside|focus/.test(id) ? null : state.query, [id]: isNaN(value) ? value : Number(value)});
}
element('play').onclick = toggle;
element('labels').onclick = ({target}) => target.value && change({frame: Number(target.value)});
element('reset').onclick = () => change({yaw: 0, pitch: 0.12, zoom: 1});
element('frame').oninput = event => change({frame: Number(event.target.value), hover: null, playing: false});
window.onresize = render;
window.matchMedia('(prefers-color-scheme: dark)').onchange = () => render(readPalette());
readPalette();
change({scene: 0, ...start});
element('opened').textContent = `This page was drawn ${(performance.now() / 1000).toFixed(1)} s after it was opened.`;
