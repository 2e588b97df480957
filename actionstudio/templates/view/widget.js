// The verifier in a notebook or an app: list, filters, decisions, audit, live. What it does is a step, sent to Python; what it shows is the state that comes back.
const DECISIONS = {y: 'keep', x: 'remove', e: 'edit', s: 'second_look'};
const named = name => name.replace('_', ' ');
const labelled = (text, node) => el('label', '', text + ' ', node);
const input = (label, act, type = 'text') => {
  const node = el('input');
  node.type = type;
  node.setAttribute('aria-label', label);
  if (type === 'text' || type === 'search') node.placeholder = label;
  node.autocomplete = 'off';
  node.spellcheck = false;
  node.addEventListener('change', act);
  return node;
};

const render = ({model, el: host}) => {
  const root = el('div', 'actionstudio verifier'), bar = el('div', 'bar'), side = el('div', 'side'), filters = el('div', 'filters'), list = el('ol', 'list'), record = el('section', 'record'),
    live = el('div', 'live'), verdict = el('div', 'verdict'), alarm = el('p', 'alarm'), editor = el('div', 'editor'), help = el('p', 'help');
  const step = (name, how = {}) => model.send({step: name, how});
  const view = recordView(record);
  let state = model.get('state');
  root.tabIndex = 0;
  root.setAttribute('data-lm-suppress-shortcuts', 'true');  // JupyterLab keeps its keys to itself inside
  root.style.height = `${model.get('height')}px`;
  list.setAttribute('role', 'listbox');
  list.setAttribute('aria-label', 'Records');
  alarm.setAttribute('role', 'alert');
  filters.hidden = editor.hidden = help.hidden = true;
  record.hidden = true;

  // The bar
  const search = input('search id and question (/)', () => step('filter', {search: search.value}), 'search');
  const sort = el('select'), who = input('reviewer (w)', () => step('reviewer', {name: who.value}));
  sort.setAttribute('aria-label', 'Sort by');
  for (const [value, text] of [['', 'by id'], ...['-tokens', 'tokens', '-score', 'score', '-messages', '-calls', '-trained', '-bytes', 'source', 'fate'].map(v => [v, v[0] === '-' ? `${v.slice(1)}, most first` : v])]) {
    const o = el('option', '', text); o.value = value; sort.append(o);
  }
  sort.addEventListener('change', () => step('sort', {by: sort.value}));
  const earlier = button('← ,', 'Earlier page (,)', () => step('turn', {to: state.page - 1})), later = button('. →', 'Later page (.)', () => step('turn', {to: state.page + 1}));
  const filterer = button('f Filters', 'Show or hide the filters (f)', () => { filters.hidden = !filters.hidden; if (!filters.hidden) { const first = filters.querySelector('summary, input'); if (first) first.focus(); } });
  const lively = button('v Live', 'What training sees now (v)', () => step('live', {on: !state.live})), audits = button('Audit', 'Read a sample without the verdicts', () => step(state.audit ? 'leave' : 'audit'));
  const helper = button('?', 'Keys (?)', () => { help.hidden = !help.hidden; });
  const count = el('span', 'count');
  count.setAttribute('role', 'status');
  bar.append(search, filterer, labelled('sort', sort), count, earlier, later, audits, lively, who, helper);
  help.textContent = `j k record · , . page · / search · f filters · y keep · x remove · e edit · s second look · u undo · t note · w reviewer · v live · ${view.help} · Esc leaves a field`;

  // Decisions
  const note = input('note (t)', () => {}), stands = el('span', 'stands'), decisions = {};
  const decide = (decision, more = {}) => step('decide', {decision, note: note.value, ...more});
  for (const [key, name] of Object.entries(DECISIONS)) decisions[name] = button(`${key} ${named(name)}`, `${named(name)} (${key})`, () => name === 'edit' ? edit() : decide(name));
  const undo = button('u undo', 'Take back the last decision (u)', () => step('undo')), items = el('span', 'items');
  verdict.append(...Object.values(decisions), undo, note, items, stands);
  const edit = () => {
    if (state.open === null || state.audit) return;
    const text = el('textarea');
    text.value = model.get('record').json || '';
    text.setAttribute('aria-label', 'The record as JSON');
    const save = () => { decide('edit', {record: text.value}); close(); }, close = () => { editor.hidden = true; root.focus(); };
    text.addEventListener('keydown', e => { if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) save(); });
    editor.replaceChildren(el('p', '', 'Edit the record. Ctrl+Enter keeps the edit; Esc leaves without it. '), text, el('p', '', button('keep the edit', 'Ctrl+Enter', save), ' ', button('leave', 'Esc', close)));
    editor.hidden = false;
    text.focus();
  };

  const hasFocus = () => { const n = root.ownerDocument.activeElement; return root.contains(n) ? n.dataset.key : null; };
  const drawFilters = () => {
    const focus = hasFocus(), open = new Set([...filters.querySelectorAll('details[open]')].map(d => d.dataset.name)), out = [];
    for (const [facet, counts] of Object.entries(state.counts)) {
      const chosen = state.filters[facet] || [], names = Object.keys(counts);
      if (!names.length && !chosen.length) continue;
      const box = el('details', '', el('summary', '', `${facet}${chosen.length ? `: ${chosen.length} chosen` : ''}`));
      box.dataset.name = facet;
      box.firstChild.dataset.key = facet;
      box.open = open.has(facet) || chosen.length > 0;
      names.forEach((name, k) => {
        const value = state.values[facet][k], tick = input(`${facet}: ${plain(name)}`, () => step('filter', {[facet]: tick.checked ? [...chosen, value] : chosen.filter(v => v !== value)}), 'checkbox');
        tick.checked = chosen.includes(value);
        tick.dataset.key = `${facet}/${value}`;
        box.append(el('label', '', tick, ' ', say(el('span'), name || 'none'), el('small', '', ` ${number(counts[name])}`)));
      });
      out.push(box);
    }
    const ranges = el('details', '', el('summary', '', 'numbers'));
    ranges.dataset.name = 'numbers';
    ranges.open = open.has('numbers');
    for (const name of state.audit ? [] : state.numbers) {
      const now = state.filters[name] || [null, null], ends = [0, 1].map(k => {
        const end = input(`${name} ${k ? 'at most' : 'at least'}`, () => step('filter', {[name]: ends.map(x => x.value === '' ? null : +x.value)}), 'number');
        end.value = now[k] ?? '';
        end.dataset.key = `${name}/${k}`;
        return end;
      });
      ranges.append(el('label', '', el('span', '', name === 'tokens' ? 'length (tokens)' : name === 'score' ? 'critic score' : name), ends[0], ' to ', ends[1]));
    }
    out.push(ranges, button('clear all filters', 'Show every record', () => step('filter', Object.fromEntries([...Object.keys(state.counts), ...state.numbers, 'search'].map(k => [k, k === 'search' ? '' : []])))));
    filters.replaceChildren(...out);
    if (focus) { const again = [...filters.querySelectorAll('[data-key]')].find(n => n.dataset.key === focus); if (again) again.focus(); }
  };

  const row = r => {
    const node = el('li', '', say(el('b'), r.name));
    node.setAttribute('role', 'option');
    node.setAttribute('aria-selected', r.row === state.open);
    node.dataset.row = r.row;
    if (r.fate !== undefined) node.append(say(el('small'), `${r.source || 'unknown source'} · ${r.fate}`), el('small', '', [`${number(r.messages)} messages`, `${number(r.calls)} calls`, ...(r.tokens ? [`${number(r.tokens)} tokens, ${number(r.trained)} trained`] : []),
      ...(r.score === null ? [] : [`score ${r.score.toFixed(1)}`]), ...(r.errors ? [`✗ ${r.errors}`] : []), ...(r.warnings ? [`! ${r.warnings}`] : [])].join(' · ')));
    if (state.audit && state.audit.done.includes(r.row)) node.append(el('small', 'decided', '● read'));
    if (r.decision) node.append(el('small', 'decided', `● ${named(r.decision)}`));
    node.addEventListener('click', () => step('open', {row: r.row}));
    return node;
  };

  // An audit
  const drawAudit = () => {
    items.replaceChildren();
    verdict.classList.toggle('auditing', Boolean(state.audit));
    audits.hidden = !state.audits && !state.audit;
    audits.textContent = state.audit ? 'Leave the audit' : 'Audit';
    for (const name of ['edit', 'second_look']) decisions[name].hidden = Boolean(state.audit);
    undo.hidden = note.hidden = Boolean(state.audit);
    if (!state.audit) return;
    for (const item of state.audit.items) {
      const s = el('select');
      for (const v of ['', 1, 2, 3, 4, 5, 'pass', 'fail']) { const o = el('option', '', v === '' ? '–' : String(v)); o.value = v; s.append(o); }
      s.value = state.audit.labels[item] ?? '';
      s.setAttribute('aria-label', named(item));
      s.addEventListener('change', () => step('label', {item, value: s.value === '' ? null : /\d/.test(s.value) ? +s.value : s.value}));
      items.append(labelled(named(item), s), ' ');
    }
    items.append(button('reveal', "Show the judges' verdicts, agreement and κ; labels then stand", () => step('reveal')));
    if (state.audit.agreement) {
      const near = (x, ends) => x === null ? 'all in one category' : `${x.toFixed(2)} (${ends[0].toFixed(2)} to ${ends[1].toFixed(2)})`;
      const t = el('table', '', el('caption', '', 'Judges and reader'), el('tr', '', ...['item', 'scale', 'runs', 'agreed', 'κ'].map(h => el('th', '', h))));
      for (const a of state.audit.agreement) t.append(el('tr', '', ...[named(a.item), a.scale, String(a.n), near(a.agreed, a.agreed_95), near(a.kappa, a.kappa_95)].map(x => el('td', '', x))));
      items.append(t);
    }
  };

  // Live
  let timer = null;
  const drawing = curve => {
    const known = curve.filter(c => c[1] !== null), svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline');
    svg.setAttribute('viewBox', '0 0 220 60');
    svg.setAttribute('role', 'img');
    svg.append(line);
    if (!known.length) return svg;
    const [top, low] = [Math.max(...known.map(c => c[1])), Math.min(...known.map(c => c[1]))];
    svg.setAttribute('aria-label', `Loss from ${known[0][1].toFixed(3)} to ${known[known.length - 1][1].toFixed(3)} over ${known.length} steps`);
    line.setAttribute('points', known.map((c, k) => `${4 + 212 * k / Math.max(1, known.length - 1)},${56 - 52 * (c[1] - low) / (top - low || 1)}`).join(' '));
    return svg;
  };
  const rate = n => n === null ? '–' : number(Math.round(n)), nats = n => n === null || n === undefined ? '–' : n.toFixed(3);
  const losses = (title, by) => el('table', '', el('caption', '', title), ...Object.entries(by).map(([name, x]) => el('tr', '', say(el('th'), name), el('td', '', nats(x.loss)), el('td', '', `${number(x.tokens)} tokens`))));
  const drawLive = () => {
    const s = state.live;
    live.hidden = !s;
    lively.disabled = !state.follows;
    lively.setAttribute('aria-pressed', Boolean(s));
    clearTimeout(timer);
    if (!s) return;
    if (root.isConnected || !timer) timer = setTimeout(() => step('live'), 1000);
    if (String(s.step) === live.dataset.step) return;
    live.dataset.step = s.step;
    if (!s.step) { live.replaceChildren(el('p', '', 'Nothing was written yet.')); return; }
    const facts = el('table', '', el('caption', '', `step ${number(s.step)} of ${number(s.steps)}: loss ${nats(s.loss)}${s.preference === null ? '' : ` a token, ${nats(s.preference)} a pair`}`), ...[['trained', `${(100 * s.trained_share).toFixed(1)} % of ${number(s.real)} tokens`],
      ['tokens a second', `${rate(s.per_second.padded)} padded, ${rate(s.per_second.real)} real, ${rate(s.per_second.trained)} trained`], ['cost of looking', `${(100 * s.share).toFixed(2)} % of the time`],
      ...(s.left_out ? [['not shown', `${number(s.left_out)} tokens`]] : [])].map(([k, v]) => el('tr', '', el('th', '', k), el('td', '', v))));
    const rows = s.segments.map((row, r) => el('div', 'packed', el('small', '', `row ${r + 1}`), ...row.map((p, k) => {
      const b = button('', `${plain(p.id)}, ${p.side || `leaf ${p.leaf}`}: ${number(p.tokens)} tokens, loss ${nats(p.loss)}`, () => step('segment', {row: r, place: k}));
      b.append(say(el('span'), p.id), el('small', '', `${p.side ? `${p.side} · ` : ''}${number(p.tokens)} · ${nats(p.loss)}`));
      b.style.flexGrow = p.tokens;
      return b;
    })));
    const hardest = el('ol', 'hardest', ...s.hardest.map(t => el('li', '', button(`${nats(t.loss)} nats`, 'Show this token', () => { wanted = t.token; step('segment', {row: t.row, place: t.place}); }), say(el('span'), ` ${t.id} · message ${t.message} · ${t.field}`))));
    live.replaceChildren(el('div', '', facts, drawing(s.curve)), losses('loss by field', s.fields), losses('loss by source', s.sources), ...(s.preference === null ? [] : [losses('loss by side', s.sides)]), el('div', '', el('h3', '', 'hardest tokens'), hardest), el('div', 'rows', el('h3', '', 'packed rows: tokens · loss of each sample'), ...rows));
  };

  let wanted = null;
  const draw = () => {
    state = model.get('state');
    count.textContent = state.audit ? `${state.audit.done.length} of ${state.audit.runs} read` : `${number(state.found)} of ${number(state.total)} · page ${state.page + 1} of ${number(state.pages)}`;
    earlier.disabled = state.page === 0;
    later.disabled = state.page + 1 >= state.pages;
    if (root.ownerDocument.activeElement !== who) who.value = state.reviewer;
    sort.value = state.sort;
    alarm.textContent = state.error;
    alarm.hidden = !state.error;
    list.replaceChildren(...state.rows.map(row));
    const open = list.querySelector('[aria-selected=true]');
    if (open) { const a = open.getBoundingClientRect(), b = list.getBoundingClientRect(); if (a.top < b.top || a.bottom > b.bottom) list.scrollTop += a.top - b.top - b.height / 2; }
    const d = state.decision;
    stands.replaceChildren();
    if (d) { say(stands, `${named(d.decision)}${d.reviewer ? ` by ${d.reviewer}` : ''}${d.note ? `: ${d.note}` : ''}`); stands.append(` · ${d.at.slice(0, 16).replace('T', ' ')}`); }
    else if (state.open !== null && !state.audit) stands.textContent = 'not decided';
    for (const [name, b] of Object.entries(decisions)) { b.disabled = state.open === null; b.setAttribute('aria-pressed', state.audit ? state.audit.labels.decision === name : Boolean(d && d.decision === name)); }
    drawFilters(); drawAudit(); drawLive();
  };
  const show = () => {
    const data = model.get('record'), there = data.records && data.records.length;
    record.hidden = !there;
    empty.hidden = Boolean(there);
    if (!there) return;
    view.show(data);
    note.value = '';
    if (wanted !== null) view.select(wanted);
    wanted = null;
  };
  const empty = el('p', 'empty', 'Open a record: click one, or press j.');

  root.addEventListener('keydown', e => {
    const field = e.target.closest('input, textarea, select');
    if (e.key === 'Escape' && field) { e.preventDefault(); e.stopPropagation(); if (editor.contains(field)) editor.hidden = true; field.blur(); root.focus(); return; }
    if (field && !['checkbox'].includes(field.type)) { if (e.key === 'Enter' && field.tagName === 'INPUT') { field.blur(); root.focus(); } e.stopPropagation(); return; }
    if (e.ctrlKey || e.metaKey || e.altKey || !editor.hidden) return;
    const own = {j: () => step('move', {by: 1}), k: () => step('move', {by: -1}), ',': () => !earlier.disabled && earlier.click(), '.': () => !later.disabled && later.click(), '/': () => search.focus(), f: () => filterer.click(),
      u: () => !state.audit && step('undo'), t: () => note.focus(), w: () => who.focus(), v: () => !lively.disabled && lively.click(), '?': () => helper.click(),
      ...Object.fromEntries(Object.entries(DECISIONS).map(([key, name]) => [key, () => !decisions[name].disabled && !decisions[name].hidden && decisions[name].click()]))};
    if (own[e.key]) { e.preventDefault(); own[e.key](); }
    else if (!record.hidden) view.key(e);
    e.stopPropagation();
  });

  side.append(filters, list);
  root.append(bar, help, alarm, live, el('div', 'middle', side, el('div', 'main', empty, editor, record)), verdict);
  host.append(root);
  model.on('change:state', draw);
  model.on('change:record', show);
  draw(); show();
  return () => { clearTimeout(timer); model.off('change:state', draw); model.off('change:record', show); };
};
export default {render};
