"The critic against servers that misbehave, and against kills."
import functools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from conftest import ROOT
from toy_server import Server, completion

from actionstudio.ask import Answers, Asker, Endpoint, NoAnswer, Question, Unfinished, run
from actionstudio.store import read, write

ITEMS = ('correctness', 'hallucination', 'tool_use', 'overall')
RUN = {"unique_trajectory_id": "a", "task_instruction": "", "tools": [], "conversation": [{"role": "user", "content": "How far is the moon?"}, {"role": "assistant", "content": "About 384,400 km."}]}
VERDICT = {"claims": [{"item": i, "message": 1, "fault": False, "quote": "About 384,400 km.", "says": "Right."} for i in ITEMS], "orders": [],
           "steps": [{"message": 1, "score": 5}], "scores": dict.fromkeys(ITEMS, 5), "summary": "Right."}


def asked(tmp_path, act, through=nullcontext, **endpoint):
    "One question to a server: (the answer, or the code of the failure; the server)."
    with Server(act) as s, through(Endpoint(base_url=s.url, **endpoint)) as endpoint:
        asker = Asker('m', Answers(tmp_path/'answers.sqlite'), endpoint)
        got = []
        async def one(a):
            try: got.append(await a(Question('c', [{"role": "user", "content": "?"}], {"type": "object"})))
            except NoAnswer as e: got.append(e.code); raise
        try: run(asker.all([one]))
        except Unfinished: pass
        asker.answers.close()
    return got[0], s


GOOD = (200, {}, completion('four'))
FAULTS = {'429': (429, {'retry-after': '0.3'}, b'{"error": {"message": "slow down"}}'), '500': (500, {}, b'oops'), 'html': (200, {'content-type': 'text/html'}, b'<html>sign in</html>'),
          'cut json': (200, {}, completion('four')[:60]), 'cut body': (200, {'content-length': '5000'}, completion('four')), 'no choice': (200, {}, completion('four', 0)),
          'two choices': (200, {}, completion('four', 2)), 'empty': (200, {}, b''), 'no utf-8': (200, {}, b'\xff\xfe')}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_is_tried_again(tmp_path, fault):
    got, s = asked(tmp_path, lambda n, _: FAULTS[fault] if n == 1 else GOOD)
    assert (got, len(s.requests)) == ('four', 2)
    if fault == '429': assert .3 <= s.times[1] - s.times[0] < .45  # As told; the client's own first delay would be longer


@pytest.mark.parametrize('act', [lambda n, _: ('drip', {}, b'') if n == 1 else GOOD, lambda n, _: time.sleep(1.2) or GOOD if n == 1 else GOOD], ids=['drips', 'stalls'])
def test_a_stall_ends_with_the_timeout(tmp_path, act):
    start = time.monotonic()
    got, s = asked(tmp_path, act, timeout=.5)
    assert (got, len(s.requests)) == ('four', 2) and time.monotonic() - start < 3


def test_retries_are_capped_and_a_wrong_key_is_not_tried_again(tmp_path):
    got, s = asked(tmp_path, lambda n, _: (503, {'retry-after-ms': '1'}, b'{}'), retries=3)
    assert (got, len(s.requests)) == ('http_503', 4)
    got, s = asked(tmp_path, lambda n, _: (401, {}, b'{}'))
    assert (got, len(s.requests)) == ('http_401', 1)


def test_a_server_without_schemas_is_asked_without(tmp_path):
    got, s = asked(tmp_path, lambda n, body: (400, {}, b'{"error": {"message": "response_format json_schema is not supported"}}') if 'response_format' in body else GOOD)
    assert (got, ['response_format' in r for r in s.requests]) == ('four', [True, False])


def test_a_rate_limit_holds_for_retries_too(tmp_path):
    _, s = asked(tmp_path, lambda n, _: (503, {'retry-after-ms': '1'}, b'{}'), retries=3, per_minute=300)
    assert len(s.times) == 4 and s.times[-1] - s.times[0] > .45  # 0.6 s less what the first connection took; 3 ms without a limit


def test_usage_that_cannot_be_is_not_believed(tmp_path):
    asked(tmp_path, lambda n, _: (200, {}, completion('four', prompt_tokens=10**12, completion_tokens=-5)))
    answers = Answers(tmp_path/'answers.sqlite')
    assert answers.totals()[1] < 100 and answers.totals()[2] == 2
    answers.close()


def command(server, source, out, *more):
    return [sys.executable, '-m', 'actionstudio.cli', 'critique', str(source), '--out', str(out), '--model', 'm', '--base-url', server.url, *more]


def test_the_command(actionstudio, tmp_path):
    runs = [RUN | {"unique_trajectory_id": str(k), "task_instruction": f"Day {k}"} for k in range(6)]
    write(tmp_path/'runs.jsonl', runs)
    with Server(lambda n, body: (200, {}, completion(json.dumps(VERDICT)))) as s:
        args = ['critique', tmp_path/'runs.jsonl', '--out', tmp_path/'out', '--model', 'm', '--base-url', s.url, '--price', '2,8']
        code, out, err = actionstudio(*args, '--dry-run', OPENAI_API_KEY='sk-very-secret')
        assert (code, len(s.requests), (tmp_path/'out').exists()) == (0, 0, False) and 'at_most' in out, err
        code, out, err = actionstudio(*args, '--budget', '0.0001', OPENAI_API_KEY='sk-very-secret')
        assert (code, len(s.requests)) == (1, 0) and 'budget' in err and err.count('\n') == 1
        said = [out, err]
        code, out, err = actionstudio(*args, OPENAI_API_KEY='sk-very-secret')
        assert code == 0 and len(s.requests) == 6 and s.headers[0]['authorization'] == 'Bearer sk-very-secret', err
        assert actionstudio(*args)[0] == 0 and len(s.requests) == 6
        short = [a if a != tmp_path/'out' else tmp_path/'short' for a in args] + ['--no-exemplars', '--debug']
        assert actionstudio(*short, OPENAI_API_KEY='sk-very-secret')[0] == 0 and len(s.requests) == 12
        assert [len(r['messages']) for r in s.requests] == [len(s.requests[0]['messages'])] * 6 + [2] * 6
    with Server(lambda n, body: (401, {}, b'{"error": {"message": "wrong key sk-very-secret"}}')) as s:
        for more in ([], ['--debug']):
            code, *more = actionstudio('critique', tmp_path/'runs.jsonl', '--out', tmp_path/'locked', '--model', 'm', '--base-url', s.url, '--answers', tmp_path/'locked.sqlite', *more, OPENAI_API_KEY='sk-very-secret')
            assert code; said += more
    assert len(list(read(tmp_path/'out/kept.jsonl'))) == 6 and (tmp_path/'out/steps.png').stat().st_size > 1000
    assert not [f for f in tmp_path.rglob('*') if f.is_file() and b'sk-very-secret' in f.read_bytes()]
    assert 'sk-very-secret' not in ''.join([*said, out, err])
    for args, words in ((['--price', '2,8,1'], 'price'), (['--budget', '1'], 'no price'), (['--mode', 'both'], 'mode'), (['--engine', 'rai'], 'expected local or ray'), (['--no-exemplars', '--exemplars', tmp_path], 'no_exemplars'), (['--rubric', tmp_path/'no.yaml'], 'no.yaml')):
        code, _, err = actionstudio('critique', tmp_path/'runs.jsonl', '-o', tmp_path/'x', '--model', 'm', '--base-url', 'http://127.0.0.1:9/v1', *args)
        assert code == 2 and words in err and err.count('\n') == 1, err
    code, _, err = actionstudio('critique', tmp_path/'runs.jsonl', '-o', tmp_path/'x', '--model', 'm', '--answers', tmp_path/'new.sqlite', OPENAI_API_KEY='', OPENAI_BASE_URL='')
    assert code == 2 and 'no key' in err, err


def test_audit_and_critic_data(actionstudio, tmp_path):
    write(tmp_path/'runs.jsonl', [RUN | {"unique_trajectory_id": str(k), "task_instruction": f"Day {k}"} for k in range(6)])
    with Server(lambda n, body: (200, {}, completion(json.dumps(VERDICT)))) as s:
        code, _, err = actionstudio('critique', tmp_path/'runs.jsonl', '--out', tmp_path/'out', '--model', 'm', '--base-url', s.url)
    assert code == 0, err
    audit = 'audit', tmp_path/'out', '-o', tmp_path/'audit', '--n', '4'
    code, out, err = actionstudio(*audit)
    assert code == 0 and '4 of 6' in out, err
    drawn = [r['id'] for r in read(tmp_path/'audit/form.jsonl')]
    write(tmp_path/'labels.jsonl', [{'id': i, 'correctness': 5, 'overall': 'fail' if k else 'pass'} for k, i in enumerate(drawn)])
    code, out, err = actionstudio(*audit, '--labels', tmp_path/'labels.jsonl')
    assert code == 0 and 'one category' in out and 'overall' in out and '0.25' in out, out + err
    write(tmp_path/'odd.jsonl', [{'id': drawn[0], 'overall': 7}])
    for labels, words in (('odd.jsonl', 'odd.jsonl:1'), ('no.jsonl', 'no.jsonl')):
        code, _, err = actionstudio(*audit, '--labels', tmp_path/labels)
        assert code == 2 and words in err and err.count('\n') == 1, err
    code, out, err = actionstudio('critic-data', tmp_path/'out', '-o', tmp_path/'critic')
    assert code == 0 and len(list(read(tmp_path/'critic/data.jsonl'))) == 6, err
    code, out, err = actionstudio('compare', tmp_path/'out', tmp_path/'out')
    assert code == 0 and 'keep or remove' in out and '1.00' in out, out + err
    code, out, err = actionstudio('compare', tmp_path/'out', tmp_path/'audit')
    assert code == 2 and 'found no critiques' in err and err.count('\n') == 1, err


def test_a_bad_step_is_judged_kept_as_context_and_never_trained(actionstudio, tmp_path, model):
    "From the judge's scores to the loss mask, by the commands that a user types; two judges, who agree."
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look_up", "arguments": {"what": "the moon"}}}]}
    runs = [RUN | {"unique_trajectory_id": str(k), "task_instruction": f"Day {k}", "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}}}],
                   "conversation": [RUN["conversation"][0], call, {"role": "tool", "name": "look_up", "tool_call_id": "c", "content": "384,400 km"}, {"role": "assistant", "content": "It is 12 km away."}]} for k in range(4)]
    write(tmp_path/'runs.jsonl', runs)
    (tmp_path/'policy.yaml').write_text('train: steps\n')
    claims = [{"item": i, "message": 1 if i == 'tool_use' else 3, "fault": i != 'tool_use', "quote": "look_up" if i == 'tool_use' else "It is 12 km away.", "says": ""} for i in ITEMS]
    verdict = {"claims": claims, "orders": [], "steps": [{"message": 1, "score": 5}, {"message": 3, "score": 1}], "scores": {i: 5 if i == 'tool_use' else 2 for i in ITEMS}, "summary": ""}
    with Server(lambda n, body: (200, {}, completion(json.dumps(verdict)))) as s:
        code, out, err = actionstudio('critique', tmp_path/'runs.jsonl', '--out', tmp_path/'out', '--model', 'a', '--model', 'b', '--base-url', s.url, '--policy', tmp_path/'policy.yaml')
    assert code == 0 and 'a & b' in out, err
    report = json.loads((tmp_path/'out/report.json').read_text())
    assert (report['records_in'], report['records_out'], report['runs_in_part'], report['removed']) == (4, 4, 4, {}) and len(s.requests) == 8
    from actionstudio.assets import smollm2_tokenizer
    from actionstudio.dataset import load_encoded
    tok = smollm2_tokenizer()
    for train in ('assistant', 'passed', 'final'):
        code, _, err = actionstudio('encode', tmp_path/'out/kept.jsonl', '--tokenizer', model, '--train', train, '--allow-refused', '-o', tmp_path/train)
        assert code == 0, err
        rows = load_encoded(tmp_path/train/'encoded.parquet')
        text = ''.join(tok.decode([i for i, m in zip(r.input_ids, r.loss_mask) if m]) for r in rows)
        assert len(rows) == (0 if train == 'final' else 4) and 'It is 12' not in text and text.count('look_up') == len(rows)


def test_killed_five_times_nothing_is_lost_or_paid_twice(tmp_path):
    "SIGKILL at five random moments during 1,000 records; a record whose answer was kept is never asked about again."
    write(tmp_path/'runs.jsonl', [RUN | {"unique_trajectory_id": str(k), "task_instruction": f"Record {k}."} for k in range(1000)])
    rng, frozen = random.Random(7), []  # For each kill: content → how often it had been asked about, of finished records
    content = lambda body: body['messages'][-1]['content'].split('\n')[0][5:-1]  # The word of the fence
    with Server(lambda n, body: time.sleep(.02) or (200, {}, completion(json.dumps(VERDICT)))) as s:
        env, args = os.environ | {'PYTHONPATH': str(ROOT), 'OPENAI_API_KEY': 'k'}, command(s, tmp_path/'runs.jsonl', tmp_path/'out')
        for stop in sorted(rng.sample(range(50, 900), 5)):
            p = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while len(s.requests) < stop and p.poll() is None: time.sleep(.005)
            assert p.poll() is None, 'ended by itself'
            p.send_signal(signal.SIGKILL)
            p.wait()
            with closing(sqlite3.connect(tmp_path/'answers.sqlite')) as db: finished = {c for c, in db.execute('SELECT content FROM answers')}
            often = Counter(map(content, s.requests))
            assert finished <= set(often) and not (tmp_path/'out').exists()
            frozen.append({c: often[c] for c in finished})
        done = subprocess.run(args, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        often = Counter(map(content, s.requests))
    assert all(often[c] == n for before in frozen for c, n in before.items())
    assert len(often) == 1000 and len(s.requests) - 1000 <= 5 * 8  # Only what was under way at a kill: eight at once, five kills
    report = json.loads((tmp_path/'out/report.json').read_text())
    assert (report['records_in'], report['records_out']) == (1000, 1000) and len(list(read(tmp_path/'out/critiques.jsonl'))) == 1000
    with closing(sqlite3.connect(tmp_path/'answers.sqlite')) as db: assert db.execute('SELECT count(*) FROM answers').fetchone() == (1000,)
    print(f'{len(s.requests) - 1000} questions were under way at a kill and asked again')


@pytest.mark.slow
def test_a_real_server(tmp_path):
    "transformers serve with SmolLM2: whatever it says is read, checked, kept, and accounted for."
    pytest.importorskip('fastapi'); pytest.importorskip('torch')
    from actionstudio.assets import smollm2_gguf, smollm2_tokenizer
    from actionstudio.critique import Critic
    from actionstudio.keep import critique_file
    from actionstudio.model import from_gguf
    from actionstudio.schema import Trajectory
    from_gguf(smollm2_gguf(), tmp_path/'smol', smollm2_tokenizer())
    port = 20_000 + os.getpid() % 20_000
    log = open(tmp_path/'serve.log', 'w')
    serve = subprocess.Popen([os.path.join(os.path.dirname(sys.executable), 'transformers'), 'serve', str(tmp_path/'smol'), '--port', str(port), '--device', 'cpu'],
                             stdout=log, stderr=log, env=os.environ | {'HF_HUB_OFFLINE': '1'})
    options, endpoint = {'temperature': 0, 'max_tokens': 60}, Endpoint(base_url=f'http://127.0.0.1:{port}/v1', concurrency=1, timeout=240, retries=1)
    try:
        import urllib.request
        for _ in range(120):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=2); break
            except OSError: assert serve.poll() is None, (tmp_path/'serve.log').read_text()[-2000:]; time.sleep(1)
        else: pytest.fail(f"no server: {(tmp_path/'serve.log').read_text()[-2000:]}")
        write(tmp_path/'runs.jsonl', [RUN])
        for mode in ('score', 'rubric'):
            answers = Answers(tmp_path/f'{mode}.sqlite')
            critic = Critic(Asker(str(tmp_path/'smol'), answers, endpoint, options), mode=mode)
            t = Trajectory.from_dict(RUN)
            critic.ask([t])
            c, n = critic(t), answers.totals()[0]
            rows = answers.db.execute('SELECT text, input_tokens, output_tokens, finish FROM answers').fetchall()
            answers.close()
            print(mode, c, rows)
            assert n == c.asked and (c.problem == 'no_verdict' or c.scores)
            assert all(text and tokens > 200 and 0 < out <= 60 and finish in ('stop', 'length') for text, tokens, out, finish in rows)
            report = critique_file(tmp_path/'runs.jsonl', tmp_path/mode, [str(tmp_path/'smol')], endpoint, tmp_path/f'{mode}.sqlite', mode=mode, options=options)
            assert report['asked_now'] == 0 and report['records_in'] == 1 == report['records_out'] + sum(report['removed'].values())
    finally: serve.terminate(); serve.wait(20); log.close()


@pytest.mark.slow
def test_ray_asks_and_this_process_keeps(tmp_path, ray):
    "The same critiques from a cluster; killed, nothing that was answered is asked again; no key in what Ray leaves behind."
    write(tmp_path/'runs.jsonl', [RUN | {"unique_trajectory_id": str(k), "task_instruction": f"Record {k}."} for k in range(200)])
    content = lambda body: body['messages'][-1]['content'].split('\n')[0][5:-1]
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    with Server(lambda n, body: time.sleep(.02) or (200, {}, completion(json.dumps(VERDICT)))) as s:
        env = os.environ | {'PYTHONPATH': str(ROOT), 'OPENAI_API_KEY': 'sk-very-secret', 'RAY_ADDRESS': ray.get_runtime_context().gcs_address}
        subprocess.run(command(s, tmp_path/'runs.jsonl', tmp_path/'local', '--answers', str(tmp_path/'local.sqlite')), env=env, check=True, stdout=subprocess.DEVNULL)
        s.requests.clear(); s.headers.clear()
        args = command(s, tmp_path/'runs.jsonl', tmp_path/'out', '--engine', 'ray')
        p = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(s.requests) < 80 and p.poll() is None: time.sleep(.005)
        assert p.poll() is None, 'ended by itself'
        p.send_signal(signal.SIGKILL); p.wait()
        with closing(sqlite3.connect(tmp_path/'answers.sqlite')) as db: finished = {c for c, in db.execute('SELECT content FROM answers')}
        before = Counter(map(content, s.requests))
        done = subprocess.run(args, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        often, left = Counter(map(content, s.requests)), [f for folder in (tmp_path, session) for f in folder.rglob('*') if f.is_file()]
        assert len(left) > 20 and not [f for f in left if b'sk-very-secret' in f.read_bytes()]
    assert 60 < len(finished) < 200 and all(often[c] == before[c] for c in finished) and len(often) == 200
    assert s.headers[0]['authorization'] == 'Bearer sk-very-secret'
    for f in ('critiques.jsonl', 'kept.jsonl', 'removed.jsonl'): assert (tmp_path/'local'/f).read_bytes() == (tmp_path/'out'/f).read_bytes()


@pytest.mark.slow
def test_a_killed_sender_loses_nothing(tmp_path, ray):
    from actionstudio.ask import from_cluster
    killed = []
    with Server(lambda n, body: time.sleep(.05) or GOOD) as s, from_cluster(Endpoint(base_url=s.url, concurrency=8)) as endpoint, closing(Answers(tmp_path/'answers.sqlite')) as answers:
        asker = Asker('m', answers, endpoint)
        async def one(k, asker):
            if k == 40: killed.append(ray.kill(endpoint.transport.senders[0], no_restart=False))
            assert await asker(Question(str(k), [{"role": "user", "content": "?"}])) == 'four'
        assert run(asker.all(functools.partial(one, k) for k in range(100)))['asked'] == 100
    assert killed and len(s.requests) >= 100
    got, s = asked(tmp_path, lambda n, _: FAULTS['429'] if n == 1 else GOOD, through=from_cluster)  # Its status and its Retry-After arrive
    assert (got, len(s.requests)) == ('four', 2) and .3 <= s.times[1] - s.times[0] < .6
    with from_cluster(Endpoint(base_url='http://127.0.0.1:9/v1', retries=0)) as nobody, closing(Answers(tmp_path/'none.sqlite')) as answers:
        with pytest.raises(Unfinished, match='no connection'): run(Asker('m', answers, nobody).all([lambda a: a(Question('c', []))]))
