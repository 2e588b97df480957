"An evaluation against servers and judges that misbehave: asked again, then unanswered, never right or wrong in silence."
import json
import time
from collections import Counter
from functools import partial

import pytest
from toy_server import Server, completion

from actionstudio.ask import Endpoint, Unfinished
from actionstudio.evaluate_file import evaluate_file
from actionstudio.schema import InputError
from actionstudio.store import load_json, read, write

KEY = 'sk-very-secret'
N = 24
said = lambda body: body['messages'][-1]['content']


def right(body): return 200, {}, completion(json.dumps({'name': 'f', 'arguments': {'x': int(said(body))}}))


@pytest.fixture
def queries(tmp_path):
    call = lambda k: [{'id': 'c', 'type': 'function', 'function': {'name': 'f', 'arguments': {'x': k}}}]
    write(tmp_path/'runs.jsonl', [{'unique_trajectory_id': f't{k}', 'task_instruction': '', 'tools': [], 'conversation': [
        {'role': 'user', 'content': str(k)}, {'role': 'assistant', 'content': '', 'tool_calls': call(k)}]} for k in range(N)])
    return tmp_path/'runs.jsonl'


def endpoint(s, **how): return Endpoint(base_url=s.url, **{'retries': 2, 'timeout': 3} | how)


def calm(queries, out):
    with Server(lambda n, body: right(body)) as s: evaluate_file('toy', queries, out, endpoint=endpoint(s))
    return load_json(out/'scores.json')


def test_every_fault_is_tried_again(queries, tmp_path):
    soon = {'retry-after-ms': '1'}
    faults = [(429, soon, b'{"error": {"message": "slow down"}}'), (500, soon, b'oops'), (503, soon, b''), (200, {}, b'<html>sign in</html>'), (200, {}, completion('{"name": "f"}')[:60]),
              (200, {'content-length': '5000'}, completion('no')), (200, {}, completion('no', 0)), (200, {}, b'\xff\xfe'),
              (200, {}, b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": null, "tool_calls": "f"}}]}'), ('drip', {}, b''), 'stall']
    seen = Counter()
    def act(n, body):
        seen[said(body)] += 1
        fault = faults[int(said(body)) % len(faults)] if seen[said(body)] == 1 else None
        if fault == 'stall': time.sleep(4)
        return right(body) if fault in (None, 'stall') else fault
    with Server(act) as s: report = evaluate_file('toy', queries, tmp_path/'out', endpoint=endpoint(s))
    assert (report['queries'], report['unanswered'], report['f1'], report['accuracy']) == (N, 0, 1, 1) and min(seen.values()) >= 2
    assert load_json(tmp_path/'out/scores.json') == calm(queries, tmp_path/'calm')


def test_a_server_that_dies_on_the_way(queries, tmp_path):
    def act(n, body):
        if n <= 10: return right(body)
        if n == 11: s.http.shutdown(); s.http.server_close()
        raise ConnectionAbortedError  # The connections that are open break off
    with Server(act) as s:
        with pytest.raises(InputError, match=f'no answer to {N - 10} of {N} queries .*connection'): evaluate_file('toy', queries, tmp_path/'out', endpoint=endpoint(s, retries=0))
    kept = {g['id'] for g in read(tmp_path/'.out.part/generations.jsonl')}
    assert len(kept) == 10 and not (tmp_path/'out').exists()
    with Server(lambda n, body: right(body)) as other: evaluate_file('toy', queries, tmp_path/'out', endpoint=endpoint(other))
    assert len(other.requests) == N - 10 and not kept & {f't{said(r)}' for r in other.requests}
    assert load_json(tmp_path/'out/scores.json') == calm(queries, tmp_path/'calm')


def test_junk_is_counted_by_its_name(queries, tmp_path):
    with Server(lambda n, body: (200, {}, b'<html>sign in</html>') if int(said(body)) % 8 == 0 else right(body)) as s:
        with pytest.raises(InputError, match=f'^{s.url}: found no answer to 3 of 24 queries .junk 3'): evaluate_file('toy', queries, tmp_path/'out', endpoint=endpoint(s, retries=1))


def test_what_is_never_answered_counts_for_nobody(queries, tmp_path):
    with Server(lambda n, body: (500, {'retry-after-ms': '1'}, b'oops') if int(said(body)) % 8 == 0 else right(body)) as s:
        ask = partial(evaluate_file, 'toy', queries, tmp_path/'out', endpoint=endpoint(s))
        with pytest.raises(InputError, match='no answer to 3 of 24 queries .http_500 3.*--allow-unanswered'): ask()
        before = len(s.requests)
        report = ask(allow_unanswered=True)
        assert all(int(said(r)) % 8 == 0 for r in s.requests[before:])  # What was answered is not asked again
    assert (report['queries'], report['unanswered'], report['accuracy'], report['f1']) == (21, 3, 1, 1)
    assert load_json(tmp_path/'out/scores.json')['unanswered'] == {f't{k}': 'http_500' for k in (0, 8, 16)}
    assert '3 more got no answer and are counted nowhere' in (tmp_path/'out/report.html').read_text()


@pytest.fixture
def cases(tmp_path):
    case = lambda k, asked, **labels: {'unique_trajectory_id': f'k{k}', 'task_instruction': '', 'tools': [], 'conversation': [{'role': 'user', 'content': asked}], 'meta': {'labels': labels}}
    write(tmp_path/'cases.jsonl', [case(0, 'Topic?', topic='billing', topics=['billing', 'delivery']), *(case(k, f'Late {k}', must='Says sorry.') for k in range(1, 6))])
    return tmp_path/'cases.jsonl'


def judged(down):
    "The model always answers; of the judge: good, junk, refused, failing while `down`, bad."
    def act(n, body):
        if body['model'] != 'judge': return 200, {}, completion('billing' if said(body) == 'Topic?' else 'Sorry.')
        k = int(said(body).split('Late ')[1][0])
        if k == 3: return 400, {}, b'{"error": {"message": "no"}}'
        if k == 4 and down: return 500, {'retry-after-ms': '1'}, b'oops'
        return 200, {}, completion({1: '{"meets": true, "why": ""}', 2: 'It is certainly fine'}.get(k, '{"meets": false, "why": ""}'))
    return act


def test_a_judge_that_fails_is_unanswered(cases, tmp_path):
    text = lambda report: next(r for r in report['tables']['Topic, call and text'] if r['ability'] == 'text')
    to_judge = lambda s: [said(r).split('Late ')[1][0] for r in s.requests if r['model'] == 'judge']
    with Server(judged(down=True)) as s:
        ask = partial(evaluate_file, 'toy', cases, suite='cases', endpoint=endpoint(s), judge=('judge', endpoint(s)))
        with pytest.raises(Unfinished, match='judge: 1 records or more have no answer yet .http_500 1'): ask(tmp_path/'out')
        assert Counter(to_judge(s)) == {'1': 1, '2': 2, '3': 1, '4': 3, '5': 1}  # Junk is asked once more in other words, a 500 twice
        assert (lambda r: (r['cases'], r['unanswered'], r['accuracy']))(text(ask(tmp_path/'part', allow_unanswered=True))) == (5, 3, .5)
    with Server(judged(down=False)) as s:
        report = evaluate_file('toy', cases, tmp_path/'out', suite='cases', endpoint=endpoint(s), judge=('judge', endpoint(s)))
        assert len(s.requests) == 2 and set(to_judge(s)) == {'3', '4'}
    assert (text(report)['unanswered'], text(report)['accuracy']) == (2, pytest.approx(1 / 3))


def test_the_key_is_never_told(actionstudio, queries, cases, tmp_path):
    told = []
    def act(n, body):
        if body['model'] == 'judge' or said(body) in ('1', '3'): return (401 if body['model'] == 'judge' else 500), {'retry-after-ms': '1'}, json.dumps({'error': {'message': f'wrong key {KEY}'}}).encode()
        return right(body) if said(body).isdigit() else (200, {}, completion('Sorry.'))
    with Server(act) as s:
        url = '--base-url', s.url, '--retries', '1'
        for code, words, args in ((2, 'http_500 2', (queries, '-o', tmp_path/'out')), (0, '', (queries, '-o', tmp_path/'out', '--allow-unanswered')),
                                  (2, 'http_401', (cases, '-o', tmp_path/'judged', '--suite', 'cases', '--judge', 'judge', '--judge-url', s.url, '--debug'))):
            got, out, err = actionstudio('evaluate', 'toy', *args, *url, OPENAI_API_KEY=KEY)
            assert got == (code if '--debug' not in args else 1) and words in err, out + err
            if code and '--debug' not in args: assert err.count('\n') == 1 and err.startswith('actionstudio: '), err
            told += out, err
        assert {h['authorization'] for h in s.headers} == {f'Bearer {KEY}'}
    assert KEY not in ''.join(told)
    assert not [f for f in tmp_path.rglob('*') if f.is_file() and KEY.encode() in f.read_bytes()]
