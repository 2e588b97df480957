"The facts of the sources with known right calls hold after conversion."
import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actionstudio.convert import Reject, convert, scan_joined
from actionstudio.formats.gold import python_call
from actionstudio.rules import check
from actionstudio.schema import calls_of
from actionstudio.store import Rejected, read

DATA = Path(__file__).parent.parent.parent/'shared'/'data'
here = pytest.mark.skipif(not DATA.is_dir(), reason='no ../shared/data here')


def facts(source): return json.loads((DATA/'facts.json').read_text())[source]
def converted(path, **options): return convert(scan_joined(DATA/path), **options)
def calls(c): return [x for t in c.trajectories for _, x in calls_of(t)]
def breaking(c, *codes): return [(t.id, f.rule) for t in c.trajectories for f in check(t) if f.rule in codes]


@pytest.mark.parametrize('file', [f'BFCL_v4_{x}.json' for x in ('irrelevance', 'live_parallel', 'live_simple', 'multi_turn_base', 'multiple', 'parallel', 'parallel_multiple', 'simple_python')])
@here
def test_bfcl(file):
    c, want, many = converted(f'bfcl_v4/{file}'), facts('bfcl_v4')[file], 'multi_turn' in file
    assert c.report.formats == {'bfcl_multi_turn' if many else 'bfcl': want['records']} and not c.rejected
    assert c.trajectories[0].id == want['first_id'] and c.report.renamed_ids == 0
    assert c.report.calls == want.get('gold_calls', 0)
    placed = {'id', 'question', 'function', *c.trajectories[0].meta.get('raw', {})}
    assert {k for k in want['keys'] if k != 'excluded_function'} <= placed | {'excluded_function'}
    if many:  # The questions hold no tools (0 in the facts): ours come from the files of the classes, without the excluded ones
        turns = [n for t in c.trajectories for n in t.meta['labels']['calls_per_turn']]
        assert (len(turns), turns.count(0), want['tools']) == (want['turns'], want['gold_empty_turns'], 0)
        assert sum(m.role == 'user' for t in c.trajectories for m in t.conversation) == want['turns']
        assert not any({x.name for x in t.tools} & set(t.meta['raw'].get('excluded_function', ())) for t in c.trajectories)
        assert c.report.lifted['positional argument → name'] == 40 and not breaking(c, 'unknown-tool')
    else:
        assert c.report.tools == want['tools'] and want['turns'] == want['records']
        assert sum(bool(t.conversation[-1].calls) for t in c.trajectories) == want.get('gold', 0)


@here
def test_bfcl_gold_that_its_schema_lacks():
    c = converted('bfcl_v4/BFCL_v4_parallel_multiple.json')
    assert {id for id, _ in breaking(c, 'unexpected-argument')} == {'parallel_multiple_26'}
    lacking = [t.id for t in c.trajectories for (_, x), allowed in zip(calls_of(t), t.meta['labels']['allowed'])
               if not set(allowed) <= {p for tool in t.tools if tool.name == x.name for p in tool.parameters['properties']}]
    assert lacking == ['parallel_multiple_12', 'parallel_multiple_26']  # In 12 it is optional, so the call goes without it


@here
def test_seal_tools():
    c, want = converted('seal_tools/dev.jsonl'), facts('seal_tools')
    assert c.report.formats == {'seal_tools': want['records']} and c.report.calls == want['counts']['calls']
    assert sum(len(t.meta['labels'].get('nested', ())) for t in c.trajectories) == want['counts']['nested_ref']
    assert {f'n{n}': k for n, k in Counter(len(t.conversation[1].calls) for t in c.trajectories).items()} == want['calls_hist']
    assert all(v == t.conversation[1].calls[k].arguments[name] for t in c.trajectories for k, name, v in t.meta['labels'].get('nested', ()))
    assert not breaking(c, 'unknown-tool')


@here
def test_seal_prompt_says_the_same_as_the_plain_form():
    plain, prompt = ({t.meta['provenance'].get('id', t.id): t for t in converted(f'seal_tools/{f}').trajectories} for f in ('dev.jsonl', 'finetune_dev.json'))
    assert len(prompt) == 200 and all(plain[id].conversation == t.conversation for id, t in prompt.items())
    assert all({x.name for x in plain[id].tools} <= {x.name for x in t.tools} for id, t in prompt.items())


@here
def test_toolalpaca():
    c, want = converted('toolalpaca_simulated/eval_simulated.json'), facts('toolalpaca_simulated')['counts']
    steps = [[(x.name, x.arguments) for _, x in calls_of(t)] for t in c.trajectories] + [[(s['Action'], s['Action_Input']) for s in r.raw['Golden_Answer']] for r in c.rejected]
    assert c.report.records_in == want['instructions'] == 100
    assert {f'steps{n}': k for n, k in Counter(map(len, steps)).items()} == {k: n for k, n in want.items() if k.startswith('steps')}
    assert sum(map(len, steps)) == want['calls']
    assert sum('${' in json.dumps(given) for run in steps for _, given in run) == want['placeholder']
    assert {r.reason for r in c.rejected} == {'broken_arguments'}
    assert sum(_no_json(given) for run in steps for _, given in run) == want['input_not_json']  # They stand in 30 records
    declared = {t.id.rpartition('-')[0]: {x.name for x in t.tools} for t in c.trajectories}
    assert (len(declared), sum(map(len, declared.values()))) == (want['apis'], want['functions'])
    whose = [t.id for t in c.trajectories] + [r.id for r in c.rejected]
    assert sum(name not in declared[id.rpartition('-')[0]] for id, run in zip(whose, steps) for name, _ in run) == want['unknown_action']


def _no_json(text):
    try: json.loads(text) if isinstance(text, str) else None
    except ValueError: return True
    return False


@here
def test_toolalpaca_judge():
    c = converted('toolalpaca_simulated/ToolAlpaca13b.json')
    counts = json.loads((DATA/'toolalpaca_simulated/ToolAlpaca13b.json').read_text())['statistics']
    assert (c.report.records_in, c.report.rejected) == (counts['num'], {'empty_run': counts['error_num']})
    for field, key in (('process_correctness', 'process'), ('final_response_correctness', 'response')):
        assert Counter(t.meta['labels'][field] for t in c.trajectories) == counts[key]


@pytest.mark.parametrize('domain', ['cve_cpe', 'emailrep'])
@here
def test_nexusraven(domain):
    c, want = converted(f'nexusraven/{domain}_queries.json'), facts('nexusraven')[domain]
    assert (c.report.records_out, len(c.rejected)) == (want['queries'], len(want['unparsed']))
    assert Counter(x.name for x in calls(c)) == {k: n for k, n in want['functions'].items() if k != '_pos'}
    assert c.report.lifted['positional argument → name'] == want['functions']['_pos'] == 0
    assert not breaking(c, 'unknown-tool', 'unexpected-argument')


@here
def test_nexusraven_never_trains():
    runs = [t for f in sorted((DATA/'nexusraven').glob('*queries*')) for t in converted(f'nexusraven/{f.name}').trajectories]
    assert len(runs) == 78 + 38 + 21 + 116
    assert {(t.meta['licence'], t.meta['split']) for t in runs} == {('CC-BY-NC-4.0', 'evaluation')}


@here
def test_nexusraven_source():
    c = converted('nexusraven/toolllm_queries.json')
    assert c.report.records_out == facts('nexusraven')['toolllm'] and c.report.tools == 210 and not breaking(c, 'unknown-tool', 'unexpected-argument')


@here
def test_nexusraven_standard_says_the_same_as_the_queries():
    runs = [t for d in ('cve_cpe', 'emailrep') for t in converted(f'nexusraven/{d}_queries.json').trajectories]
    both = zip(runs, converted('nexusraven/standardized_queries_cve_cpe_emailrep.jsonl').trajectories, strict=True)
    assert all((a.conversation[0], a.conversation[1].calls[0].name, a.conversation[1].calls[0].arguments) ==
               (b.conversation[0], b.conversation[1].calls[0].name, b.conversation[1].calls[0].arguments) for a, b in both)


@here
def test_xlam_prompt():
    c, want = converted('xlam_prompt_hammer/masking_sft_data_example.json'), facts('xlam_prompt_hammer')
    assert c.report.formats == {'xlam_prompt': want['records']}
    raw = list(read(DATA/'xlam_prompt_hammer/masking_sft_data_example.json'))
    assert list(raw[0]) == want['keys'] and raw[0]['output'] == want['out'] and c.trajectories[0].meta['labels'] == {'expect': 'no_call'}
    assert [[{'name': x.name, 'arguments': x.arguments} for _, x in calls_of(t)] for t in c.trajectories] == [json.loads(r['output'].strip('`\n')) for r in raw]
    assert not breaking(c, 'unknown-tool', 'unexpected-argument')


@here
def test_api_bank():
    want, files = facts('api_bank_lv1'), sorted((DATA/'api_bank_lv1/samples').glob('*.jsonl'))
    empty, runs, roles = [], [], {}
    for f in files:
        c = convert(scan_joined(f), source=f.stem)
        if not c.report.records_in: empty.append(f.name); continue
        [t] = c.trajectories
        said = lambda role: sum(m.role == role and m.content not in ('', None) for m in t.conversation)
        roles[f.name] = {'User': said('user'), 'AI': said('assistant'), 'API': c.report.calls}
        assert c.report.formats == {'api_bank': 1} and c.report.results == c.report.calls and t.meta['provenance']['links'] == 'position'
        runs.append((f.name, t))
    total = sum(map(Counter, roles.values()), Counter())
    assert (len(files), len(empty)) == (want['counts']['files'], want['counts']['empty_file']) and empty == ['SearchEngine-level-1-1.jsonl']
    assert total == {k: want['counts'][k] for k in ('User', 'AI', 'API')}
    assert {k: roles[k] for k in want['first']} == want['first']
    odd = [name for name, t in runs if t.conversation[-1].role != 'assistant']
    assert odd == [name for name, why in want['examples'] if why == 'ends User'] and len(odd) == want['counts']['not_end_AI']


@here
def test_api_bank_calls_that_break_their_schema():
    schemas = json.loads((DATA/'api_bank_lv1/api_schemas.json').read_text())
    runs = [t for f in (DATA/'api_bank_lv1/samples').glob('*.jsonl') for t in convert(scan_joined(f)).trajectories]
    assert {x.name for t in runs for x in t.tools} <= {s['class'] for s in schemas} and len(schemas) == 53
    found = [(f.rule, t.id, f.path.split('.function')[0]) for t in runs for f in check(t, select=['schema'])]
    assert len({(id, call) for rule, id, call in found if rule != 'mistyped-argument'}) == 20
    assert {rule for rule, *_ in found} == {'missing-argument', 'unexpected-argument', 'mistyped-argument'}  # Many lists and numbers are written as text there


@here
def test_apibench():
    c = converted('apibench_torchhub/torchhub_train.json')
    assert c.report.records_in == facts('apibench')['records'] == c.report.records_out + c.report.rejected.total()
    assert c.report.rejected == {'broken_call': 13, 'not_a_literal': 8} and {x.name for x in calls(c)} == {'torch.hub.load'}
    assert all(t.tools == [] and t.conversation[0].content and not t.conversation[0].content.startswith("{'") for t in c.trajectories)


def test_a_broken_line_costs_its_dialogue_only(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"role": "User", "text": "hi"}\n{"role": "AI", "te\n')
    (tmp_path/'b.jsonl').write_text('{"role": "User", "text": "hi"}\n{"role": "AI", "text": "Hello."}\n')
    [(place, broken)], [(_, fine)] = list(scan_joined(tmp_path/'a.jsonl')), list(scan_joined(tmp_path/'b.jsonl'))
    assert isinstance(broken, Rejected) and (broken.reason, broken.place, place) == ('broken_json', 'a.jsonl:2', 'a.jsonl')
    assert len(convert([fine]).trajectories[0].conversation) == 2


@pytest.mark.parametrize('name, record', [
    ('seal_tools', {'id': 's', 'query': 'q', 'calling': [3]}), ('seal_tools', {'id': 's', 'query': 'q', 'calling': None}),
    ('bfcl_multi_turn', {'id': 'm', 'question': [], 'involved_classes': [{}], 'initial_config': {}}),
    ('api_bank', {'id': 'a', 'dialog': [{'role': 'API', 'text': ''}]}), ('nexusraven', {'query': 'q', 'reference': 3}),
    ('nexusraven_source', {'Input': 'q', 'Output': 'f()', 'context': ['import os']}), ('apibench', {'code': '', 'api_call': 'f()', 'provider': '', 'api_data': {}}),
    ('toolalpaca', {'Function_Description': {'f': 'no parameters here'}, 'Instruction': 'q', 'Golden_Answer': []})])
def test_odd_records_are_refused(tmp_path, name, record):
    (tmp_path/'x.jsonl').write_text(json.dumps(record) + '\n')
    c = convert(scan_joined(tmp_path/'x.jsonl', name), name)
    assert (c.report.records_in, c.report.records_out, len(c.rejected)) == (1, 0, 1)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(), st.builds('{}({}{})'.format, st.sampled_from(['f', 'a.b', 'r = f', '']), st.text(max_size=12),
                                      st.sampled_from(['', 'x=1', ", y='é'", ', **z', ', k=[1, (2.5, None)]', ', n=-3, n=4', ", s='\\ud800'"]))))
def test_python_text_is_read_or_refused(text):
    try: name, arguments = python_call(text, {'f': ['one', 'two']})
    except Reject: return
    assert name and isinstance(arguments, dict)
    if 'ud800' not in text: assert msgspec.json.decode(msgspec.json.encode(arguments)) == arguments
