'use strict';
// One record in five panes, in step. Every view uses this file: the static page, the notebook's widget, the served app.
// Text from records reaches the page through textContent and value only.
const PANES = {raw: 'Raw', unified: 'Unified 2.0', after: 'After rules and critic', rendered: 'Rendered text', tokens: 'Tokens'};
const SIGNS = {ok: '✓', warning: '!', error: '✗', none: '–', note: '·'};
const number = n => n.toLocaleString('en');
const clean = field => field.replace('.', '-');
const plain = text => text.replace(/[\ufdd0\ufdd1]/g, '');
const el = (tag, name, ...inside) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...inside);
  return node;
};
// Escapes stand between U+FDD0 and U+FDD1; every second part of the split is one.
const say = (node, text) => {
  text.split(/[\ufdd0\ufdd1]/).forEach((part, k) => { if (part) node.append(k % 2 ? el('b', 'esc', part) : part); });
  return node;
};
const button = (text, title, act) => {
  const node = el('button', '', text);
  node.type = 'button';
  node.title = title;
  node.addEventListener('click', act);
  return node;
};
// Inside a token white space is shown before it acts; a token that only completes a character shows an ellipsis.
const asToken = text => !text ? '\ufdd0…\ufdd1'
  : (text.trim() || /[\ufdd0]/.test(text) ? text : text.replace(/ /g, '\ufdd0·\ufdd1')).replace(/\t/g, '\ufdd0⇥\ufdd1\t').replace(/\n/g, '\ufdd0↵\ufdd1\n');

// Nodes that are filled only near the part of a pane that is seen.
const lazily = pane => {
  const fill = node => { if (!node.filled) { node.filled = true; node.append(...node.make()); node.style.minHeight = ''; } };
  const drop = node => {
    if (!node.filled || !node.offsetHeight) return;
    node.style.minHeight = node.offsetHeight + 'px';
    node.filled = false;
    node.replaceChildren();
  };
  const eye = new IntersectionObserver(found => { for (const f of found) (f.isIntersecting ? fill : drop)(f.target); }, {root: pane, rootMargin: '600px 0px'});
  return {
    add: (node, height, make) => { node.make = make; node.style.minHeight = Math.round(height) + 'px'; eye.observe(node); return node; },
    fill, clear: () => eye.disconnect()};
};

const recordView = root => {
  const head = el('div', 'head'), checks = el('div', 'checks'), panes = el('div', 'panes'), diff = el('div', 'diff'), status = el('p', 'status');
  const body = {}, lazy = {}, frame = {}, toggle = {};
  let page, record, leaf = 0, tokens = [], at = -1, lit = null, shade = 'weight', off = new Set();
  status.setAttribute('role', 'status');
  diff.hidden = true;
  Object.entries(PANES).forEach(([name, title], k) => {
    body[name] = el('div', 'body');
    body[name].tabIndex = 0;
    body[name].setAttribute('role', 'region');
    body[name].setAttribute('aria-label', title);
    frame[name] = el('section', 'pane', el('h3', '', title), body[name]);
    frame[name].dataset.pane = name;
    toggle[name] = button(`${k + 1} ${title}`, `Show or hide this pane (${k + 1})`, () => flip(name));
  });
  panes.append(...Object.values(frame));
  root.append(head, checks, panes, diff, status);
  const near = (node, block = 'nearest') => {  // Scrolls the pane alone, never what the view stands in
    const pane = node && node.closest('.body');
    if (!pane) return;
    const a = node.getBoundingClientRect(), b = pane.getBoundingClientRect();
    if (block === 'start') pane.scrollTop += a.top - b.top - 6;
    else if (a.top < b.top || a.bottom > b.bottom) pane.scrollTop += a.top - b.top - (block === 'nearest' && a.top < b.top ? 30 : b.height / 2);
  };
  const there = name => name === 'rendered' || name === 'tokens' ? record.leaves.length > 0 : record.stages[name] !== null || (name === 'after' && record.removed);
  const flip = name => { off.has(name) ? off.delete(name) : off.add(name); arrange(); };
  const arrange = () => {
    for (const name in PANES) {
      const shown = there(name) && !off.has(name);
      frame[name].hidden = !shown;
      toggle[name].disabled = !there(name);
      toggle[name].setAttribute('aria-pressed', shown);
    }
  };
  const remarks = index => record.checks.flatMap(c => c.remarks).filter(r => r.message === index);
  const share = part => tokens.length ? ` (${(100 * part / tokens.length).toFixed(1)} %)` : '';

  // Stages: groups of lines
  const line = ([key, value], from = 0) => {
    const path = (page.texts[key] || '').slice(from), node = el('div', 'line');
    if (path) node.append(say(el('span', 'key'), path), ' ');
    return (node.append(say(el('span', 'text'), page.texts[value])), node);
  };
  const group = (name, [index, title, lines]) => {
    const own = tokens.filter(t => t.message === index), said = index === null ? [] : remarks(index);
    const label = el('div', 'label', say(el('span'), index === null ? page.texts[title] || 'other fields' : `${index < 0 ? '' : index + ' · '}${page.texts[title]}`));
    if (name !== 'raw' && own.length) label.append(el('small', '', `${number(own.length)} tokens, ${number(own.filter(t => t.trained).length)} trained`));
    if (name !== 'raw' && said.length) label.append(el('small', 'flag', `⚑ ${said.length}`));
    const start = name === 'raw' && lines.length ? /^[^.]*\]\./.exec(page.texts[lines[0][0]]) : null;  // The element of a list in which all lines stand is named once
    const stem = start && lines.every(l => page.texts[l[0]].startsWith(start[0])) ? start[0] : '';
    if (stem) label.append(say(el('small'), stem.slice(0, -1)));
    const node = el('section', 'group', label), parts = [];
    label.tabIndex = -1;
    label.setAttribute('role', 'button');
    for (let k = 0, some = [], size = 0; k < lines.length; k++) {
      some.push(lines[k]);
      size += page.texts[lines[k][1]].length + 40;
      if (size > 3000 || k === lines.length - 1) { const these = some; parts.push(lazy[name].add(el('div'), 18 * Math.max(these.length, size / 45), () => these.map(l => line(l, stem.length)))); some = []; size = 0; }
    }
    const inside = el('div', 'lines', ...parts);
    node.append(inside);
    if (index === null) { inside.hidden = ['tools', 'meta'].includes(page.texts[title]); label.setAttribute('aria-expanded', !inside.hidden); node.classList.add('open'); }
    else node.dataset.message = index;
    return node;
  };
  const stage = name => {
    lazy[name] = lazily(body[name]);
    const groups = record.stages[name] === null ? [] : page.stages[record.stages[name]].map(g => group(name, g));
    if (name === 'after' && record.removed) groups.unshift(say(el('p', 'removed'), `✗ removed: ${record.removed}`));
    if (name === 'after' && record.stages.after !== null && record.stages.after === record.stages.unified) groups.unshift(el('p', 'same', '= unchanged'));
    body[name].replaceChildren(...groups);
  };

  // A leaf: its tokens, and the same as text. Both panes are cut at the same places.
  const read = () => {
    tokens = [];
    const here = record.leaves[leaf];
    (here ? here.runs : []).forEach(([part, message, field, trained, weight], run) => {
      for (const v of page.parts[part]) {
        const [id, text, control] = page.vocab[v];
        tokens.push({id, text, control, message, field: page.fields[field], trained, weight, run, loss: here.losses ? here.losses[tokens.length] : null});
      }
    });
  };
  const runNode = (t, tag) => el(tag, `run ${t.trained ? 'trained ' : ''}${clean(t.field)}`);
  const strength = t => shade === 'loss' ? Math.min(1, (t.loss || 0) / 8) : Math.min(1, t.weight / peak());
  const peak = () => Math.max(1, ...record.leaves[leaf].runs.map(r => r[4]));
  const written = (first, end, each) => {  // Nodes of the runs between two tokens
    const out = [];
    for (let k = first; k < end; k++) {
      const t = tokens[k], again = out.length && out[out.length - 1].run === t.run;
      if (!again) {
        out.push(runNode(t, 'span'));
        out[out.length - 1].run = out[out.length - 1].dataset.run = t.run;
        if (t.trained && t.weight !== 1 && each && (!k || tokens[k - 1].run !== t.run)) out[out.length - 1].append(el('sup', '', `×${t.weight}`));
        if (t.trained && shade === 'weight') out[out.length - 1].style.setProperty('--w', strength(t));
      }
      if (each) out[out.length - 1].append(each(k));
      else say(out[out.length - 1], t.text);
    }
    out.forEach(n => { n.run = undefined; if (!each && at >= 0 && +n.dataset.run === tokens[at].run) n.classList.add('at'); });
    return out;
  };
  const token = k => {
    const t = tokens[k], node = say(el('span', t.control ? 'tok control' : 'tok'), asToken(t.text));
    node.dataset.token = k;
    node.title = tell(k);
    if (shade === 'loss' && t.trained) node.style.setProperty('--w', strength(t));
    if (k === at) node.classList.add('at');
    return node;
  };
  const blocks = () => {
    const roles = new Map((record.stages.after ?? record.stages.unified) === null ? [] : page.stages[record.stages.after ?? record.stages.unified].filter(g => g[0] !== null).map(g => [g[0], page.texts[g[1]]]));
    for (const name of ['rendered', 'tokens']) { lazy[name] = lazily(body[name]); body[name].replaceChildren(); }
    for (let first = 0, end = 0; first < tokens.length; first = end) {
      const index = tokens[first].message, turns = {};
      const label = `${index < 0 ? '' : index + ' · '}${roles.get(index) || (index < 0 ? 'system' : 'message')}`;
      for (const name of ['rendered', 'tokens']) {
        turns[name] = el('section', 'turn', say(el('div', 'label'), label));
        turns[name].firstChild.tabIndex = -1;
        turns[name].firstChild.setAttribute('role', 'button');
        turns[name].dataset.message = index;
        body[name].append(turns[name]);
      }
      while (end < tokens.length && tokens[end].message === index) {
        const from = end;
        let size = 0, newlines = 0;
        while (end < tokens.length && tokens[end].message === index) {
          const text = tokens[end++].text;
          size += text.length;
          newlines += text.includes('\n');
          if (end - from >= 400 || end - from >= 150 && text.includes('\n')) break;
        }
        const till = end, rows = size / 40 + newlines / 2;
        turns.tokens.append(lazy.tokens.add(el('div', 'block'), 24 * rows, () => written(from, till, token)));
        turns.rendered.append(lazy.rendered.add(el('div', 'block'), 20 * rows, () => written(from, till, null)));
        for (const name of ['rendered', 'tokens']) { const b = turns[name].lastChild; for (let k = from; k < till; k++) (tokens[k].in = tokens[k].in || {})[name] = b; }
      }
    }
  };

  const title = () => {
    const trained = tokens.filter(t => t.trained), per = new Map();
    for (const t of trained) per.set(t.field, (per.get(t.field) || 0) + 1);
    const legend = el('p', 'legend', ...page.fields.filter(f => per.has(f)).map(f => el('span', '', el('span', `run trained ${clean(f)}`, f), ` ${number(per.get(f))}`)),
      el('span', '', el('span', 'run', 'not trained'), ` ${number(tokens.length - trained.length)}`));
    const leaves = record.leaves.map((l, k) => { const b = button(`leaf ${l.leaf}`, 'Another leaf of this record ([ and ])', () => turnLeaf(k)); b.setAttribute('aria-pressed', k === leaf); return b; });
    const states = {certified: '✓ certified', problems: '✗ not certified', unchecked: '– not checked'};
    head.replaceChildren(say(el('h2'), record.id), el('span', record.state, states[record.state]), el('span', 'size', `${number(tokens.length)} tokens, ${number(trained.length)} trained${share(trained.length)}`),
      ...(leaves.length > 1 ? leaves : []), ...(record.leaves[leaf] && record.leaves[leaf].losses ? [button(`shade: ${shade}`, 'Shade tokens by weight or by loss (l)', shadeBy)] : []),
      el('span', 'toggles', ...Object.values(toggle), button('d Differences', 'Compare two stages (d)', compare)), ...(tokens.length ? [legend] : []));
  };
  const shadeBy = () => { if (!record.leaves[leaf] || !record.leaves[leaf].losses) return; shade = shade === 'loss' ? 'weight' : 'loss'; title(); blocks(); };
  const turnLeaf = k => { if (k >= 0 && k < record.leaves.length) { leaf = k; at = -1; read(); title(); blocks(); light(null); } };

  const remark = r => {
    const node = el('div', `remark ${r.severity}`), go = button(`${SIGNS[r.severity]} ${r.severity}`, 'Show the place', () => choose(r.message));
    if (r.message === null) go.disabled = true;
    node.append(go, ' ', say(el('b'), r.by), ' ', ...(r.path ? [say(el('code'), r.path), ' '] : []), say(el('span'), r.text));
    if (r.fix) node.append(' ', say(el('span', 'fix'), `fix: ${r.fix}`));
    return node;
  };
  const look = () => checks.replaceChildren(...record.checks.map(c => {
    const d = el('details', c.state, el('summary', '', `${SIGNS[c.state]} ${c.name}: `, say(el('span'), c.said)), ...c.remarks.map(remark));
    if (!c.remarks.length) d.classList.add('bare');
    return d;
  }));

  // Differences between two stages
  const flat = name => page.stages[record.stages[name]].flatMap(([, title, lines]) => [['', title], ...lines]);
  const compare = () => { diff.hidden = !diff.hidden; panes.hidden = !diff.hidden; if (!diff.hidden) pick(); };
  const pick = () => {
    const names = ['raw', 'unified', 'after'].filter(n => record.stages[n] !== null);
    const choice = (label, value) => {
      const s = el('select', '', ...names.map(n => { const o = el('option', '', PANES[n]); o.value = n; return o; }));
      s.setAttribute('aria-label', label);
      s.value = value;
      return s;
    };
    const a = choice('from', names.includes('unified') ? 'unified' : names[0]), b = choice('to', names[names.length - 1]), out = el('div', 'lines');
    const draw = () => {
      const [x, y] = [a.value, b.value].sort((m, n) => names.indexOf(m) - names.indexOf(n));
      out.replaceChildren();
      if (x === y) return out.append(el('p', '', 'One stage; choose two.'));
      const mark = (sign, name) => v => el('div', name, el('b', 'sign', sign), line(v));
      for (const [tag, i, j, k, n] of record.diffs[`${x}|${y}`]) {
        if (tag) out.append(...flat(x).slice(i, j).map(mark('−', 'gone')), ...flat(y).slice(k, n).map(mark('+', 'new')));
        else out.append(...(j - i > 6 ? [...flat(x).slice(i, i + 2).map(mark(' ', '')), el('p', 'same', `= ${number(j - i - 4)} equal lines`), ...flat(x).slice(j - 2, j).map(mark(' ', ''))] : flat(x).slice(i, j).map(mark(' ', ''))));
      }
      if (!out.querySelector('.gone, .new')) out.prepend(el('p', 'same', '= no difference'));
    };
    a.addEventListener('change', draw);
    b.addEventListener('change', draw);
    diff.replaceChildren(el('p', '', 'From ', a, ' to ', b, ' ', button('close', 'Back to the panes (d)', compare)), out);
    draw();
  };

  const tell = k => {
    const t = tokens[k], said = remarks(t.message);
    return `token ${number(k)} of ${number(tokens.length)} · id ${t.id} · message ${t.message} · ${t.field} · ${t.trained ? `trained, weight ${t.weight}` : 'not trained'}`
      + `${t.loss == null ? '' : ` · loss ${t.loss.toFixed(3)} nats`} · “${plain(t.text)}”${said.length ? ` · ⚑ ${said.slice(0, 3).map(r => plain(`${r.by}: ${r.text}`)).join(' · ')}` : ''}`;
  };
  const light = index => {
    lit = index;
    root.querySelectorAll('[data-message]').forEach(n => n.classList.toggle('lit', n.dataset.message === String(index)));
  };
  const follow = (index, but) => { for (const name in PANES) if (name !== but && !frame[name].hidden) near(body[name].querySelector(`[data-message="${index}"]`), 'start'); };
  const hold = (act, wanted, frames = 12) => {  // What is above takes its true height only when it is near: the place is kept until it has
    act();
    if (frames) requestAnimationFrame(() => wanted() && hold(act, wanted, frames - 1));
  };
  const unmark = () => root.querySelectorAll('.at').forEach(n => n.classList.remove('at'));
  const select = k => {
    if (k < 0 || k >= tokens.length) return;
    unmark();
    const before = at >= 0 ? tokens[at].message : null, t = tokens[at = k];
    light(t.message);
    if (before !== t.message) follow(t.message, 'tokens');
    hold(() => {
      for (const name of ['tokens', 'rendered']) lazy[name].fill(t.in[name]);
      for (const node of [t.in.tokens.querySelector(`[data-token="${k}"]`), t.in.rendered.querySelector(`[data-run="${t.run}"]`)]) { node.classList.add('at'); near(node); }
    }, () => tokens[at] === t);
    status.textContent = tell(k);
  };
  const choose = (index, from) => {  // A message was chosen
    if (index === null) return;
    unmark();
    at = -1;
    light(index);
    hold(() => follow(index, from), () => lit === index && at < 0);
    const own = tokens.filter(t => t.message === index), said = remarks(index);
    status.textContent = `message ${index} · ${number(own.length)} tokens, ${number(own.filter(t => t.trained).length)} trained${said.length ? ` · ⚑ ${said.map(r => plain(`${r.by}: ${r.text}`)).join(' · ')}` : ''}`;
  };
  const clear = () => { unmark(); at = -1; light(null); if (!diff.hidden) compare(); status.textContent = HINT; };
  const jump = step => {  // To the first token of the next or previous trained stretch
    for (let k = at + step; k >= 0 && k < tokens.length; k += step)
      if (tokens[k].trained && !(k && tokens[k - 1].trained && tokens[k - 1].message === tokens[k].message)) return select(k);
  };
  const step = by => {  // To the next or previous message
    const known = [...new Set([...body.unified.querySelectorAll('[data-message]'), ...body.tokens.querySelectorAll('[data-message]')].map(n => +n.dataset.message))].sort((a, b) => a - b);
    const k = lit === null ? (by > 0 ? 0 : known.length - 1) : known.indexOf(lit) + by;
    if (k >= 0 && k < known.length) choose(known[k]);
  };
  const HINT = 'Click a token or a message, or use the keys: its place at every stage, and what was remarked about it, appear here.';

  panes.addEventListener('click', e => {
    const t = e.target.closest('.tok'), g = e.target.closest('[data-message]'), pane = e.target.closest('.pane'), label = e.target.closest('.label');
    if (t) return select(+t.dataset.token);
    if (label && label.hasAttribute('aria-expanded')) { const inside = label.nextSibling; inside.hidden = !inside.hidden; label.setAttribute('aria-expanded', !inside.hidden); return; }
    if (g && pane && !String(getSelection())) choose(+g.dataset.message, pane.dataset.pane);
  });
  const keys = {ArrowRight: () => select(at + 1), ArrowLeft: () => select(at - 1), ArrowDown: () => step(1), ArrowUp: () => step(-1), n: () => jump(1), p: () => jump(-1), Escape: clear, d: compare,
    l: shadeBy, '[': () => turnLeaf(leaf - 1), ']': () => turnLeaf(leaf + 1), c: () => { const all = [...checks.querySelectorAll('details:not(.bare)')], open = all.some(d => d.open); all.forEach(d => { d.open = !open; }); },
    ...Object.fromEntries(Object.keys(PANES).map((name, k) => [k + 1, () => !toggle[name].disabled && flip(name)]))};
  return {
    show: (data, k = 0) => {
      page = data;
      record = page.records[k];
      leaf = 0; at = -1; lit = null;
      Object.values(lazy).forEach(l => l.clear());
      shade = record.leaves[0] && record.leaves[0].losses ? 'loss' : 'weight';
      read(); title(); look();
      ['raw', 'unified', 'after'].forEach(stage);
      blocks(); arrange();
      diff.hidden = true; panes.hidden = false;
      Object.values(body).forEach(b => { b.scrollTop = 0; });
      status.textContent = HINT;
    },
    select, keys,
    key: e => { if (e.ctrlKey || e.metaKey || e.altKey || !keys[e.key]) return false; e.preventDefault(); keys[e.key](); return true; },
    help: 'n p trained stretch · ← → token · ↑ ↓ message · 1–5 panes · d differences · c checks · [ ] leaf · Esc clear'};
};
