// The static page: a list of records beside the record.
(async () => {
  const $ = id => document.getElementById(id);
  if (!window.DecompressionStream) return;  // The static part stays
  const packed = Uint8Array.from(atob($('data').textContent), c => c.charCodeAt(0));
  const page = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'))).json();
  const links = [...$('list').querySelectorAll('a')], view = recordView($('record'));
  let current = 0;
  const show = k => {
    if (k < 0 || k >= links.length) return;
    links[current].removeAttribute('aria-current');
    links[current = k].setAttribute('aria-current', 'true');
    links[k].scrollIntoView({block: 'nearest'});
    view.show(page, k);
  };
  const move = step => {  // To the next or previous record that the filter lets through
    for (let k = current + step; k >= 0 && k < links.length; k += step) if (!links[k].parentNode.hidden) return show(k);
  };
  $('list').addEventListener('click', e => { const a = e.target.closest('a'); if (a) { e.preventDefault(); show(links.indexOf(a)); } });
  $('search').addEventListener('input', () => {
    const wanted = $('search').value.trim().toLowerCase();
    for (const a of links) a.parentNode.hidden = !a.dataset.search.includes(wanted);
    const left = links.filter(a => !a.parentNode.hidden);
    $('count').textContent = `${number(left.length)} of ${number(links.length)}`;
    if (left.length && links[current].parentNode.hidden) show(links.indexOf(left[0]));
  });
  document.addEventListener('keydown', e => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.matches('select')) return;
    if (e.target === $('search')) { if (e.key === 'Escape' || e.key === 'Enter') $('search').blur(); return; }
    const own = {j: () => move(1), k: () => move(-1), '/': () => $('search').focus()};
    if ($('list').contains(e.target)) Object.assign(own, {ArrowDown: () => { move(1); links[current].focus(); }, ArrowUp: () => { move(-1); links[current].focus(); }});
    if (own[e.key]) { e.preventDefault(); own[e.key](); } else view.key(e);
  });
  $('keys').textContent = `Keys: j k record · / search · ${view.help}`;
  document.documentElement.classList.add('js');
  document.body.classList.toggle('single', links.length === 1);
  $('record').hidden = false;
  $('count').textContent = `${number(links.length)} of ${number(links.length)}`;
  const asked = /^#r(\d+)$/.exec(location.hash);
  show(asked && +asked[1] < links.length ? +asked[1] : 0);
})();
