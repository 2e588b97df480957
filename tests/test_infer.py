"Tools are inferred on request only, for sources that declare none, and every call fits what was inferred from it."
import json

import jsonschema_rs
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_properties import json_values

from actionstudio.convert import convert, convert_file, load_report
from actionstudio.infer import Seen, schema_of
from actionstudio.rules import check
from actionstudio.schema import Trajectory
from actionstudio.store import load_json, read, trajectories, write

SHARED = ROOT.parent/'shared/data'
RUN = {"id": "a", "messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Thought: look\nAction: search[Oslo]"},
                               {"role": "user", "content": "Observation: here"}, {"role": "assistant", "content": "Thought: done\nAction: finish[Oslo]"}]}
CHAT = {"id": "c", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


@settings(deadline=None, max_examples=200)
@given(st.lists(json_values, min_size=1, max_size=5))
def test_values_fit_the_schema_that_they_make(values):
    seen = Seen()
    for v in values: seen.add(v)
    validator = jsonschema_rs.validator_for(schema_of(seen))
    assert all(validator.is_valid(v) for v in values)


def test_only_on_request_and_counted(tmp_path, actionstudio):
    write(tmp_path/'x/a.jsonl', [RUN, CHAT])
    code, out, _ = actionstudio('convert', tmp_path/'x', '-o', tmp_path/'plain')
    assert code == 0 and all(not t.tools and 'tools' not in t.meta['provenance'] for t in trajectories(tmp_path/'plain/data.jsonl'))
    code, out, _ = actionstudio('convert', tmp_path/'x', '--infer-tools', '-o', tmp_path/'with')
    act, chat = trajectories(tmp_path/'with/data.jsonl')
    assert code == 0 and [t.name for t in act.tools] == ['finish', 'search'] and act.meta['provenance']['tools'] == 'inferred'
    assert not chat.tools  # Another format of the same file, and it calls nothing
    report = load_report(tmp_path/'with')
    assert (report.inferred, report.inferred_runs, report.tools) == ({'finish': 1, 'search': 1}, 1, 2) and 'inferred' in out
    assert report.frame().loc[('tool inferred, calls', 'search'), 'all'] == 1


@pytest.mark.parametrize('suffix, shard', [('.jsonl', None), ('.jsonl.zst', 1), ('.parquet', 1)])
def test_every_kind_of_file_and_each_source_apart(tmp_path, suffix, shard):
    write(tmp_path/'a.jsonl', [RUN, RUN]); write(tmp_path/'b.jsonl', [RUN | {"messages": RUN["messages"][:1] + [{"role": "assistant", "content": "Action: stop[now]"}]}])
    report = convert_file([tmp_path/'a.jsonl', tmp_path/'b.jsonl'], tmp_path/'out', infer_tools=True, suffix=suffix, shard=shard)
    runs = list(trajectories(tmp_path/f'out/data{suffix}'))
    assert [[x.name for x in t.tools] for t in runs] == [['finish', 'search']] * 2 + [['stop']]
    assert [r['inferred_runs'] for r in report['sources'].values()] == [2, 1] and report['inferred_runs'] == 3
    assert len(list((tmp_path/'out').glob('data*'))) == (3 if shard else 1)


def test_memory_and_file_agree(tmp_path):
    write(tmp_path/'a.jsonl', [RUN, CHAT, RUN])
    convert_file(tmp_path/'a.jsonl', tmp_path/'out', infer_tools=True)
    c = convert(read(tmp_path/'a.jsonl'), source='a', infer_tools=True)
    assert [t.tools for t in c.trajectories] == [t.tools for t in trajectories(tmp_path/'out/data.jsonl')]
    assert load_report(tmp_path/'out').inferred == c.report.inferred


@pytest.mark.parametrize('name', ['adp_agenttuning_alfworld', 'adp_eto', 'adp_codeactinstruct', 'adp_webarena_successful', 'reflexion_hotpot_react', 'swe_agent_traj_text', 'glaive_sharegpt_en'])
def test_real_sources(tmp_path, name):
    if not SHARED.exists(): pytest.skip('no ../shared/data here')
    convert_file(SHARED/name, tmp_path/'plain')
    report = convert_file(SHARED/name, tmp_path/'out', infer_tools=True)
    if name == 'glaive_sharegpt_en':  # It declares its tools; the runs without tools had none
        assert report['inferred_runs'] == 0 and (tmp_path/'plain/data.jsonl').read_bytes() == (tmp_path/'out/data.jsonl').read_bytes()
        return
    assert sum(report['inferred'].values()) == report['calls'] == load_json(tmp_path/'plain/report.json')['calls'] and report['tools'] > 0
    for t in trajectories(tmp_path/'out/data.jsonl'):
        assert not [f for f in check(t, select=['schema']) if f.severity == 'error']
        assert isinstance(t, Trajectory) and (not t.tools or json.dumps(t.meta['provenance']).count('inferred') == 1)
