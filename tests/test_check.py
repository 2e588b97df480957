"The check command as a user meets it."
import json
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from actionstudio.schema import Trajectory
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize('wrong', [('--select', 'shcema'), ('--ignore', 'nothing'), ('--fail-on', 'eror'), ('--baseline', 'no.jsonl'), ('--engine', 'rai')])
def test_mistakes_are_one_line(actionstudio, data, tmp_path, wrong):
    code, _, err = actionstudio('check', data, '-o', tmp_path/'x', *wrong, cwd=tmp_path)
    assert code == 2 and err.count('\n') == 1 and not (tmp_path/'x').exists(), err


def many(folder, n=600):  # Runs of all kinds: repaired, removed, said before
    folder.mkdir(exist_ok=True)
    rows = [run(f'r{k}', 'wether' if k % 40 == 7 else 'weather', city=f'City {k % 540}', **({} if k % 3 else {'days': str(k % 540)})) for k in range(n)]
    for r in rows: r["conversation"][-1]["content"] = 'Cold.'
    (folder/'data.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return folder


def same(a, b):
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()} == {'kept.jsonl', 'removed.jsonl', 'findings.jsonl', 'repaired.jsonl', 'report.json'}
    for p in a.iterdir(): assert p.read_bytes() == (b/p.name).read_bytes(), p.name


def test_workers_change_nothing(actionstudio, tmp_path):
    data = many(tmp_path/'in')
    for n in (1, 2, 3): assert actionstudio('check', data, '-o', tmp_path/f'{n}', '--fix', '--workers', n)[0] == 0
    same(tmp_path/'1', tmp_path/'2'); same(tmp_path/'1', tmp_path/'3')
    report = json.loads((tmp_path/'1/report.json').read_text())
    assert report['removed'] == {'unknown-tool': 15} and report['repaired'] == {'mistyped-argument': 195} and report['findings']['near-duplicate'] > 50
    for n in (1, 2): assert actionstudio('check', data, '-o', tmp_path/f'known {n}', '--fix', '--workers', n, '--baseline', tmp_path/'1')[0] == 0
    same(tmp_path/'known 1', tmp_path/'known 2')
    assert json.loads((tmp_path/'known 2/report.json').read_text())['new'] == {}
    assert actionstudio('check', data, '-o', tmp_path/'none', '--workers', '0')[0] == 2 and not (tmp_path/'none').exists()
    with open(data/'data.jsonl', 'a') as f: f.write('{"no": "run"}\n')
    told = [actionstudio('check', data, '-o', tmp_path/'bad', '--workers', n) for n in (1, 2)]
    assert told[0] == told[1] and told[0][0] == 2 and 'data.jsonl:601: found no Unified 2.0 trajectory' in told[0][2] and told[0][2].count('\n') == 1, told
    assert not (tmp_path/'bad').exists()


OWN = '''
import threading

from actionstudio.rules import rule

CITIES = {'City 5', 'City 6'}
lock = threading.Lock()  # In the module, and not sent along: no rule uses it

def named(run): return {c.arguments.get('city') for _, _, c in run.calls} & CITIES

@rule('closed-city', 'error', 'A city that is closed')
def closed(run):
    for city in sorted(named(run)): yield ['conversation', 1], f'found {city}, expected an open city'

@rule('city-again', 'note', 'An earlier run asks about the same city', over='data')
def again():
    seen = set()
    def find(run):
        for _, _, c in run.calls:
            if (city := c.arguments['city']) in seen: yield ['conversation', 1], f'found {city} again, expected another'
            seen.add(city)
    return find
'''


@pytest.fixture
def own_rules(tmp_path, monkeypatch):
    "A module with two rules, which no other process can import."
    from actionstudio import rules
    before = rules.packed()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path/'rules_of_mine.py').write_text(OWN)
    import rules_of_mine
    (tmp_path/'rules_of_mine.py').unlink()
    yield rules_of_mine
    rules.unpack(*before)
    del sys.modules['rules_of_mine']


def test_own_rules_run_in_the_workers(tmp_path, own_rules):
    from actionstudio.check_file import check_file
    report = check_file(many(tmp_path/'in'), tmp_path/'one')
    assert report['findings']['closed-city'] == 4 and report['removed']['closed-city'] == 2 and report['findings']['city-again'] == 60
    check_file(tmp_path/'in', tmp_path/'two', workers=2)
    same(tmp_path/'one', tmp_path/'two')


@pytest.mark.slow
def test_ray_changes_nothing(tmp_path, ray, own_rules):
    from actionstudio.check_file import check_file
    from actionstudio.rules import rule
    from actionstudio.schema import InputError
    check_file(many(tmp_path/'in'), tmp_path/'one', repair=True)
    check_file(tmp_path/'in', tmp_path/'ray', repair=True, engine='ray', workers=2)
    same(tmp_path/'one', tmp_path/'ray')
    with open(tmp_path/'in/data.jsonl', 'a') as f: f.write('{"no": "run"}\n')
    with pytest.raises(InputError, match='data.jsonl:601: found no Unified 2.0 trajectory') as e: check_file(tmp_path/'in', tmp_path/'bad', engine='ray', workers=2)
    assert '\n' not in str(e.value) and not (tmp_path/'bad').exists()
    rule('locked', 'note', 'A rule that cannot travel')(lambda run, lock=threading.Lock(): iter(()))
    with pytest.raises(InputError, match='engine ray: found something that cannot be sent to other machines'): check_file(tmp_path/'in', tmp_path/'bad', engine='ray', workers=2)


@pytest.mark.slow
def test_a_killed_ray_worker_loses_nothing(tmp_path, ray):
    from actionstudio import rules
    from actionstudio.check_file import check_file
    before, died = rules.packed(), tmp_path/'died'

    @rules.rule('dies', 'note', 'A rule that kills its process once')
    def dies(run):
        yield ['conversation', 0], 'found a run, expected none'
        try: os.close(os.open(died, os.O_CREAT | os.O_EXCL))
        except FileExistsError: return
        os.kill(os.getpid(), signal.SIGKILL)

    died.touch(); check_file(many(tmp_path/'in'), tmp_path/'one')
    died.unlink(); check_file(tmp_path/'in', tmp_path/'ray', engine='ray', workers=2)
    rules.unpack(*before)
    assert died.exists()
    same(tmp_path/'one', tmp_path/'ray')


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


@pytest.fixture(scope='module')
def everything(tmp_path_factory):  # (runs by format, refused records, skipped files)
    from actionstudio.convert import convert_file
    from actionstudio.store import read, trajectories
    out = tmp_path_factory.mktemp('all')/'data'
    report, by = convert_file(ROOT/'../shared/data', out, workers=1), {}
    for t in trajectories(out/'data.jsonl'): by.setdefault(t.meta['provenance']['format'], []).append(t)
    return by, list(read(out/'rejected.jsonl')), report['skipped']


def calls_with(runs, *rules):  # (id, place of the call) with a finding of one of the rules
    from actionstudio.rules import check
    return {(t.id, f.path.split('.function')[0]) for t in runs for f in check(t, select=rules)}


@here
def test_every_noise_item_of_the_readme(everything):  # The items that no other test above has
    from actionstudio.rules import check
    by, refused, skipped = everything
    toolace, bank, bench = by['toolace'], by['api_bank'], by['toolbench']
    # toolace: an empty call list, two arguments of the wrong type, 36 records that end on a call (one of them was refused)
    assert any(r['reason'] == 'lost_call' and '[85]' in r['place'] for r in refused)
    assert {f.path.rsplit('.')[-1] for t in toolace if t.id.endswith('-81') for f in check(t, select=['mistyped-argument'])} == {'origin', 'destination'}
    assert len({id for id, _ in calls_with(toolace, 'ends-on-call')}) + 1 == 36
    # api_bank: an empty file, four that end on the user, 20 calls with names that the schema lacks or misses
    assert skipped['api_bank_lv1/samples/SearchEngine-level-1-1.jsonl'] == 'empty'
    assert {id for id, _ in calls_with(bank, 'unfinished-run')} == {'DeleteAccount-ModifyPassword-GetUserToken-level-2-5', 'ModifyMeeting-level-1-3', 'QueryScene-level-1-1', 'SearchEngine-level-1-2'}
    assert len(calls_with(bank, 'missing-argument', 'unexpected-argument', 'enum')) == 20
    # toolbench: an undeclared tool, two records that are no data, four that give up
    assert [id.split('_Chat')[0] for id, _ in calls_with(bench, 'unknown-tool')] == ['G3_answer/21']
    kept = {t.id.split('_Chat')[0] for t in bench}
    assert not kept & {'G1_answer/69', 'G3_answer/8'} and sum('_ChatGPT_DFS' in r['place'] for r in refused) == 2
    assert sum(t.meta['labels']['finish_type'] == 'give_up' for t in bench) == 4
    # bfcl: a gold argument that the schema lacks is found where the call carries it, and left out where it is optional
    lacks = {t.id: t for t in by['bfcl'] if t.id in ('parallel_multiple_12', 'parallel_multiple_26')}
    assert calls_with(lacks.values(), 'unexpected-argument') == {('parallel_multiple_26', 'conversation[1].tool_calls[1]')}
    gold = lacks['parallel_multiple_12']
    assert 'permeability' in gold.meta['labels']['allowed'][0] | gold.meta['labels']['allowed'][1] and 'permeability' not in str(gold.conversation)
    # tau_bench: no schema violation, 57 runs without reward
    assert not calls_with(by['tau_bench'], 'schema') and sum(t.meta['scores'] == {'reward': 0.0} for t in by['tau_bench']) == 57
    # swe-gym: each record ends on a call, four of them to finish
    ends = [f.message for t in by['openai'] for f in check(t, select=['ends-on-call'])]
    assert sum('(finish)' in m for m in ends) == 4 and sum('(str_replace_editor)' in m for m in ends) == 1


@here
def test_no_source_is_lost_to_a_rule_that_does_not_fit(everything):  # toolace is: a converter lost the names of its tools
    from actionstudio.rules import check
    by, _, _ = everything
    lost = {name: sum(any(f.severity == 'error' for f in check(t)) for t in runs) / len(runs) for name, runs in by.items() if len(runs) >= 10}
    assert {name for name, share in lost.items() if share > 0.3} == {'toolace'}, lost
    assert not any(f.rule == 'secret' for runs in by.values() for t in runs for f in check(t, select=['secret']))  # All that look like keys there are samples


RUNS = st.lists(st.sampled_from(['good', 'wether', '3', 'cut']), max_size=12)


@settings(max_examples=25, deadline=None)
@given(RUNS, st.booleans(), st.sets(st.sampled_from(['schema', 'links', 'shape', 'conduct', 'grounding', 'data', 'unknown-tool'])))
def test_nothing_is_lost_and_a_baseline_silences_all(kinds, fix, ignore):
    from actionstudio.check_file import check_file, failing
    from actionstudio.rules import Repair, undo
    from actionstudio.store import read, trajectories
    made = [run(f'{kind}{k}', 'wether' if kind == 'wether' else 'weather', city='Oslo', **({'days': '3'} if kind == '3' else {})) for k, kind in enumerate(kinds)]
    for kind, r in zip(kinds, made):
        if kind == 'cut': r['conversation'].pop(2)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder/'in.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in made))
        first = check_file(folder/'in.jsonl', folder/'a', ignore=sorted(ignore), repair=fix)
        again = check_file(folder/'in.jsonl', folder/'b', ignore=sorted(ignore), repair=fix, baseline=folder/'a')
        kept, removed = list(trajectories(folder/'a/kept.jsonl')), list(read(folder/'a/removed.jsonl'))
        assert first['records_in'] == len(made) == len(kept) + len(removed) == first['records_out'] + sum(first['removed'].values())
        assert first['findings'] == again['findings'] and failing(again, ['any']) == {} and sum(first['findings'].values()) == sum(1 for _ in read(folder/'a/findings.jsonl'))
        repairs = {r['id']: msgspec.convert(r['repairs'], list[Repair]) for r in read(folder/'a/repaired.jsonl')}
        back = {t.id: undo(t, repairs.get(t.id, [])) for t in (*kept, *(Trajectory.from_dict(r['raw']) for r in removed))}
        assert back == {r['unique_trajectory_id']: Trajectory.from_dict(r) for r in made}


def test_a_rule_explains_itself_and_a_typo_finds_it(actionstudio, tmp_path):
    code, out, err = actionstudio('check', '--explain', 'missing-argument')
    assert code == 0 and 'passes' in out and 'missing, expected a value' in out
    code, _, err = actionstudio('check', '--explain', 'mising-argument')
    assert (code, err.count('\n')) == (2, 1) and 'did you mean missing-argument' in err
