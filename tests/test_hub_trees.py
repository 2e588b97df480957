"The facts of ToolBench's search trees hold after conversion."
import json
from pathlib import Path

import pytest

from actionstudio.convert import convert, scan_joined
from actionstudio.formats.trees import toolbench_name, tree_pairs
from actionstudio.rules import check
from actionstudio.schema import calls_of, problems
from actionstudio.store import read, trajectories

DATA = Path(__file__).parent.parent.parent/'shared'/'data'
TREES = DATA/'toolbench_dfs'
pytestmark = pytest.mark.skipif(not TREES.is_dir(), reason='no ../shared/data here')
FILES = sorted((TREES/'answer').rglob('*.json'))


def test_answers():
    want = json.loads((DATA/'facts.json').read_text())['toolbench_dfs']
    done = {f: convert(scan_joined(f)) for f in FILES}
    assert len(FILES) == 15 and {f.name for f in FILES} == set(want)
    last = {f.name: f for f in FILES}  # The facts go by file name, and 10_… is in G1 and G2: the later one stands there
    for name, x in want.items():
        c = done[last[name]]
        if not x['valid']:
            assert [r.reason for r in c.rejected] == ['no_branch'] and not c.trajectories and x['chains'] is None
            assert len(c.rejected[0].raw['answer_generation']['function']) == x['functions'] and c.rejected[0].raw['win'] == x['win']
            continue
        [t] = c.trajectories
        assert (t.meta['labels']['win'], t.meta['labels']['valid_data'], len(t.tools)) == (x['win'], x['valid'], x['functions'])
        assert len(t.conversation) + bool(t.task_instruction) == x['last_len']
        assert [k.name for _, k in calls_of(t)] == x['names'] and c.report.calls == x['calls_incl_finish']
        assert sum(m.role == 'assistant' for m in t.conversation) == x['chains']  # Each chain ends one assistant message later
        assert c.report.results == c.report.calls - 1 and t.meta['provenance']['links'] == 'position'  # `Finish` is not answered


def test_the_noise_is_labelled():
    runs = {t.id.split('_ChatGPT')[0]: t for f in FILES for t in convert(scan_joined(f)).trajectories}
    gave_up = ['G2_answer/10', 'G2_answer/119', 'G2_answer/127', 'G3_answer/13']
    assert sorted(k for k, t in runs.items() if t.meta['labels']['finish_type'] == 'give_up') == gave_up
    assert [k for k, t in runs.items() if any(f.rule == 'unknown-tool' for f in check(t))] == ['G3_answer/21']
    assert len(runs) == 13


def test_nothing_of_the_earlier_prefixes_is_lost():
    for f in FILES:
        *earlier, last = json.loads(f.read_text())['answer_generation'].get('train_messages') or [[]]
        kept = [t.meta['raw'].get('train_messages', []) for t in convert(scan_joined(f)).trajectories]
        assert all(x == last[:len(x)] or x in kept[0] for x in earlier)


def test_pairs():
    found = {f: tree_pairs(json.loads(f.read_text()), f.stem) for f in FILES if 'answer' in f.parts and json.loads(f.read_text())['win']}
    assert sum(map(len, found.values())) == 6
    for f, pairs in found.items():
        [t] = convert(scan_joined(f)).trajectories
        branch = [(x.name, x.arguments) for _, x in calls_of(t)]
        for p in pairs:
            assert problems(p) == [] and p['chosen'] != p['rejected']
            made = [(c['function']['name'], c['function']['arguments']) for m in p['conversation'] + p['chosen'] for c in m.get('tool_calls', [])]
            assert made == branch  # The shared part and the chosen one are the winning branch
            assert p['chosen'][-1]['role'] == p['rejected'][-1]['role'] == 'assistant'
            ids = [c['id'] for m in p['conversation'] + p['chosen'] for c in m.get('tool_calls', [])]
            assert len(ids) == len(set(ids))


def test_questions():
    for name, n in (('G1_query', 5), ('G2_query', 3), ('G3_query', 2), ('inference_query_demo', 1), ('inference_query_demo_open_domain', 1)):
        raw, c = json.loads((TREES/f'instruction/{name}.json').read_text()), convert(scan_joined(TREES/f'instruction/{name}.json'))
        assert c.report.formats == {'toolbench_query': n} and len(raw) == n
        assert c.report.tools == sum(len(r.get('api_list', [])) for r in raw)
        assert all(set(t.meta.get('labels', {}).get('relevant', [])) <= {x.name for x in t.tools} for t in c.trajectories)


def test_questions_and_answers_name_functions_alike():
    offered = {f['name'] for file in FILES for f in json.loads(file.read_text())['answer_generation']['function']}
    asked = {toolbench_name(a['api_name'], a['tool_name']) for file in (TREES/'instruction').glob('G*.json') for r in json.loads(file.read_text()) for a in r['api_list']}
    assert len(asked & offered) >= 5


def test_a_broken_document_is_one_rejected_record(tmp_path):
    (tmp_path/'x.json').write_text('{\n "win": true,\n "tree": {\n  "tree"')
    assert [r.reason for r in convert(scan_joined(tmp_path/'x.json')).rejected] == ['broken_json']


def test_pairs_by_the_command(tmp_path, actionstudio):
    code, _, err = actionstudio('convert', TREES/'answer', '--format', 'toolbench_pairs', '-o', tmp_path/'pairs')
    report = json.loads((tmp_path/'pairs/report.json').read_text())
    assert code == 0 and (report['records_out'], report['formats']) == (6, {'toolbench_pairs': 6}), err
    runs = list(trajectories(tmp_path/'pairs/data.jsonl'))
    trees = {t.id.rpartition('-pair-')[0] for t in runs} | {r['id'] for r in read(tmp_path/'pairs/rejected.jsonl')}
    assert len(trees) == len(FILES) == 15 and set(report['rejected']) == {'no_pair'}
    assert all(t.chosen and t.rejected and t.tools and t.meta['provenance']['place'] for t in runs)
