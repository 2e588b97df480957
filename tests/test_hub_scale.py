"Conversion at scale: bad input costs itself only, memory stays flat, and workers and Ray give the same bytes."
import gzip
import json
import os
import signal
import subprocess
import sys

import msgspec
import pytest

from actionstudio.convert import convert_file, find_files, formats
from actionstudio.formats.chat import from_openai
from actionstudio.schema import InputError
from actionstudio.store import Rejected, blocks, load_json, read, scan, trajectories, write

RUN = {"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
SHARE = {"id": "s", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
run = lambda id, **more: json.dumps(RUN | {"id": id} | more).encode()


def converted(source, out, **options):
    report = convert_file(source, out, **options)
    assert report['records_in'] == report['records_out'] + sum(report['rejected'].values())
    return report, [t.id for t in trajectories(out/'data.jsonl')], [r['reason'] for r in read(out/'rejected.jsonl')]


@pytest.mark.parametrize('bad, reason', [
    (b'{"id": "b", "messages": [{"ro', 'broken_json'), (b'{"id": "\xff"}', 'broken_json'), (b'[1, 2]', 'not_an_object'),
    (b'{"id": "b", "x": NaN}', 'broken_json'), (b'{"x":' * 10_000 + b'1' + b'}' * 10_000, 'broken_json'),
    (b'{"id": "b", "x": {"k": 1, "k": 2}, "messages": []}', 'duplicate_key'),
    (b'{"id": "b", "x": "\\u003A", "k": 1, "k": 2, "messages": []}', 'duplicate_key'), (b'{"who": "me"}', 'unknown_format')],
    ids=['cut off', 'invalid UTF-8', 'no object', 'NaN', 'deep', 'duplicate key', 'duplicate key, escaped colon', 'unknown'])
@pytest.mark.parametrize('array', [False, True], ids=['lines', 'array'])
def test_a_bad_record_costs_itself(tmp_path, bad, reason, array):
    rows = [run('first'), bad, run('last')]
    (tmp_path/'x.json').write_bytes(b'[\n' + b',\n'.join(rows) + b'\n]' if array else b'\n'.join(rows) + b'\n')
    _, ids, reasons = converted(tmp_path/'x.json', tmp_path/'out')
    assert (ids, reasons) == (['first', 'last'], [reason])


@pytest.mark.parametrize('text, count', [(b'', 0), (b'\xef\xbb\xbf', 0), (b'\n \r\n', 0), (b'[]', 0), (b'\xef\xbb\xbf' + run('a'), 1), (b'\xef\xbb\xbf[' + run('a') + b']', 1),
                                         (run('a') + b'\r\n\r\n' + run('b'), 2), (json.dumps(RUN, indent=2).encode(), 1), (run('a', x='y' * 20_000_000) + b'\n' + run('b'), 2),
                                         (b'[' + run('a', x='y' * 20_000_000) + b',' + run('b') + b']', 2), (b'[' + run('a') + b',\n' + run('b')[:40], 1)])
def test_shapes_of_files(tmp_path, text, count):
    (tmp_path/'x.json').write_bytes(text)
    report, ids, _ = converted(tmp_path/'x.json', tmp_path/'out')
    assert ids == ['a', 'b'][:count]
    assert report['skipped'] == ({'x.json': 'empty'} if text in (b'', b'\xef\xbb\xbf') else {})


def test_a_file_that_breaks_off_keeps_what_was_read(tmp_path):
    rows = b''.join(run(str(k), x=os.urandom(300).hex()) + b'\n' for k in range(20_000))
    (tmp_path/'x.jsonl.gz').write_bytes(gzip.compress(rows)[:-1000])
    (tmp_path/'y.jsonl').write_bytes(run('y'))
    _, ids, reasons = converted([tmp_path/'x.jsonl.gz', tmp_path/'y.jsonl'], tmp_path/'out')
    assert ids[-1] == 'y' and len(ids) > 10_000 and 'unreadable' in reasons


def test_colliding_ids_and_two_formats_in_one_file(tmp_path):
    write(tmp_path/'x.jsonl', [RUN, SHARE, RUN, RUN, {"messages": RUN["messages"]}])
    report, ids, _ = converted(tmp_path/'x.jsonl', tmp_path/'out')
    assert ids == ['a', 's', 'a#2', 'a#3', 'x-4'] and report['formats'] == {'openai': 4, 'sharegpt': 1} and report['renamed_ids'] == 2
    assert [t.meta['provenance'].get('id') for t in trajectories(tmp_path/'out/data.jsonl')] == [None, None, 'a', 'a', None]


def test_a_folder_with_stray_files_and_a_link_loop(tmp_path):
    logs = tmp_path/'logs'
    (logs/'deep').mkdir(parents=True)
    write(logs/'b.jsonl', [RUN]); write(logs/'deep/a.jsonl.zst', [SHARE]); write(logs/'deep/c.parquet', [RUN | {"id": "p"}])
    (logs/'README.md').write_text('[x](y)'); (logs/'.git').mkdir(); (logs/'empty.json').touch()
    (logs/'deep/loop').symlink_to('..'); (logs/'self').symlink_to('self'); (logs/'twice.jsonl').symlink_to('b.jsonl')
    os.mkfifo(logs/'pipe.jsonl')
    report, ids, _ = converted(logs, tmp_path/'out')
    assert ids == ['a', 's', 'p'] and set(report['skipped']) == {'README.md', 'empty.json', 'deep/loop', 'self', 'twice.jsonl', 'pipe.jsonl', '.git'}
    with pytest.raises(InputError, match='found a directory without'): find_files(logs/'.git')


def test_an_unknown_format_lists_near_ones(tmp_path):
    write(tmp_path/'x.jsonl', [RUN])
    with pytest.raises(InputError, match='did you mean.*openai'): convert_file(tmp_path/'x.jsonl', tmp_path/'out', 'opnai')
    with pytest.raises(InputError, match='expected local or ray'): convert_file(tmp_path/'x.jsonl', tmp_path/'out', engine='spark')


def test_parquet_in_and_shards_out(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    turns = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": f"n{k}"}] for k in range(700)]
    pq.write_table(pa.table({'id': [str(k) for k in range(700)], 'messages': turns, 'score': [float('nan')] + [0.5] * 699}), tmp_path/'x.parquet')
    report = convert_file(tmp_path/'x.parquet', tmp_path/'out', shard=300, suffix='.parquet')
    assert report['records_out'] == 699 and report['rejected'] == {'not_json': 1}
    assert [t.id for t in trajectories(tmp_path/'out/data.parquet')] == [str(k) for k in range(1, 700)]
    assert len(list((tmp_path/'out').glob('data-*.parquet'))) == 3


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mixed')
    rows = [RUN | {"id": str(k % 900), "x": 'y' * 8000} if k % 3 else SHARE | {"x": 'z' * 8000} for k in range(2000)]
    write(folder/'a.jsonl', rows); (folder/'b.json').write_bytes(json.dumps(rows[:50], indent=1).encode()); write(folder/'c.parquet', rows[:300])
    with open(folder/'a.jsonl', 'ab') as f: f.write(b'\n{"cut\n' + run('end'))
    return folder


def same(a, b):
    assert all((a/f).read_bytes() == (b/f).read_bytes() for f in ('data.jsonl', 'rejected.jsonl'))
    without = lambda r: {k: v for k, v in r.items() if k not in ('seconds', 'sources')}
    assert without(load_json(a/'report.json')) == without(load_json(b/'report.json'))


@pytest.mark.parametrize('limit', [None, 1200])
def test_workers_change_nothing(tmp_path, mixed, limit):
    report = convert_file(mixed, tmp_path/'one', limit=limit)
    assert report['records_in'] == (2352 if limit is None else 1550)
    convert_file(mixed, tmp_path/'three', limit=limit, workers=3)
    same(tmp_path/'one', tmp_path/'three')


@pytest.mark.slow
def test_ray_changes_nothing(tmp_path, mixed, ray):
    convert_file(mixed, tmp_path/'one'); convert_file(mixed, tmp_path/'ray', engine='ray', workers=2)
    same(tmp_path/'one', tmp_path/'ray')


@pytest.mark.slow
def test_a_killed_ray_worker_loses_nothing(tmp_path, mixed, ray, monkeypatch):
    died = tmp_path/'died'

    def dies_once(r):  # Written here, so that Ray carries it to its workers
        try: os.close(os.open(died, os.O_CREAT | os.O_EXCL))
        except FileExistsError: return from_openai(r)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setitem(formats(), 'dies', msgspec.structs.replace(formats()['openai'], name='dies', convert=dies_once))
    died.touch(); convert_file(mixed/'a.jsonl', tmp_path/'one', 'dies')
    died.unlink(); convert_file(mixed/'a.jsonl', tmp_path/'ray', 'dies', engine='ray', workers=2)
    assert died.exists()
    same(tmp_path/'one', tmp_path/'ray')


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='peak memory is read from /proc')
def test_memory_stays_flat(tmp_path):
    with open(tmp_path/'x.jsonl', 'wb') as f:
        for k in range(30_000): f.write(run(f'{k}', x='y' * 5000) + b'\n')
    code = ('import re, sys\nfrom actionstudio.convert import convert_file\nconvert_file(sys.argv[1], sys.argv[2], workers=1)\n'
            'print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)')
    peak = int(subprocess.run([sys.executable, '-c', code, tmp_path/'x.jsonl', tmp_path/'out'], capture_output=True, text=True, check=True).stdout)
    assert peak < 250, f'{peak} MB for a file of 150 MB'


def test_every_record_of_an_array_has_its_place(tmp_path):
    (tmp_path/'x.json').write_text('[{"n": 1}, 5, {"s": "]}\\"{"}]\n[{"n": 2}]')
    assert [p for p, _ in scan(tmp_path/'x.json')] == [f'x.json[{k}]' for k in range(4)]


def test_lines_that_span_reads_and_places(tmp_path, monkeypatch):
    monkeypatch.setattr('actionstudio.store._SIZE', 64); monkeypatch.setattr('actionstudio.store._LIMIT', 1000)
    rows = [run('a'), b'', b' \t', run('b', x='y' * 300), run('c', x='y' * 2000), b'{"id": 1}', run('d')]
    (tmp_path/'x.jsonl').write_bytes(b'\xef\xbb\xbf' + b'\n'.join(rows))
    with gzip.open(tmp_path/'x.jsonl.gz', 'wb') as f: f.write((tmp_path/'x.jsonl').read_bytes())
    for path in (tmp_path/'x.jsonl', tmp_path/'x.jsonl.gz'):
        found = list(blocks(path, 'x.jsonl'))
        got = [(p, r.reason if isinstance(r, Rejected) else r['id']) for b in found for p, r in b.records()]
        places, values = zip(*got)
        assert values == ('a', 'b', 'too_long', 1, 'd')
        assert [p for p in places if '[' not in p] == ['x.jsonl:1', 'x.jsonl:4', 'x.jsonl:6', 'x.jsonl:7']
        assert sum(b.count for b in found) == 5
