"Mixtures as a user makes them: recipes, mistakes, decisions, packed sources, many workers."
import gzip
import json
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT


def run(id, text, tool='f', calls=1, **meta):
    said = {"role": "assistant", "content": "no"} if not calls else {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": tool, "arguments": {"x": text}}}]}
    return {"unique_trajectory_id": id, "task_instruction": "", "tools": [{"type": "function", "function": {"name": tool, "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}],
            "conversation": [{"role": "user", "content": text}, said], "meta": meta}


def lines(path, records):
    with (gzip.open if path.suffix == '.gz' else open)(path, 'wt') as f: f.writelines(json.dumps(r) + '\n' for r in records)
    return str(path)


def load(path): return [json.loads(x) for x in path.read_text().splitlines()]


@pytest.fixture
def make(actionstudio, tmp_path):
    def make(out='mix', **recipe):
        (tmp_path/'mix.yaml').write_text(yaml.safe_dump(recipe, sort_keys=False))
        return actionstudio('mix', tmp_path/'mix.yaml', '-o', tmp_path/out)
    return make


def test_every_record_is_accounted_for(make, tmp_path):
    a = lines(tmp_path/'a.jsonl', [run(f'a{k}', f'say {k} to them', f'tool{k % 7}') for k in range(40)] + [run('e', 'only to measure', split='evaluation'), run('n', 'another', licence='NC')])
    b = lines(tmp_path/'b.jsonl.gz', [run(f'a{k}', f'chat {k} about it', calls=0, scores={'overall': k % 5}) for k in range(20)] + [run('copy', 'say 3 to them', 'tool3')])
    bench = lines(tmp_path/'bench.jsonl', [run('b', 'unheard of', 'tool5')])
    code, out, err = make(licences=['MIT'], seed=3, held_out={'share': 0.2}, against={'path': bench}, sources={
        'calls': {'path': a, 'licence': 'MIT', 'epochs': 2}, 'chat': {'path': b, 'licence': 'MIT', 'where': {'scores.overall': '>= 2'}, 'epochs': 0.5}})
    assert code == 0, err
    report, train, held, removed = json.loads((tmp_path/'mix/report.json').read_text()), *(load(tmp_path/'mix'/f'{k}.jsonl') for k in ('train', 'heldout', 'removed'))
    assert report['records_in'] == 63 == report['records_out'] + len(removed) and sum(report['removed'].values()) == len(removed)
    assert len(train) == report['train'] == len({d['unique_trajectory_id'] for d in train}) and len(held) == report['heldout']
    assert {r['reason'] for r in removed} >= {'evaluation_only', 'licence', 'contaminated_tool', 'filtered', 'not_drawn'} and all(r['id'] and r['place'].split(':')[1] for r in removed)
    assert not {x['function']['name'] for d in train for x in d['tools']} & {x['function']['name'] for d in held for x in d['tools']}
    assert sum('repeat' in d['meta'].get('provenance', {}) for d in train) == report['sources']['calls']['trained']
    assert not list((tmp_path/'mix').glob('*pool*')) and 'calls' in out


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_another_order(make, tmp_path):
    sources = {k: {'path': lines(tmp_path/f'{k}.jsonl', [run(f'{k}{i}', f'{k} asks {i}') for i in range(n)]), 'weight': w} for k, n, w in (('a', 30, 0.7), ('b', 30, 0.3))}
    for out, seed in (('one', 1), ('two', 1), ('other', 2)): assert make(out, sources=sources, seed=seed)[0] == 0
    text = {k: (tmp_path/k/'train.jsonl').read_bytes() for k in ('one', 'two', 'other')}
    assert text['one'] == text['two'] != text['other']
    order = [d['unique_trajectory_id'][0] for d in load(tmp_path/'one/train.jsonl')]
    assert len(order) == 42 and all(abs(order[:k].count('a') - 0.7 * k) <= 1.0 for k in range(len(order) + 1)), order


def test_the_number_of_processes_changes_nothing(actionstudio, tmp_path):
    a, b = lines(tmp_path/'a.jsonl', [run(f'a{k}', f'say {k % 90} to them all, whatever they answer', f'tool{k % 90 % 7}') for k in range(120)]), lines(tmp_path/'b.jsonl.gz', [run(f'a{k}', f'{k} words', calls=0) for k in range(30)])
    (tmp_path/'mix.yaml').write_text(yaml.safe_dump({'sources': {'a': {'path': a, 'epochs': 1.5}, 'b': {'path': b}}, 'near_duplicates': 0.9, 'held_out': {'share': 0.2}}))
    for n in '13': assert actionstudio('mix', tmp_path/'mix.yaml', '-o', tmp_path/n, '--workers', n)[0] == 0
    for name in ('train.jsonl', 'heldout.jsonl', 'removed.jsonl', 'report.json', 'chart.png'): assert (tmp_path/'1'/name).read_bytes() == (tmp_path/'3'/name).read_bytes(), name
    assert (tmp_path/'1/removed.jsonl').stat().st_size and (tmp_path/'1/heldout.jsonl').stat().st_size
    lines(tmp_path/'a.jsonl', [{'unique_trajectory_id': 'x'}])
    code, _, err = actionstudio('mix', tmp_path/'mix.yaml', '-o', tmp_path/'4', '--workers', '2')
    assert code == 2 and 'a.jsonl:1: found no Unified 2.0 trajectory' in err and err.count('\n') == 1, err


def test_mistakes_are_one_line_that_names_the_key(make, actionstudio, tmp_path):
    a = lines(tmp_path/'a.jsonl', [run('a', 'hello there', scores={'overall': 3})])
    for recipe, *words in (({'sourcs': {}}, 'mix.yaml:1', '`sourcs`', 'did you mean `sources`'), ({'sources': {'x': {'path': a, 'wher': {}}}}, 'mix.yaml:4', '`sources.x.wher`', '`where`'),
                           ({'sources': {'x': {'path': a, 'where': {'min_turn': 1}}}}, 'mix.yaml:5', '`sources.x.where.min_turn`', '`min_turns`'),
                           ({'sources': {'x': {'path': a, 'where': {'scores.overal': 1}}}}, '`sources.x.where.scores.overal`', 'did you mean `scores.overall`'),
                           ({'sources': {'x': {'path': str(tmp_path/'no.jsonl')}}}, '`sources.x.path`', 'found nothing'), ({'sources': {'x': {'path': a}}, 'decisions': str(tmp_path/'no.sqlite')}, 'no.sqlite', 'found nothing'),
                           ({'sources': {'x': {'path': a}}, 'seed': -1}, 'mix.yaml:4', '`seed`', 'found -1'), ({'sources': {'x': {'path': a}}, 'held_out': {'by': 'tools'}}, '`held_out.by`', 'found "tools"'),
                           ({'sources': {'x': {'path': a, 'wieght': 1}}}, '`sources.x.wieght`', '`weight`'), ({'sources': {'x': {'path': a}}, 'against': {'pth': a}}, '`against.pth`', '`path`'),
                           ({'sources': {'x': {'path': a}}, 'near_duplicates': 80}, '`near_duplicates`', 'found 80'), ({'sources': {'x': a}}, '`sources.x`', 'expected a mapping')):
        code, _, err = make(**recipe)
        assert code == 2 and err.count('\n') == 1 and all(w in err for w in words), err
        assert not (tmp_path/'mix').exists()
    (tmp_path/'broken.jsonl').write_text('{"x": \n')
    code, _, err = make(sources={'x': {'path': str(tmp_path/'broken.jsonl')}})
    assert code == 2 and 'broken.jsonl:1' in err
    code, _, err = actionstudio('mix', tmp_path/'mix.yaml', '-o', tmp_path/'mix', '--held-out', '0.2')
    assert code == 2 and '--held-out: found beside a recipe' in err


def test_a_reviewers_last_word_counts(make, tmp_path):
    from actionstudio.decisions import Decisions
    from actionstudio.schema import Trajectory
    a = lines(tmp_path/'a.jsonl', records := [run(f'a{k}', f'question {k} of ours') for k in range(4)])
    d = Decisions(tmp_path/'decisions.sqlite')
    d.decide('a0', 'remove', 'wrong city', 'ann'); d.decide('a1', 'remove'); d.decide('a1', 'keep'); d.decide('a2', 'edit', record=Trajectory.from_dict(run('a2', 'a better question')))
    d.close()
    assert make(sources={'x': {'path': a}}, decisions=str(tmp_path/'decisions.sqlite'))[0] == 0
    train, removed = load(tmp_path/'mix/train.jsonl'), load(tmp_path/'mix/removed.jsonl')
    assert {t['unique_trajectory_id'] for t in train} == {'a1', 'a2', 'a3'} and [r['reason'] for r in removed] == ['decided_remove'] and 'wrong city' in removed[0]['message']
    assert next(t for t in train if t['unique_trajectory_id'] == 'a2') != records[2]


def test_tokens_are_counted_with_a_tokenizer(actionstudio, tmp_path, model):
    (tmp_path/'mix.yaml').write_text(yaml.safe_dump({'sources': {'x': {'path': lines(tmp_path/'a.jsonl', [run(f'a{k}', f'question {k}') for k in range(4)]), 'epochs': 2}}}))
    code, out, err = actionstudio('mix', tmp_path/'mix.yaml', '-o', tmp_path/'mix', '--tokenizer', model)
    assert code == 0, err
    encode = actionstudio('encode', tmp_path/'mix/train.jsonl', '--tokenizer', model, '-o', tmp_path/'encoded')
    made, mixed = json.loads((tmp_path/'encoded/report.json').read_text()), json.loads((tmp_path/'mix/report.json').read_text())['sources']['x']
    assert encode[0] == 0 and (made['tokens'], made['trained_tokens']) == (mixed['tokens'], mixed['trained_tokens'])


def test_workers_of_all_ranks_read_each_element_once():
    "Each worker is a process of its own and computes only its part."
    code = ('import sys; from actionstudio.interleave import Interleaved, share_of; r, w = map(int, sys.argv[1:]); m = Interleaved([50, 20, 3], [100, 25, 6], 7);'
            'print([(k, e.source, e.record, e.epoch) for k in share_of(len(m), r, 2, w, 2) for e in [m[k]]])')
    parts = [json.loads(subprocess.run([sys.executable, '-c', code, str(r), str(w)], cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace('(', '[').replace(')', ']'))
             for r in range(2) for w in range(2)]
    from actionstudio.interleave import Interleaved
    whole = [[k, e.source, e.record, e.epoch] for k, e in enumerate(Interleaved([50, 20, 3], [100, 25, 6], 7))]
    assert sorted(sum(parts, [])) == whole and len(whole) == 131


def test_the_order_is_the_same_on_every_machine():
    from actionstudio.interleave import Interleaved
    assert ' '.join('abc'[e.source] + str(e.record) for e in Interleaved([4, 3, 2], [6, 3, 2], 11)) == ORDER


ORDER = 'a1 a2 b2 a3 c1 a0 b1 a1 b0 a0 c0'
