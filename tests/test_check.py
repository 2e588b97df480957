"The check command as a user meets it."
import json
from collections import Counter

import pytest
from conftest import ROOT

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}


def run(id, name='weather', **arguments):
    return {"unique_trajectory_id": id, "task_instruction": "", "tools": [TOOL], "conversation": [
        {"role": "user", "content": "Oslo, 3 days"}, {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}]},
        {"role": "tool", "name": name, "tool_call_id": "c", "content": "-4"}, {"role": "assistant", "content": f"Cold, said {id}."}]}


@pytest.fixture
def data(tmp_path):
    (tmp_path/'in').mkdir()
    (tmp_path/'in/data.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in (run('good', city='Oslo'), run('bad', 'wether', city='Oslo'), run('text', city='Oslo', days='3'))))
    return tmp_path/'in'


def test_reads_like_a_linter(actionstudio, data, tmp_path):
    code, out, err = actionstudio('check', data, '-o', tmp_path/'out', '--ignore', 'near-duplicate')
    assert (code, err) == (0, '')
    assert 'bad: conversation[1].tool_calls[0].function.name: error unknown-tool' in out and 'text: ' in out
    report = json.loads((tmp_path/'out/report.json').read_text())
    assert report['records_in'] == 3 and report['removed'] == {'unknown-tool': 1, 'mistyped-argument': 1}


def test_fail_on_and_baseline(actionstudio, data, tmp_path):
    assert actionstudio('check', data, '-o', tmp_path/'a', '--fail-on', 'error')[0] == 1
    assert actionstudio('check', data, '-o', tmp_path/'b', '--fail-on', 'error', '--baseline', tmp_path/'a')[0] == 0
    assert actionstudio('check', data, '-o', tmp_path/'c', '--fail-on', 'grounding')[0] == 0


def test_fix_is_counted(actionstudio, data, tmp_path):
    assert actionstudio('check', data, '-o', tmp_path/'a', '--fix')[0] == 0
    assert json.loads((tmp_path/'a/report.json').read_text())['repaired'] == {'mistyped-argument': 1}
    assert json.loads((tmp_path/'a/repaired.jsonl').read_text())['repairs'][0]['before'] == '3'


@pytest.mark.parametrize('wrong', [('--select', 'shcema'), ('--ignore', 'nothing'), ('--fail-on', 'eror'), ('--baseline', 'no.jsonl')])
def test_mistakes_are_one_line(actionstudio, data, tmp_path, wrong):
    code, _, err = actionstudio('check', data, '-o', tmp_path/'x', *wrong, cwd=tmp_path)
    assert code == 2 and err.count('\n') == 1 and not (tmp_path/'x').exists(), err


here = pytest.mark.skipif(not (ROOT/'../shared/data').exists(), reason='no shared data here')


def checked(path, *select):  # (conversion, finding counts by rule, [(id, finding)])
    from actionstudio.convert import convert, scan_joined
    from actionstudio.rules import check
    c = convert(scan_joined(ROOT/'../shared/data'/path), source='s')
    found = [(t.id, f) for t in c.trajectories for f in check(t, select=select)]
    return c, Counter(f.rule for _, f in found), found


@here
def test_glaive_has_one_wrong_call():
    assert [(id, f.rule) for id, f in checked('glaive_sharegpt_en/glaive_toolcall_en_demo.json', 'schema')[2]] == [('s-259', 'mistyped-argument')]


@here
def test_toolace_names_tools_that_are_not_listed():  # The 162nd stands in the record whose other call was lost
    c, n, _ = checked('toolace_mangled/sharegpt_func_fixed.json', 'unknown-tool')
    assert n == {'unknown-tool': 161} and [r.reason for r in c.rejected] == ['lost_call']


@here
def test_toolalpaca_placeholders_and_undeclared_actions():  # Each is found by its rule, or stands in a record that conversion refused
    c, n, found = checked('toolalpaca_simulated/eval_simulated.json', 'unknown-tool', 'placeholder-argument')
    tools = {t.id.rpartition('-')[0]: {x.name for x in t.tools} for t in c.trajectories}
    refused = [(r.id.rpartition('-')[0], s) for r in c.rejected for s in r.raw['Golden_Answer']]
    assert {r.reason for r in c.rejected} == {'broken_arguments'}
    assert n['unknown-tool'] + sum(s['Action'] not in tools[api] for api, s in refused) == 9
    calls = {(id, f.path.split('.function')[0]) for id, f in found if f.rule == 'placeholder-argument'}
    assert len(calls) + sum('${' in json.dumps(s['Action_Input']) for _, s in refused) == 33


@here
def test_nnetnav_ids_collide_nine_times():  # The first of them keeps its id
    c, _, found = checked('adp_nnetnav-live/sample_raw.json', 'id-collision')
    same = [t for t in c.trajectories if t.id.split('#')[0] == 'openweb_4613']
    assert len(same) == 9 and sum('openweb_4613' in f.message for _, f in found) == 8
