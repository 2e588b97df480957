"What the verifier shows is what the commands print, and what is decided in it is what a mix makes."
import json
import re

import pytest

from actionstudio.assets import bfcl_files
from actionstudio.store import read, write
from actionstudio.verifier import Verifier


def record(k):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 3 if k % 5 else "3"} | ({"town": "x"} if k % 7 == 3 else {})}}
    tool = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "additionalProperties": False}
    return {"unique_trajectory_id": f'run-{k:02}', "task_instruction": "Answer.", "meta": {"source": ('airline', 'retail')[k % 2]}, "tools": [{"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": tool}}],
            "conversation": [{"role": "user", "content": f'Is it warm in Oslo, three days from now? Number {k // 2 * 2}.' + ' Please. ' * (40 * (k == 12))}, {"role": "assistant", "content": "", "tool_calls": [call]},
                             {"role": "tool", "name": "weather", "tool_call_id": "1", "content": "-4 °C"}, {"role": "assistant", "content": "No: -4 °C."}]}


@pytest.fixture
def made(tmp_path, actionstudio, model):
    write(tmp_path/'raw.jsonl', map(record, range(20)))
    run = tmp_path/'run'
    said = [actionstudio('convert', tmp_path/'raw.jsonl', '-o', run/'data'), actionstudio('check', run/'data', '-o', run/'checked', '--lines', 1000, '--fail-on', 'error'),
            actionstudio('encode', run/'checked'/'kept.jsonl', '-o', run/'encoded', '--tokenizer', model, '--max-length', 220)]
    return run, said


def test_the_verifier_shows_what_check_and_encode_print(made, model):
    run, (_, check, encode) = made
    v, remarks = Verifier(run, model), {}
    for id in v.index.ids: remarks[id] = {c.name: c.remarks for c in v.record_sheet(id).checks}
    shown = {f"{id}: {r.path}: {r.severity} {r.by}: {r.text}{' (fixable)' * bool(r.fix)}" for id, by in remarks.items() for r in by['Format Checker'] if r.severity != 'note'}
    printed = {line for line in check[1].splitlines() if line.startswith('run-') and ': ' in line}
    found = list(read(run/'checked'/'findings.jsonl'))
    assert check[0] == 1 and 'as --fail-on asked' in check[2] and printed <= shown and len({line.split(': ')[2].split()[-1] for line in printed}) > 2
    assert shown == {f"{f['id']}: {f['path']}: {f['severity']} {f['rule']}: {f['message']}{' (fixable)' * f['fixable']}" for f in found if f['severity'] != 'note'}
    assert any('near-duplicate' in x or 'duplicate' in x for x in shown)
    refused = {line for line in encode[1].splitlines() if ': error ' in line}
    assert encode[0] == 1 and refused and 'samples were removed' in encode[2]
    for x in read(run/'encoded'/'removed.jsonl'):
        [r] = [r for r in remarks[x['id']]['Chat Template Checker'] if r.severity == 'error']
        assert x['message'].startswith(f"{x['place']}: {x['id']}: ")
        said = x['message'].removeprefix(f"{x['place']}: {x['id']}: ")
        assert f"{x['id']}: error {x['reason']}: {said}; fix: {r.fix}" in refused and r.text == said
    code = json.loads((run/'encoded'/'certificate.json').read_text())['chat_template'][:8]
    assert {k: n for k, n in v.counts['template'].items() if k} == {f'{model.name} ({code})': sum(v.index.table['rows'] > 0)}


def test_a_mix_obeys_what_was_decided_in_the_widget(made, actionstudio, model):
    run, _ = made
    v = Verifier(run, model, 'ann')
    w = v.widget()
    def step(name, **how): w._handle_custom_msg({'step': name, 'how': how}, []); assert not w.state['error'], w.state['error']
    kept = [r['unique_trajectory_id'] for r in read(run/'checked'/'kept.jsonl')]
    better = record(int(kept[1][4:])); better['conversation'][3]['content'] = 'No, it is -4 °C.'
    for id, how in zip(kept, [{'decision': 'remove', 'note': 'asks twice'}, {'decision': 'edit', 'record': json.dumps(better)}, {'decision': 'second_look'}, {'decision': 'keep'}, {'decision': 'remove'}]):
        step('open', id=id); step('decide', **how)
    step('undo')
    code, _, err = actionstudio('mix', run/'checked'/'kept.jsonl', '-o', run/'mixed', '--held-out', '0.2')
    assert code == 0, err
    out = {r['unique_trajectory_id']: r for name in ('train', 'heldout') for r in read(run/'mixed'/f'{name}.jsonl')}
    gone = {r['id']: (r['reason'], r['message']) for r in read(run/'mixed'/'removed.jsonl')}
    assert set(gone) == {kept[0], kept[2]} and gone[kept[0]][0] == 'decided_remove' and 'ann decided remove: asks twice' in gone[kept[0]][1] and gone[kept[2]][0] == 'decided_second_look'
    assert set(out) == set(kept) - set(gone) and out[kept[1]]['conversation'][3]['content'] == 'No, it is -4 °C.'


def test_two_hundred_records_are_one_page_below_three_megabytes(tmp_path, actionstudio, model):
    [questions] = [f for f in bfcl_files() if f.stem == 'BFCL_v4_multiple']
    run, page = tmp_path/'run', tmp_path/'page.html'
    for command in (('convert', questions, '-o', run/'data'), ('check', run/'data', '-o', run/'checked'), ('encode', run/'checked'/'kept.jsonl', '-o', run/'encoded', '--tokenizer', model), ('view', run, '--tokenizer', model, '-o', page)):
        code, said, err = actionstudio(*command)
        assert code == 0, err
    html = page.read_text(encoding='utf-8')
    assert [p.name for p in tmp_path.glob('*.html')] == ['page.html'] and page.stat().st_size < 3_000_000
    assert html.count('<article id="r') == 200 and not re.search(r'\b(?:src|href)\s*=\s*["\']?(?:https?:)?//', html) and "default-src 'none'" in html
