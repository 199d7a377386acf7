// Draws the plots of the page: lines with intervals, bars and stacked bars with uPlot, horizontal
// bars as SVG. Colours come from the style sheet, so that a plot follows light and dark.
'use strict';
const DATA = JSON.parse(document.getElementById('data').textContent);

// An element of an SVG.
function shape(name, attributes, content) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (content !== undefined) element.textContent = content;
  return element;
}

(() => {
  const colours = 8;
  // A canvas knows no light-dark(): an element that has the colour says what it comes to.
  const probe = document.createElement('i');
  probe.hidden = true;
  document.body.append(probe);
  const css = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
  const colourOf = (series) => css(series.colour === null ? '--text' : `--c${series.colour % colours}`);
  const number = (value) => {
    if (value === null || value === undefined) return '–';
    const size = Math.abs(value);
    return size >= 1000 ? value.toFixed(0) : size >= 100 ? value.toFixed(1) : size >= 1 ? value.toFixed(2) : value.toPrecision(3);
  };
  // The same without zeros at the end of a fraction.
  const tick = (value) => number(value).replace(/(\.\d*?)0+$/, '$1').replace(/\.$/, '');

  // Stacked bars are drawn from the top: each is its own value and those below it.
  function stacked(plot) {
    const parts = plot.series.filter((series) => series.colour !== null);
    const sums = parts.map((_, k) => plot.x.values.map((_, i) => {
      let sum = 0;
      for (let j = 0; j <= k; j++) sum += parts[j].values[i] || 0;
      return sum;
    }));
    return sums.reverse().concat(plot.series.filter((series) => series.colour === null).map((series) => series.values));
  }

  function range(plot, order) {
    const seen = plot.reference === null ? [] : [plot.reference];
    order.forEach((series, i) => {
      if (!series.shown) return;
      const rows = plot.kind === 'stack' ? [stacked(plot)[i]] : [series.values, series.low || [], series.high || []];
      for (const row of rows) for (const value of row) if (value !== null && value !== undefined) seen.push(value);
    });
    if (!seen.length) return [0, 1];
    let low = Math.min(...seen), high = Math.max(...seen);
    if (plot.kind === 'stack' || plot.kind === 'bars' || (low >= 0 && low < 0.5 * high)) low = Math.min(low, 0);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low === 0 ? 0 : low - room, high + room];
  }

  function whiskers(chart, plot, order) {
    const context = chart.ctx;
    context.save();
    context.lineWidth = devicePixelRatio;
    order.forEach((series, i) => {
      if (!series.shown || !series.low) return;
      context.strokeStyle = colourOf(series);
      plot.x.values.forEach((x, j) => {
        if (series.low[j] === null || series.low[j] === undefined) return;
        const at = chart.valToPos(x, 'x', true);
        const ends = [series.low[j], series.high[j]].map((y) => chart.valToPos(y, 'y', true));
        const half = 4 * devicePixelRatio;
        context.beginPath();
        context.moveTo(at, ends[0]);
        context.lineTo(at, ends[1]);
        for (const end of ends) { context.moveTo(at - half, end); context.lineTo(at + half, end); }
        context.stroke();
      });
    });
    if (plot.reference !== null) {
      const y = chart.valToPos(plot.reference, 'y', true);
      context.strokeStyle = css('--muted');
      context.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
      context.beginPath();
      context.moveTo(chart.bbox.left, y);
      context.lineTo(chart.bbox.left + chart.bbox.width, y);
      context.stroke();
    }
    context.restore();
  }

  // Bars of all shown series beside each other, over each value of x.
  function grouped(chart, plot) {
    if (plot.kind !== 'bars') return;
    const shown = plot.series.filter((series) => series.shown);
    const [context, base] = [chart.ctx, chart.valToPos(0, 'y', true)];
    const step = chart.valToPos(1, 'x', true) - chart.valToPos(0, 'x', true);
    const wide = (0.8 * step) / Math.max(shown.length, 1);
    context.save();
    shown.forEach((series, k) => {
      context.fillStyle = colourOf(series);
      plot.x.values.forEach((x, j) => {
        if (series.values[j] === null) return;
        const left = chart.valToPos(x, 'x', true) - 0.4 * step + k * wide;
        const top = chart.valToPos(series.values[j], 'y', true);
        context.fillRect(left, top, Math.max(wide - devicePixelRatio, 1), base - top);
      });
    });
    context.restore();
  }

  // The series in the order in which they are drawn.
  function drawn(plot) {
    if (plot.kind !== 'stack') return plot.series;
    const parts = plot.series.filter((series) => series.colour !== null).reverse();
    return parts.concat(plot.series.filter((series) => series.colour === null));
  }

  function options(plot, order, width, readout) {
    const axis = { stroke: css('--muted'), grid: { stroke: css('--rule'), width: 1 }, ticks: { show: false }, font: '12px system-ui, sans-serif', labelFont: '12px system-ui, sans-serif' };
    const names = plot.x.names;
    const few = plot.x.values.length <= 12;
    // On a narrow screen the names of categories would run into each other.
    const label = (value) => (names && (names.some((name) => name.length > 8) || width < 500) ? String(value + 1) : names ? names[value] : tick(value));
    const padding = plot.x.values.length > 1 ? 0.06 * (Math.max(...plot.x.values) - Math.min(...plot.x.values)) : 0.5;
    const bars = uPlot.paths.bars({ size: [0.6, 48] });
    return {
      width, height: Math.min(320, Math.max(220, width * 0.42)),
      legend: { show: false },
      cursor: { points: { size: 8 }, y: false, focus: { prox: 24 } },
      focus: { alpha: 0.35 },
      scales: {
        x: { time: false, range: (_, low, high) => (plot.kind !== 'lines' ? [low - 0.7, high + 0.7] : [low - padding, high + padding]) },
        y: { range: () => range(plot, order) },
      },
      axes: [
        Object.assign({ label: plot.x.label, labelSize: 20, size: 30, space: 44, values: (_, ticks) => ticks.map((value) => (few && !plot.x.values.includes(value) ? '' : names && names[value] === undefined ? '' : label(value))), splits: few ? () => plot.x.values : undefined }, axis),
        Object.assign({ label: plot.y.label, labelSize: 22, size: 52, values: (_, ticks) => ticks.map((value) => tick(value) + plot.y.unit) }, axis),
      ],
      series: [{}].concat(order.map((series) => {
        const colour = colourOf(series);
        const made = { label: series.name, stroke: colour, width: 2, show: series.shown, spanGaps: true, dash: series.dashed ? [6, 5] : undefined, points: { size: series.dashed ? 4 : 7, fill: colour, show: plot.x.values.length <= 24 } };
        if (plot.kind === 'stack') {
          if (series.colour === null) Object.assign(made, { paths: () => null, points: { show: true, size: 9, fill: colour } });
          else Object.assign(made, { fill: colour, width: 0, paths: bars, points: { show: false } });
        }
        if (plot.kind === 'bars') Object.assign(made, { paths: () => null, points: { show: false } });
        return made;
      })),
      hooks: { draw: [(chart) => grouped(chart, plot), (chart) => whiskers(chart, plot, order)], setCursor: [(chart) => readout(chart.cursor.idx)] },
    };
  }

  function legend(plot, order, redraw) {
    const box = document.createElement('div');
    box.className = 'keys';
    const where = document.createElement('span');
    where.className = 'where';
    const cells = plot.series.map((series) => {
      const key = document.createElement('button');
      key.setAttribute('aria-pressed', series.shown);
      const mark = document.createElement('i');
      mark.style.setProperty('--key', series.colour === null ? 'var(--text)' : `var(--c${series.colour % colours})`);
      mark.className = series.dashed ? 'dashed' : '';
      const value = document.createElement('b');
      key.append(mark, series.name, value);
      key.addEventListener('click', () => {
        series.shown = !series.shown;
        key.setAttribute('aria-pressed', series.shown);
        redraw();
      });
      box.append(key);
      return value;
    });
    const readout = (index) => {
      const here = index === null || index === undefined ? null : index;
      const name = here === null ? '' : plot.x.names ? `${plot.x.label} ${here + 1}: ${plot.x.names[here]}` : `${plot.x.label}: ${plot.x.values[here]}`;
      where.textContent = name;
      plot.series.forEach((series, i) => {
        let text = '';
        if (here !== null && series.shown && series.values[here] !== null) {
          text = number(series.values[here]) + plot.y.unit;
          if (series.low && series.low[here] !== null) text += ` (${number(series.low[here])} … ${number(series.high[here])})`;
        }
        cells[i].textContent = text;
      });
    };
    return { box, where, readout };
  }

  // Horizontal bars in a group per category, with whiskers, and a line at the reference. The
  // picture is as wide as its holder, so that letters keep their size; on a narrow one names stand
  // above their bars. A pointer that rests on a bar is told its name.
  function horizontal(plot, room) {
    const width = Math.min(Math.max(room, 240), 860), narrow = width < 560;
    const [left, height, gap, above] = [narrow ? 2 : 220, 15, 14, narrow ? 17 : 0];
    const { ticks, unit } = plot.y;
    const scale = (width - left - 60) / ticks[ticks.length - 1];
    const fixed = (value) => value.toFixed(1);
    const at = (value) => left + value * scale;
    const text = (x, y, content, style) => shape('text', { x: fixed(x), y: fixed(y), class: style }, content);
    const line = (x1, y1, x2, y2, style) => shape('line', { x1: fixed(x1), y1: fixed(y1), x2: fixed(x2), y2: fixed(y2), class: style });
    const given = (values, index) => values !== null && values[index] !== null;
    const groups = [];
    let y = 10;
    plot.x.names.forEach((name, i) => {
      const bars = plot.series.filter((series) => given(series.values, i));
      if (narrow) groups.push(text(left, y + 12, name, 'label'));
      else groups.push(text(left - 12, y + (height * Math.max(bars.length, 1)) / 2 + 4, name, 'label end'));
      y += above;
      for (const series of bars) {
        const value = series.values[i];
        const group = shape('g', {});
        group.append(
          shape('title', {}, `${name}: ${series.name}`),
          shape('rect', { class: series.colour, x: left, y: fixed(y), rx: 2, width: fixed(value * scale), height: height - 2 }),
        );
        let end = at(value);
        if (given(series.low, i) && given(series.high, i)) {
          const centre = y + height / 2 - 1;
          group.append(line(at(series.low[i]), centre, at(series.high[i]), centre, 'whisker'));
          end = Math.max(end, at(series.high[i]));
        }
        group.append(text(end + 6, y + height - 4, value.toFixed(2) + unit, 'value'));
        groups.push(group);
        y += height;
      }
      y += bars.length ? gap : height + gap;
    });
    const bottom = y - gap + 6;
    const tall = (bottom + 24).toFixed(0);
    const svg = shape('svg', { class: 'chart', viewBox: `0 0 ${width} ${tall}`, width, height: tall, role: 'img', 'aria-label': plot.title });
    svg.append(
      ...ticks.map((value) => line(at(value), 4, at(value), bottom, 'grid')),
      line(at(plot.reference), 4, at(plot.reference), bottom, 'reference'),
      ...groups,
      ...ticks.map((value) => text(at(value), bottom + 16, value + unit, 'tick middle')),
    );
    const keys = document.createElement('div');
    keys.className = 'legend';
    for (const series of plot.series) {
      const key = document.createElement('span');
      const mark = document.createElement('i');
      mark.className = series.colour;
      key.append(mark, series.low === null ? series.name : `${series.name}, with its interval`);
      keys.append(key);
    }
    return [keys, svg];
  }

  // Draws, and draws again whenever the holder has another width.
  function follow(holder, redraw) {
    let width = holder.clientWidth;
    redraw();
    new ResizeObserver(() => {
      if (holder.clientWidth !== width) { width = holder.clientWidth; redraw(); }
    }).observe(holder);
  }

  function draw(holder, plot) {
    if (plot.kind === 'hbars') {
      follow(holder, () => holder.replaceChildren(...horizontal(plot, holder.clientWidth)));
      return;
    }
    const order = drawn(plot);
    const values = [plot.x.values].concat(plot.kind === 'stack' ? stacked(plot) : plot.series.map((series) => series.values));
    const canvas = document.createElement('div');
    let chart = null;
    const redraw = () => {
      if (chart) chart.destroy();
      chart = new uPlot(options(plot, order, Math.max(holder.clientWidth, 200), key.readout), values, canvas);
    };
    const key = legend(plot, order, redraw);
    holder.replaceChildren(canvas, key.where, key.box);
    follow(holder, redraw);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
  }

  // A plot is drawn when it comes near the screen: a page with many of them opens at once.
  const plots = new Map(DATA.plots.map((plot) => [plot.id, plot]));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      draw(entry.target, plots.get(entry.target.dataset.plot));
    }
  }, { rootMargin: '600px' });
  for (const holder of document.querySelectorAll('[data-plot]')) observer.observe(holder);
  // Paper has no near and far.
  window.addEventListener('beforeprint', () => {
    for (const holder of document.querySelectorAll('[data-plot]:empty')) draw(holder, plots.get(holder.dataset.plot));
  });
})();
