// The trace view: text coloured by source; a round under the pointer shows what was drafted.
// Everything that comes from data goes through textContent: nothing is parsed as HTML.
'use strict';
const traces = JSON.parse(document.getElementById('traces').textContent);
const view = document.getElementById('trace-view');
const tip = document.getElementById('tip');
const tabs = document.getElementById('trace-tabs');

function element(name, style, text) {
  const made = document.createElement(name);
  if (style) made.className = style;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Line ends and spaces at the edge of a token would not be seen.
function visible(text) {
  return text === '' ? '(part of a character)' : text.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/ /g, '·');
}

const percent = (p) => (p >= 0.0995 ? (100 * p).toFixed(0) : (100 * p).toPrecision(2)) + ' %';

function describe(round, number) {
  const box = element('div');
  const kept = round.nodes.filter((node) => node.accepted).length;
  const last = round.emitted.length ? round.emitted[round.emitted.length - 1] : ['', 'plain'];
  const after = last[1] === 'accepted' ? 'the output ended here' : last[1] + ' ' + visible(last[0]);
  const summary = round.nodes.length
    ? `Round ${number}: ${kept} of ${round.nodes.length} drafted tokens accepted, then ${after}`
    : `Round ${number}: nothing drafted; the target says ${visible(last[0])}`;
  box.append(element('div', '', summary));
  if (!round.nodes.length) return box;
  const table = element('table');
  const head = element('tr');
  for (const title of ['draft', 'target prob.', 'draft prob.', 'accept prob.', '']) {
    head.append(element('th', '', title));
  }
  table.append(head);
  for (const node of round.nodes) {
    const row = element('tr');
    row.append(element('td', 'piece', visible(node.text)));
    for (const p of [node.target, node.draft, node.accept]) row.append(element('td', '', percent(p)));
    const fate = node.accepted ? ['yes', 'kept'] : node.reached ? ['no', 'rejected'] : ['na', 'not reached'];
    row.append(element('td', ...fate));
    table.append(row);
  }
  box.append(table);
  return box;
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

function show(index) {
  const trace = traces[index];
  const text = element('pre', 'trace');
  text.append(element('span', 'prompt', trace.prompt));
  trace.rounds.forEach((round, number) => {
    const span = element('span', 'round');
    span.tabIndex = 0;
    for (const [piece, source] of round.emitted) {
      if (source !== 'accepted') {
        const rejected = round.nodes.filter((node) => !node.accepted).map((node) => node.text).join('').replace(/\n/g, '⏎');
        if (rejected) span.append(element('span', 'rejected', rejected));
      }
      span.append(element('span', 'token ' + source, piece));
    }
    const open = () => { tip.replaceChildren(describe(round, number + 1)); place(span); };
    span.addEventListener('pointerenter', open);
    span.addEventListener('focus', open);
    span.addEventListener('pointerleave', () => { tip.style.display = 'none'; });
    span.addEventListener('blur', () => { tip.style.display = 'none'; });
    text.append(span);
  });
  view.replaceChildren(element('p', 'muted', trace.summary), text);
  [...tabs.children].forEach((tab, i) => tab.setAttribute('aria-pressed', i === index));
}

traces.forEach((trace, index) => {
  const tab = element('button', '', trace.name);
  tab.addEventListener('click', () => show(index));
  tabs.append(tab);
});
const toggle = document.getElementById('rejected-toggle');
toggle.addEventListener('change', () => view.classList.toggle('show-rejected', toggle.checked));
if (traces.length) show(0);
