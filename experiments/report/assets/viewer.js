// The token viewer: text coloured by source, and every round as the tree that was drafted.
// Everything that comes from data goes through textContent: nothing is parsed as HTML.
'use strict';
(() => {
  if (!DATA.traces.length) return;
  const find = (id) => document.getElementById(id);
  const [tip, text, panel, slider] = [find('tip'), find('trace-text'), find('trace-round'), find('step-slider')];
  let trace = null, current = 0, spans = [];

  function element(name, style, content) {
    const made = document.createElement(name);
    if (style) made.className = style;
    if (content !== undefined) made.textContent = content;
    return made;
  }

  // Line ends and spaces at the edge of a token would not be seen.
  const visible = (piece) => (piece === '' ? '(part of a character)' : piece.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/ /g, '·'));
  const short = (piece, size) => (piece.length > size ? piece.slice(0, size - 1) + '…' : piece);
  const percent = (p) => (p >= 0.0995 ? (100 * p).toFixed(0) : (100 * p).toPrecision(2)) + ' %';
  const fate = (node) => (node.accepted ? 'accepted' : node.reached ? 'rejected' : 'unreached');
  const FATES = { accepted: 'accepted', rejected: 'rejected', unreached: 'not reached' };
  const SOURCES = {
    accepted: 'drafted and accepted', recovered: 'recovered: the target’s, in place of a rejected draft',
    bonus: 'bonus: the target’s, after a fully accepted draft', plain: 'the target’s; nothing was drafted',
  };

  // What the target said itself at the end of a round; nothing where a limit cut it off.
  function last(round) {
    const end = round.emitted[round.emitted.length - 1];
    return end && end[1] !== 'accepted' ? end : null;
  }

  function place(anchor) {
    const box = anchor.getClientRects()[0] || anchor.getBoundingClientRect();
    tip.style.display = 'block';
    const left = Math.min(box.left, window.innerWidth - tip.offsetWidth - 12);
    let top = box.bottom + 8;
    if (top + tip.offsetHeight > window.innerHeight - 8) top = box.top - tip.offsetHeight - 8;
    tip.style.left = Math.max(left, 12) + 'px';
    tip.style.top = Math.max(top, 8) + 'px';
  }
  const hide = () => { tip.style.display = 'none'; };

  function rowOf(node, state) {
    const row = element('tr', state || fate(node));
    row.append(element('td', 'piece', visible(node.text)));
    for (const p of [node.target, node.draft, node.accept]) row.append(element('td', '', percent(p)));
    row.append(element('td', 'fate', FATES[fate(node)]));
    return row;
  }
  function tableOf(nodes) {
    const table = element('table');
    const head = element('tr');
    for (const title of ['token', 'target prob.', 'draft prob.', 'accept prob.', '']) head.append(element('th', '', title));
    table.append(head, ...nodes.map((node) => rowOf(node)));
    return table;
  }

  // The tooltip of one emitted token: where it came from, and the probabilities that decided.
  function describe(round, number, index) {
    const [piece, source] = round.emitted[index];
    const box = element('div');
    box.append(element('div', 'piece ' + source, visible(piece)), element('div', '', `round ${number}: ${SOURCES[source]}`));
    const kept = round.nodes.filter((node) => node.accepted);
    if (source === 'accepted') box.append(tableOf([kept[index]]));
    const refused = source === 'recovered' ? round.nodes.filter((node) => fate(node) === 'rejected') : [];
    if (refused.length) box.append(element('div', 'muted', 'rejected here:'), tableOf(refused.slice(0, 8)));
    return box;
  }

  // Depth to the right, siblings below each other; leaves take a line each.
  function layout(round) {
    const children = new Map([[0, []]]);
    for (const node of round.nodes) {
      children.set(node.number, []);
      if (children.has(node.parent)) children.get(node.parent).push(node);
    }
    const places = new Map();
    let lines = 0;
    (function walk(number, depth) {
      const below = children.get(number).map((node) => walk(node.number, depth + 1));
      const line = below.length ? below[0] : lines++;
      places.set(number, { depth, line });
      return line;
    })(0, 0);
    const depth = Math.max(...[...places.values()].map((at) => at.depth));
    return { places, lines: Math.max(lines, 1), depth };
  }

  function boxAt(at, style, piece, note, tall) {
    const group = shape('g', { class: 'node ' + style, transform: `translate(${at.x},${at.y})` });
    group.append(shape('rect', { width: 92, height: tall ? 34 : 20, rx: 5 }));
    group.append(shape('text', { x: 46, y: 14, 'text-anchor': 'middle' }, short(visible(piece), 12)));
    if (tall && note) group.append(shape('text', { x: 46, y: 28, 'text-anchor': 'middle', class: 'note' }, note));
    return group;
  }

  function treeOf(round) {
    const { places, lines, depth } = layout(round);
    // With many branches the probabilities are left to the table and the pointer.
    const tall = lines <= 12;
    const end = last(round);
    const stepX = 112, stepY = tall ? 44 : 25;
    const at = (number) => ({ x: 4 + places.get(number).depth * stepX, y: 4 + places.get(number).line * stepY });
    const kept = round.nodes.filter((node) => node.accepted);
    const tail = kept.length ? kept[kept.length - 1].number : 0;
    const columns = depth + 1 + (end ? 1 : 0);
    const rows = lines + (end && depth > places.get(tail).depth ? 1 : 0);
    const size = { width: columns * stepX, height: rows * stepY + 8 };
    const svg = shape('svg', { class: 'tree', viewBox: `0 0 ${size.width} ${size.height}`, width: size.width, height: size.height, role: 'img' });
    const edge = (from, to, style) => svg.append(shape('path', { class: 'edge ' + style, d: `M${from.x + 92},${from.y + 10} C${from.x + 102},${from.y + 10} ${to.x - 10},${to.y + 10} ${to.x},${to.y + 10}` }));
    for (const node of round.nodes) if (places.has(node.number)) edge(at(node.parent), at(node.number), fate(node));
    svg.append(boxAt(at(0), 'root', round.before, 'before', tall));
    for (const node of round.nodes) {
      if (!places.has(node.number)) continue;
      const group = boxAt(at(node.number), fate(node), node.text, `${percent(node.target)} / ${percent(node.draft)}`, tall);
      group.append(shape('title', {}, `${visible(node.text)}: target ${percent(node.target)}, draft ${percent(node.draft)}, accepted with ${percent(node.accept)}, ${FATES[fate(node)]}`));
      svg.append(group);
    }
    if (end) {
      const from = at(tail);
      // After the last accepted node, below the others where that place is taken.
      const blocked = depth > places.get(tail).depth;
      const to = { x: from.x + stepX, y: blocked ? 4 + (rows - 1) * stepY : from.y };
      edge(from, to, end[1]);
      svg.append(boxAt(to, end[1], end[0], end[1], tall));
    }
    return svg;
  }

  function showRound() {
    const count = trace.rounds.length;
    find('step-label').textContent = current ? `round ${current} of ${count}` : `${count} rounds`;
    slider.value = current;
    spans.forEach((span, index) => {
      span.classList.toggle('current', index + 1 === current);
      span.classList.toggle('future', current > 0 && index + 1 > current);
    });
    for (const [id, off] of [['step-first', !current], ['step-back', !current], ['step-next', current === count], ['step-last', current === count]]) find(id).disabled = off;
    if (!current) {
      panel.replaceChildren();
      // Long prompts stand above: what was generated comes into sight, below the prompt's last lines.
      if (spans.length) text.scrollTop += spans[0].getBoundingClientRect().top - text.getBoundingClientRect().top - 60;
      return;
    }
    const round = trace.rounds[current - 1];
    const kept = round.nodes.filter((node) => node.accepted).length;
    const end = last(round);
    const said = round.nodes.length ? `${kept} of ${round.nodes.length} drafted tokens accepted` : 'nothing drafted';
    const head = element('p', 'muted', `${said}${end ? `, then ${end[1] === 'plain' ? 'the target’s own' : end[1]} ${visible(end[0])}` : ', and the output ended here'}. Under each token: target / draft probability.`);
    const scroll = element('div', 'scroll');
    scroll.append(treeOf(round));
    panel.replaceChildren(head, scroll);
    if (round.nodes.length) {
      const more = element('details');
      const inner = element('div', 'scroll');
      inner.append(tableOf(round.nodes));
      more.append(element('summary', '', 'as a table'), inner);
      panel.append(more);
    }
    const span = spans[current - 1], view = text.getBoundingClientRect(), box = span.getBoundingClientRect();
    if (box.top < view.top || box.bottom > view.bottom) text.scrollTop += box.top - view.top - view.height / 3;
  }
  const step = (to) => { current = Math.min(Math.max(to, 0), trace.rounds.length); hide(); showRound(); };

  function show(index) {
    trace = DATA.traces[index];
    current = 0;
    spans = trace.rounds.map((round, number) => {
      const span = element('span', 'round');
      round.emitted.forEach(([piece, source], place_) => {
        if (source !== 'accepted') {
          const refused = round.nodes.filter((node) => !node.accepted).map((node) => node.text).join('').replace(/\n/g, '⏎');
          if (refused) span.append(element('span', 'rejected', refused));
        }
        const token = element('span', 'token ' + source, piece);
        token.addEventListener('pointerenter', () => { tip.replaceChildren(describe(round, number + 1, place_)); place(token); });
        token.addEventListener('pointerleave', hide);
        span.append(token);
      });
      span.addEventListener('click', () => step(number + 1));
      return span;
    });
    text.replaceChildren(element('span', 'prompt', trace.prompt), ...spans);
    slider.max = trace.rounds.length;
    const counts = {};
    for (const round of trace.rounds) for (const [, source] of round.emitted) counts[source] = (counts[source] || 0) + 1;
    const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
    const parts = Object.entries(counts).map(([source, count]) => `${count} ${source}`).join(', ');
    find('trace-summary').textContent = `${total} tokens in ${trace.rounds.length} target passes, ${(total / Math.max(trace.rounds.length, 1)).toFixed(2)} a round: ${parts}.`;
    showRound();
  }

  const tabs = find('trace-tabs');
  if (DATA.traces.length > 6) {
    const chooser = element('select');
    chooser.setAttribute('aria-label', 'which run');
    DATA.traces.forEach((each, index) => { const option = element('option', '', each.name); option.value = index; chooser.append(option); });
    chooser.addEventListener('change', () => show(Number(chooser.value)));
    tabs.append(chooser);
  } else {
    DATA.traces.forEach((each, index) => {
      const tab = element('button', '', each.name);
      tab.addEventListener('click', () => { show(index); press(index); });
      tabs.append(tab);
    });
  }
  const press = (index) => [...tabs.querySelectorAll('button')].forEach((tab, i) => tab.setAttribute('aria-pressed', i === index));
  find('rejected-toggle').addEventListener('change', (event) => text.classList.toggle('show-rejected', event.target.checked));
  find('step-first').addEventListener('click', () => step(0));
  find('step-back').addEventListener('click', () => step(current - 1));
  find('step-next').addEventListener('click', () => step(current + 1));
  find('step-last').addEventListener('click', () => step(trace.rounds.length));
  slider.addEventListener('input', () => step(Number(slider.value)));
  text.addEventListener('keydown', (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) { event.preventDefault(); step(current + move); }
  });
  show(0);
  press(0);
})();
