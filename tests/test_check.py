"The check command as a user meets it."
import json

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


@pytest.mark.skipif(not (ROOT/'../shared/data').exists(), reason='no shared data here')
def test_the_noise_that_the_real_data_is_known_for():
    from actionstudio.convert import convert, scan_joined
    from actionstudio.rules import check
    shared = ROOT/'../shared/data'
    def errors(path, *select):
        return [(t.id, f.rule) for t in convert(scan_joined(shared/path), source='s').trajectories for f in check(t, select=select) if f.severity == 'error']
    assert errors('glaive_sharegpt_en/glaive_toolcall_en_demo.json', 'schema') == [('s-259', 'mistyped-argument')]
