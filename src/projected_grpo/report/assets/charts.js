// Figures: data in, an SVG out. Colours are names of report.css, so that light and dark need no second drawing.

const HEIGHT = 300;
const NARROW = 480; // pixels: below, the caption says what has no room in the figure

// Plot puts a style element into its SVG, which the page's policy refuses; report.css has those rules instead.
function draw(options) {
  const figure = Plot.plot({ className: 'plot', style: undefined, marginTop: 14, marginLeft: 46, ...options });
  for (const style of figure.querySelectorAll('style')) style.remove();
  return figure;
}

// A place for a figure: drawn when it has a width, and again whenever that or the choice of arms changes.
const figures = [];
function figure(render, caption) {
  const canvas = el('div', { class: 'canvas' });
  let width = 0;
  const redraw = (force) => {
    const now = canvas.clientWidth;
    canvas.parentElement.classList.toggle('is-narrow', now > 0 && now < NARROW);
    if (!now || (now === width && !force)) return;
    width = now;
    canvas.replaceChildren(render(now));
  };
  figures.push({ canvas, redraw });
  return el('figure', {}, caption ? el('figcaption', {}, caption) : null, canvas);
}
function watchFigures() {
  const observer = new ResizeObserver(() => figures.forEach((each) => each.redraw(false)));
  figures.forEach((each) => { observer.observe(each.canvas); each.redraw(true); });
}
const redrawAll = () => figures.forEach((each) => each.redraw(true));

// Labels moved apart to at least `gap`, in their order, inside [low, high].
function spread(values, gap, low, high) {
  const order = values.map((_, index) => index).sort((a, b) => values[a] - values[b]);
  const placed = values.map((value) => Math.min(Math.max(value, low), high));
  for (let pass = 0; pass < 60; pass += 1) {
    for (let i = 1; i < order.length; i += 1) {
      const [below, above] = [order[i - 1], order[i]];
      const lack = gap - (placed[above] - placed[below]);
      if (lack > 0) { placed[below] -= lack / 2; placed[above] += lack / 2; }
    }
    const under = low - placed[order[0]];
    if (under > 0) placed[order[0]] += under;
    const over = placed[order[order.length - 1]] - high;
    if (over > 0) placed[order[order.length - 1]] -= over;
  }
  return placed;
}

// Mean over seeds with the band from lowest to highest seed, one line per arm, named where it ends.
// options: data (arm, step, mean, low, high), arms, share (percent axis), rules: arms shown -> lines {y, text}, domain.
function curveChart(width, { data, arms, share = true, rules = () => [], domain = null }) {
  const wide = width >= 420;
  const shown = arms.filter((arm) => data.some((point) => point.arm === arm.name));
  const points = data.filter((point) => shown.some((arm) => arm.name === point.arm));
  const lines = rules(shown);
  const top = Math.max(...points.map((point) => point.high), ...lines.map((line) => line.y), 1e-9);
  const bottom = share ? 0 : Math.min(0, ...points.map((point) => point.low));
  const [low, high] = domain ?? [bottom, share ? Math.min(1, 1.05 * top) : top];
  const of = (arm) => points.filter((point) => point.arm === arm.name);
  const ends = shown.map((arm) => ({ arm, end: of(arm).at(-1) }));
  const places = spread(ends.map(({ end }) => end.mean), (high - low) * 0.066, low, high);
  const steps = [...new Set(points.map((point) => point.step))].sort((a, b) => a - b);
  const format = share ? (value) => percent(value) : (value) => minus(value, 3);
  const said = steps.map((step) => ({
    step,
    title: [`step ${step}`, ...shown.map((arm) => {
      const point = points.find((each) => each.arm === arm.name && each.step === step);
      return `${arm.name}  ${point ? format(point.mean) : '–'}`;
    })].join('\n'),
  }));
  return draw({
    width,
    height: HEIGHT,
    marginRight: wide ? 86 : 14,
    marginBottom: 38,
    x: { label: 'training step →', labelAnchor: 'right', ticks: Math.min(6, steps.length), tickFormat: (x) => (Number.isInteger(x) ? String(x) : '') },
    y: { domain: [low, high], label: null, grid: true, ticks: 5, tickFormat: share ? (y) => percent(y, 0) : (y) => minus(y, 2) },
    marks: [
      Plot.ruleY(lines, { y: 'y', stroke: 'var(--quiet)', strokeDasharray: '3 3' }),
      ...shown.map((arm) => Plot.areaY(of(arm), { x: 'step', y1: 'low', y2: 'high', fill: colour(arm), fillOpacity: 0.13 })),
      ...shown.map((arm) => Plot.lineY(of(arm), {
        x: 'step', y: 'mean', stroke: colour(arm), strokeWidth: arm.role === 'treatment' ? 2.8 : 1.9, strokeDasharray: DASHES[arm.look] ?? null,
      })),
      Plot.text(lines, { x: () => steps[0], y: 'y', text: 'text', textAnchor: 'start', dx: 6, dy: -8, fill: 'var(--quiet)', ...HALO }),
      wide ? ends.map(({ arm, end }, place) => Plot.text([end], {
        x: 'step', y: places[place], text: () => arm.name, dx: 8, textAnchor: 'start', fill: colour(arm), fontWeight: 600, ...HALO,
      })) : null,
      Plot.ruleX(said, Plot.pointerX({ x: 'step', stroke: 'var(--quiet)' })),
      Plot.tip(said, Plot.pointerX({ x: 'step', y: high, title: 'title', preferredAnchor: 'top-left', ...TIP })),
    ],
  });
}
const HALO = { stroke: 'var(--card)', strokeWidth: 4, paintOrder: 'stroke' };
const TIP = { fill: 'var(--card)', fillOpacity: 0.94, stroke: 'var(--line)', lineHeight: 1.4 };
const DASHES = { 'control-0': '6 3', 'control-1': '2 2.5', 'control-2': '6 3 2 3', 'control-3': '9 3' };

// Drop of the hack rate against the reference, with its interval, and the thresholds of the first claim.
function dropChart(width, { arms, claim }) {
  const shown = arms.filter((arm) => arm.drop && arm.role !== 'base');
  const rows = shown.map((arm) => ({ name: arm.name, arm, ...arm.drop }));
  const low = Math.min(0, ...rows.map((row) => row.low ?? row.points));
  const high = Math.max(claim.supported_from, ...rows.map((row) => row.high ?? row.points));
  const bound = (text, textAnchor) => (x) => Plot.text(width < NARROW ? [] : [x], { x: (d) => d, text: () => `${text} ${x}`, frameAnchor: 'top', dy: -14, fill: 'var(--quiet)', textAnchor });
  return draw({
    width,
    height: 46 + 38 * rows.length,
    marginLeft: 96,
    marginRight: 46,
    marginTop: 30,
    marginBottom: 34,
    x: { domain: [low - 2, high + 2], label: 'points of hack rate below the reference →', labelAnchor: 'right', ticks: 6 },
    y: { domain: rows.map((row) => row.name), label: null, tickSize: 0 },
    marks: [
      Plot.ruleX([0], { stroke: 'var(--quiet)' }),
      Plot.ruleX([claim.falsified_below, claim.supported_from], { stroke: 'var(--quiet)', strokeDasharray: '3 3' }),
      bound('falsified below', 'end')(claim.falsified_below),
      bound('supported from', 'start')(claim.supported_from),
      ...rows.filter((row) => row.low !== null).map((row) => Plot.ruleY([row], { y: 'name', x1: 'low', x2: 'high', stroke: colour(row.arm), strokeWidth: row.arm.role === 'treatment' ? 4 : 2.5, strokeLinecap: 'round' })),
      ...rows.map((row) => Plot.dot([row], { y: 'name', x: 'points', r: row.arm.role === 'treatment' ? 6.5 : 5, fill: colour(row.arm), stroke: 'var(--card)', strokeWidth: 1.5 })),
      Plot.text(rows, { y: 'name', x: 'points', text: (row) => minus(row.points), dy: -14, fontWeight: 600, fill: 'var(--ink)' }),
    ],
  });
}

// Hack rate against pass rate: low and high is where one wants to be.
function planeChart(width, { arms, limits }) {
  const hack = Math.max(0.05, ...arms.flatMap((arm) => arm.runs.map((run) => run.hack_rate)));
  const pass = Math.max(0.05, limits.pass_min, ...arms.flatMap((arm) => arm.runs.map((run) => run.pass_rate)));
  const [right, top] = [1.12 * hack, 1.12 * pass];
  const front = paretoFront(arms.filter((arm) => arm.role !== 'base'));
  const staircase = front.flatMap((arm, place) => (place ? [{ x: arm.hack_rate, y: front[place - 1].pass_rate }, { x: arm.hack_rate, y: arm.pass_rate }] : [{ x: arm.hack_rate, y: arm.pass_rate }]));
  const runs = arms.flatMap((arm) => arm.runs.map((run) => ({ ...run, arm })));
  const height = Math.min(460, Math.max(300, 0.62 * width));
  const goal = limits.hack_max > 0 ? [{ x1: 0, x2: Math.min(limits.hack_max, right), y1: Math.max(0, limits.pass_min), y2: top }] : [];
  return draw({
    width,
    height,
    marginTop: 26, // room for the axis' name above the highest tick
    marginRight: 24,
    marginBottom: 40,
    x: { domain: [-0.012 * right, right], label: 'hack rate →', grid: true, tickFormat: (x) => percent(x, 0), ticks: 6 },
    y: { domain: [-0.012 * top, top], label: '↑ pass rate', labelOffset: 46, grid: true, tickFormat: (y) => percent(y, 0), ticks: 6 },
    marks: [
      Plot.rect(goal, { x1: 'x1', x2: 'x2', y1: 'y1', y2: 'y2', fill: 'var(--good)', fillOpacity: 0.09, stroke: 'var(--good)', strokeOpacity: 0.5, strokeDasharray: '3 3' }),
      Plot.text(goal, { x: 'x2', y: 'y2', text: () => 'what H1 asks for', textAnchor: 'end', lineAnchor: 'top', dx: -6, dy: 6, fill: 'var(--good)' }),
      Plot.line(staircase, { x: 'x', y: 'y', stroke: 'var(--quiet)', strokeDasharray: '2 3', strokeWidth: 1.4 }),
      ...arms.map((arm) => Plot.dot(runs.filter((run) => run.arm === arm), { x: 'hack_rate', y: 'pass_rate', r: 3, stroke: colour(arm), strokeOpacity: 0.75 })),
      ...arms.map((arm) => Plot.link([arm], { x1: arm.hack_rate - arm.hack_rate_sem, x2: arm.hack_rate + arm.hack_rate_sem, y1: arm.pass_rate, y2: arm.pass_rate, stroke: colour(arm), strokeWidth: 2 })),
      ...arms.map((arm) => Plot.link([arm], { x1: arm.hack_rate, x2: arm.hack_rate, y1: arm.pass_rate - arm.pass_rate_sem, y2: arm.pass_rate + arm.pass_rate_sem, stroke: colour(arm), strokeWidth: 2 })),
      ...arms.map((arm) => Plot.dot([arm], { x: 'hack_rate', y: 'pass_rate', r: 6.5, fill: colour(arm), stroke: 'var(--card)', strokeWidth: 1.5 })),
      ...arms.map((arm) => Plot.text([arm], {
        x: 'hack_rate', y: 'pass_rate', text: 'name', fill: colour(arm), fontWeight: 600, ...besides(arm, arms, right, top), ...HALO,
      })),
      Plot.tip(arms, Plot.pointer({
        x: 'hack_rate', y: 'pass_rate', ...TIP,
        title: (arm) => `${arm.name} (${arm.role})\nhack ${percent(arm.hack_rate)} ± ${percent(arm.hack_rate_sem)}\npass ${percent(arm.pass_rate)} ± ${percent(arm.pass_rate_sem)}\n${arm.seeds} seeds, ${count(arm.samples)} completions`,
      })),
    ],
  });
}

// Where an arm's name stands: above its dot, or below where a dot just above it is in the way.
function besides(arm, arms, right, top) {
  const crowded = arms.some((other) => other !== arm && Math.abs(other.hack_rate - arm.hack_rate) < 0.16 * right
    && other.pass_rate >= arm.pass_rate && other.pass_rate - arm.pass_rate < 0.12 * top && (other.pass_rate > arm.pass_rate || other.name < arm.name));
  const share = arm.hack_rate / right;
  const [textAnchor, dx] = share < 0.06 ? ['start', -6] : share > 0.9 ? ['end', 6] : ['middle', 0];
  return { textAnchor, dx, dy: crowded ? 19 : -17 };
}

// Arms that no other beats in both rates, by rising hack rate.
function paretoFront(arms) {
  return [...arms].sort((a, b) => a.hack_rate - b.hack_rate || b.pass_rate - a.pass_rate)
    .filter((arm, place, sorted) => sorted.slice(0, place).every((other) => other.pass_rate < arm.pass_rate));
}

// Shares of hack types over training, stacked; one panel per arm on one scale.
function typesChart(width, { data, arm, kinds, top }) {
  const points = data.filter((point) => point.arm === arm.name);
  return draw({
    width,
    height: 190,
    marginTop: 8,
    marginBottom: 32,
    x: { label: null, ticks: 5 },
    y: { domain: [0, top], label: null, grid: true, ticks: 4, tickFormat: (y) => percent(y, 0) },
    marks: [
      Plot.areaY(points, Plot.stackY({ order: kinds }, { x: 'step', y: 'share', z: 'hack_type', fill: (point) => `var(--kind-${kinds.indexOf(point.hack_type) % 9})` })),
      Plot.ruleY([0], { stroke: 'var(--quiet)' }),
    ],
  });
}

// Seconds of one step by phase, mean over an arm's runs.
function costChart(width, { rows, phases }) {
  const arms = [...new Set(rows.map((row) => row.arm))];
  return draw({
    width,
    height: 54 + 30 * arms.length,
    marginLeft: 96,
    marginBottom: 34,
    x: { label: 'seconds per step →', grid: true },
    y: { domain: arms, label: null, tickSize: 0 },
    marks: [
      Plot.barX(rows, Plot.stackX({ order: phases }, { y: 'arm', x: 'seconds', z: 'phase', fill: (row) => `var(--kind-${phases.indexOf(row.phase) % 9})`, insetTop: 3, insetBottom: 3 })),
      Plot.tip(rows, Plot.pointer(Plot.stackX({ order: phases }, { y: 'arm', x: 'seconds', z: 'phase', title: (row) => `${row.arm}: ${row.phase}\n${row.seconds.toFixed(2)} s per step`, ...TIP }))),
    ],
  });
}
