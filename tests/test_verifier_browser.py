"The verifier in JupyterLab and as an app, in a real browser: one list of steps drives it there and without a browser; decisions outlive the kernel; hostile records run nothing."
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from test_view_browser import ATTACKS, CONTRAST, assert_reached_by_tab, assert_side_by_side, assert_stacked

from actionstudio.app import notebook
from actionstudio.check_file import check_file
from actionstudio.convert import convert_file
from actionstudio.decisions import decisions_file, read_decisions
from actionstudio.encode_file import encode_file
from actionstudio.ring import Piece, Ring, Step
from actionstudio.store import read, write
from actionstudio.verifier import Verifier

pytestmark = pytest.mark.slow
STEPS = [('filter', {'source': ['retail']}), ('turn', {'to': 1}), ('open', {'id': 'run-055'}), ('decide', {'decision': 'remove', 'note': 'asks twice'}),
         ('move', {'by': 1}), ('decide', {'decision': 'keep', 'note': ''}), ('move', {'by': 1}), ('decide', {'decision': 'second_look', 'note': ''}), ('undo', {}), ('open', {'id': 'run-055'})]
KEYS = {'keep': 'y', 'remove': 'x', 'second_look': 's'}


def record(k):
    bad = ATTACKS[k % len(ATTACKS)] if k < 20 else ''
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 3 if k % 5 else "3"}}}
    return {"unique_trajectory_id": f'run-{k:03}{bad}', "task_instruction": f"You answer questions about the weather. {bad}", "meta": {"source": ('airline', 'retail')[k % 2]},
            "tools": [{"type": "function", "function": {"name": "weather", "description": "The weather of the next days.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}],
            "conversation": [{"role": "user", "content": f'Is it warm in Oslo, three days from now? I am visitor number {k}. {bad}'},
                             {"role": "assistant", "content": "I look it up.", "reasoning_content": f"One city, one call. {bad}", "tool_calls": [call]},
                             {"role": "tool", "name": "weather", "tool_call_id": "1", "content": {"forecast": ["-4 °C, snow", "-6 °C", "-3 °C, wind"], "note": bad}},
                             {"role": "assistant", "content": f"No: -4 °C with snow at first, then -6 °C, and -3 °C with wind on the third day. {bad}"}]}


def made_run(folder, model):
    write(folder/'raw.jsonl', map(record, range(60)))
    convert_file(folder/'raw.jsonl', folder/'run'/'data')
    check_file(folder/'run'/'data'/'data.jsonl', folder/'run'/'checked', repair=True)
    kept = list(read(folder/'run'/'checked'/'kept.jsonl'))
    critiqued = folder/'run'/'critiqued'
    critiqued.mkdir()
    claim = lambda r, fault: {'item': 'overall', 'message': 3, 'fault': fault, 'quote': 'with snow at first', 'says': 'says what the tool said' if not fault else 'leaves out a day'}
    said = [(r, 5 if k % 3 else 2) for k, r in enumerate(kept)]
    write(critiqued/'kept.jsonl', [r for r, s in said if s > 3])
    write(critiqued/'removed.jsonl', [{'reason': 'low_overall', 'id': r['unique_trajectory_id'], 'raw': r, 'message': 'found low_overall', 'place': ''} for r, s in said if s < 3])
    write(critiqued/'critiques.jsonl', [{'id': r['unique_trajectory_id'], 'judge': 'judge-a', 'scores': {'correctness': s, 'overall': s}, 'steps': {'1': 5, '3': s}, 'claims': [claim(r, s < 3)]} for r, s in said])
    (critiqued/'report.json').write_text(json.dumps({'made_by': {'command': 'critique', 'policy': {}}, 'lines': {}}))
    encode_file(critiqued/'kept.jsonl', folder/'run'/'encoded', model, weights={'reasoning': .3, 'call.name': 2})
    return folder/'run'


@pytest.fixture
def run(tmp_path, model): return made_run(tmp_path, model)


@pytest.fixture(scope='session')
def shots(tmp_path_factory):
    "Where screenshots go: the folder that SHOTS names, or one of the tests'."
    folder = Path(os.environ.get('SHOTS') or tmp_path_factory.mktemp('shots'))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def started(command, pattern, cwd):
    env = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1', 'JUPYTER_CONFIG_DIR': str(cwd/'.jupyter'), 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    p = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in p.stdout:
        if found := re.search(pattern, line): return p, found[1]
    raise RuntimeError(f'{command} ended: {p.wait()}')


def ended(p):
    for child in psutil.Process(p.pid).children(recursive=True): child.kill()
    p.kill()
    p.wait()


def kill_kernels(p):
    kernels = [c for c in psutil.Process(p.pid).children(recursive=True) if any('ipykernel' in x for x in c.cmdline())]
    assert kernels
    for k in kernels: k.kill()
    psutil.wait_procs(kernels, 10)


@pytest.fixture
def app(run, model, tmp_path):
    p, url = started([sys.executable, '-m', 'actionstudio.cli', 'verify', str(run), '--tokenizer', str(model), '--reviewer', 'ann', '--no-browser', '--port', '8930'], r'(http://127\.0\.0\.1:\d+/\?token=\S+)', tmp_path)
    yield p, url
    ended(p)


@pytest.fixture
def lab(run, model, tmp_path):
    pytest.importorskip('jupyterlab')
    nb = notebook(run, tokenizer=str(model), reviewer='ann')
    (tmp_path/'verifier.ipynb').write_text(json.dumps(nb))
    p, base = started([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--port=8990', '--ip=127.0.0.1', '--IdentityProvider.token=t', '--ServerApp.root_dir=.', '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
                      r'(http://127\.0\.0\.1:\d+/)lab\?token', tmp_path)
    yield p, f'{base}lab/tree/verifier.ipynb?token=t'
    ended(p)


def run_cells(page):
    page.locator('.jp-Notebook').wait_for(timeout=90_000)
    page.locator('.jp-Notebook .jp-Cell').first.click()
    page.wait_for_function("() => !document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=unknown]')", timeout=60_000)
    page.wait_for_timeout(2000)
    page.keyboard.press('Shift+Enter')
    page.locator('.verifier .list li').first.wait_for(timeout=90_000)


def settled(page, expression, *args):
    try: page.wait_for_function(expression, arg=args[0] if args else None, timeout=20_000)
    except Exception as e: raise AssertionError(f'{expression} {args}: {page.errors} {page.locator(".alarm").all_inner_texts()} {page.locator(".record .head").all_inner_texts()}') from e


def taken(page, step, how):
    "A step of the list, as a person takes it: decisions by keyboard alone."
    root = page.locator('.verifier')
    if step == 'filter':
        root.focus(); page.keyboard.press('f')
        for facet, values in how.items():
            box = page.locator(f'details[data-name={facet}]')
            box.locator('summary').click()
            for v in values: box.locator('label', has_text=v).locator('input').check()
        settled(page, "() => /^30 of/.test(document.querySelector('.count').textContent)")
        page.keyboard.press('Escape')
        root.focus(); page.keyboard.press('f')
    elif step == 'turn':
        root.focus(); page.keyboard.press('.')
        settled(page, "n => document.querySelector('.count').textContent.includes(`page ${n} of`)", how['to'] + 1)
    elif step == 'open':
        page.locator('.list li', has_text=how['id']).click()
        settled(page, "id => document.querySelector('.record .head h2')?.textContent === id", how['id'])
    elif step == 'move':
        before = page.locator('.record .head h2').inner_text()
        root.focus(); page.keyboard.press('j' if how['by'] > 0 else 'k')
        settled(page, "id => document.querySelector('.record .head h2').textContent !== id", before)
    elif step == 'decide':
        root.focus()
        if how['note']: page.keyboard.press('t'); page.keyboard.type(how['note']); page.keyboard.press('Escape')
        page.keyboard.press(KEYS[how['decision']])
        settled(page, "d => document.querySelector('.stands').textContent.startsWith(d)", how['decision'].replace('_', ' '))
    elif step == 'undo':
        root.focus(); page.keyboard.press('u')
        settled(page, "() => document.querySelector('.stands').textContent === 'not decided'")


def played(page, run):
    "The steps in the browser, against the same steps on the plain object."
    for step, how in STEPS: taken(page, step, how)
    decided = {i: (d.decision, d.note, d.reviewer) for i, d in read_decisions(decisions_file(run)).items()}
    copy = shutil.copytree(run, run.with_name('copy'))
    decisions_file(copy).unlink(missing_ok=True)
    plain = Verifier(copy, None, 'ann')
    for step, how in STEPS: plain.do(step, **how)
    assert {i: (d.decision, d.note, d.reviewer) for i, d in read_decisions(decisions_file(copy)).items()} == decided == {'run-055': ('remove', 'asks twice', 'ann'), 'run-057': ('keep', '', 'ann')}
    assert page.locator('.list li b').all_inner_texts() == plain.listed
    assert page.locator('.count').inner_text() == f'{len(plain.rows)} of {len(plain.index)} · page {plain.page + 1} of {plain.pages}'
    shutil.rmtree(copy)


def laid_out(page):
    "The bar above, the list to the left of the record, the decisions below, all inside the verifier."
    whole, bar, side, record, verdict = (page.locator(x).bounding_box() for x in ('.verifier', '.verifier .bar', '.verifier .side', '.verifier .record', '.verifier .verdict'))
    end = lambda b: (b['x'] + b['width'], b['y'] + b['height'])
    assert end(bar)[1] <= record['y'] + 1 and end(side)[0] <= record['x'] + 1 and end(record)[1] <= verdict['y'] + 1, (bar, side, record, verdict)
    assert all(whole['x'] <= b['x'] and end(b)[0] <= end(whole)[0] + 1 and end(b)[1] <= end(whole)[1] + 1 for b in (bar, side, record, verdict))
    assert_side_by_side(page)


def clicked(page):
    "A token's message is framed in every pane that has it."
    page.locator('.verifier').focus()
    page.locator('.pane[data-pane=tokens] .trained.call-name .tok').first.click()
    assert 'call.name · trained, weight 2' in page.locator('.record .status').inner_text()
    lit = page.evaluate("() => [...document.querySelectorAll('.lit')].map(n => [n.closest('.pane').dataset.pane, n.dataset.message])")
    assert {p for p, m in lit} >= {'unified', 'rendered', 'tokens'} and {m for _, m in lit} == {'1'}
    page.locator('.pane[data-pane=unified] [data-message="3"] .label').click()
    assert page.evaluate("() => [...document.querySelectorAll('.pane[data-pane=tokens] .lit')].map(n => n.dataset.message)") == ['3']


def test_in_jupyterlab(lab, run, open_page, shots):
    p, url = lab
    page = open_page(url)
    run_cells(page)
    taken(page, 'open', {'id': 'run-022'})
    clicked(page)
    laid_out(page)
    page.screenshot(path=shots/'lab.png')
    played(page, run)
    assert page.locator('.jp-Notebook .jp-Cell').count() <= 2  # JupyterLab took no key for itself
    kill_kernels(p)
    page.reload()
    run_cells(page)
    for k in (1, 2): taken(page, 'turn', {'to': k})
    taken(page, 'open', {'id': 'run-055'})
    assert page.locator('.stands').inner_text().startswith('remove by ann: asks twice') and not page.dialogs


def test_as_an_app(app, run, model, open_page, shots):
    p, url = app
    for path in ('/', '/voila/static/require.min.js', '/api/kernels/0/channels', '/voila/files/verifier.ipynb', '/?token=wrong'):
        with pytest.raises(urllib.error.HTTPError, match='403'): urllib.request.urlopen(re.sub(r'/\?token.*', path, url))
    host, port = re.search(r'//([\d.]+):(\d+)', url).groups()
    assert {c.laddr.ip for c in psutil.Process(p.pid).net_connections() if c.status == 'LISTEN' and c.laddr.port == int(port)} == {'127.0.0.1'}
    page = open_page(url)
    page.locator('.verifier .list li').first.wait_for(timeout=120_000)
    assert 'token' not in page.url
    taken(page, 'open', {'id': 'run-022'})
    clicked(page)
    laid_out(page)
    page.keyboard.press('c')
    found = page.evaluate(CONTRAST)
    assert min(v for k, v in found.items()) >= 4.5, sorted(found.items(), key=lambda x: x[1])[:5]
    page.screenshot(path=shots/'app-checks.png')
    page.keyboard.press('c')
    page.locator('.pane[data-pane=tokens] .trained.call-arguments .tok').nth(2).click()
    page.locator('.verifier').screenshot(path=shots/'app.png')
    page.set_viewport_size({'width': 400, 'height': 900})
    page.wait_for_timeout(300)
    assert_stacked(page)
    assert page.locator('.verifier .record').bounding_box()['height'] > 250
    page.locator('.verifier').focus(); page.keyboard.press('n')
    page.screenshot(path=shots/'app-narrow.png')
    page.set_viewport_size({'width': 1500, 'height': 900})
    page.locator('.verifier').focus()
    assert_reached_by_tab(page)
    played(page, run)
    kill_kernels(p)
    page.goto(url)
    page.locator('.verifier .list li').first.wait_for(timeout=120_000)
    for k in (1, 2): taken(page, 'turn', {'to': k})
    taken(page, 'open', {'id': 'run-055'})
    assert page.locator('.stands').inner_text().startswith('remove by ann: asks twice')
    assert not [a for a in page.asked if not a.startswith(('http://127.0.0.1', 'ws://127.0.0.1'))] and not page.dialogs


def test_hostile_records_run_nothing_in_the_app(app, open_page, shots):
    p, url = app
    page = open_page(url)
    page.locator('.verifier .list li').first.wait_for(timeout=120_000)
    title = page.title()
    for k in range(len(ATTACKS)):
        page.locator('.list li').nth(k).click()
        settled(page, "k => document.querySelector('.record .head h2')?.textContent.startsWith(`run-0${k < 10 ? '0' : ''}${k}`)", k)
        page.locator('.verifier').focus()
        for key in ('c', 'n', 'ArrowDown', 'd', 'd'): page.keyboard.press(key)
    page.keyboard.press('e')
    assert json.loads(page.locator('.editor textarea').input_value())['unique_trajectory_id'].startswith('run-018')
    page.keyboard.press('Escape')
    assert (page.title(), page.dialogs, [a for a in page.asked if not a.startswith(('http://127.0.0.1:8', 'ws://127.0.0.1:8'))]) == (title, [], [])
    assert not page.evaluate("() => document.documentElement.hasAttribute('data-owned') || document.querySelectorAll('.verifier :is(img, iframe, script, base, link, meta, i, svg)').length")
    assert '{{ 7*7 }}' in page.locator('.list').inner_text() and not re.search('[\x1b\u202e\u2066]', page.locator('.verifier').inner_text())
    page.screenshot(path=shots/'hostile.png')


def test_audit_by_keyboard_and_live(app, run, open_page, shots):
    p, url = app
    page = open_page(url)
    page.locator('.verifier .list li').first.wait_for(timeout=120_000)
    page.get_by_role('button', name='Audit').click()
    settled(page, "() => document.querySelector('.count').textContent.includes('read')")
    text = page.locator('.verifier').inner_text()
    assert 'score' not in text.split('sort')[1].split('\n', 40)[-1] and 'low_overall' not in text
    for k in range(4):
        before = page.locator('.count').inner_text()
        page.locator('.verifier').focus(); page.keyboard.press('j')
        page.locator('.record .head h2').wait_for()
        page.wait_for_timeout(300)
        assert 'Critic' not in page.locator('.record').inner_text()
        page.keyboard.press('x' if k % 2 else 'y')
        settled(page, 'n => document.querySelector(".count").textContent !== n', before)
    page.get_by_role('button', name='reveal').click()
    settled(page, "() => document.querySelector('.items table')")
    assert 'keep or remove' in page.locator('.items table').inner_text()
    page.screenshot(path=shots/'audit.png')
    page.get_by_role('button', name='Leave the audit').click()
    rows = [e for id in ('run-022', 'run-023', 'run-025', 'run-026') for e in Verifier(run).index.encoded_rows(id)]
    ring = Ring(run/'train'/'live')
    for k in range(1, 30):
        pieces = [Piece(e.trajectory_id, e.leaf, 0, e.input_ids, e.spans, [(1 + (i * 7 + k) % 5) * 2 / k if m else None for i, m in enumerate(e.loss_mask)], e.weights) for e in rows]
        ring.put(Step(step=k, steps=90, seconds=.8, loss=6 / k, padded=700, real=sum(map(len, rows)), trained=sum(e.trained for e in rows), rows=[pieces[:2], pieces[2:]], share=.004))
    page.goto(url)
    page.locator('.verifier .list li').first.wait_for(timeout=120_000)
    page.locator('.verifier').focus(); page.keyboard.press('v')
    page.locator('.live .packed button').first.wait_for()
    assert 'step 29 of 90' in page.locator('.live').inner_text()
    page.locator('.live .packed button').first.click()
    page.locator('.record .tok').first.wait_for()
    page.locator('.verifier').focus(); page.keyboard.press('n')
    assert 'nats' in page.locator('.record .status').inner_text()
    ring.put(Step(step=30, steps=90, seconds=.8, loss=.2, padded=700, real=sum(map(len, rows)), trained=9, rows=[pieces[2:]], share=.004))
    settled(page, "() => document.querySelector('.live').textContent.includes('step 30 of 90')")
    page.screenshot(path=shots/'live.png')
