"Properties over generated records, which a notebook cannot show well."
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from actionstudio.convert import convert
from actionstudio.schema import Trajectory, problems
from actionstudio.store import Rejected, scan

json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                           lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3), max_leaves=8)
extras = st.dictionaries(st.text(min_size=1).filter(lambda k: k not in {'role', 'content', 'name', 'tool_calls', 'tool_call_id', 'reasoning_content', 'id', 'type', 'function',
                                                                          'arguments', 'description', 'parameters'}), json_values, max_size=2)
call = st.builds(lambda i, n, a, x, y: {"id": i, "type": "function", "function": {"name": n, "arguments": a} | x} | y,
                 st.text(min_size=1), st.text(min_size=1), st.dictionaries(st.text(), json_values, max_size=3), extras, extras)
message = st.one_of(
    st.builds(lambda r, c, x: {"role": r, "content": c} | x, st.sampled_from(['system', 'user']), st.text(), extras),
    st.builds(lambda c, t, k, x: {"role": "assistant", "content": c, "reasoning_content": t, "tool_calls": k} | x,
              st.none() | st.text(), st.none() | st.text(), st.none() | st.lists(call, max_size=2), extras),
    st.builds(lambda n, i, c, x: {"role": "tool", "name": n, "tool_call_id": i, "content": c} | x, st.text(), st.text(), json_values, extras))
run = st.builds(lambda i, t, c, m: {"unique_trajectory_id": i, "task_instruction": t, "tools": [], "conversation": c, "meta": m},
                st.text(min_size=1), st.text(), st.lists(message, min_size=1, max_size=4), st.dictionaries(st.text(), json_values, max_size=2))


@settings(deadline=None, max_examples=150)
@given(run)
def test_what_goes_in_comes_out(d):
    assert problems(d) == []
    assert Trajectory.from_dict(d).to_dict() == d


@settings(deadline=None, max_examples=150)
@given(json_values)
def test_problems_never_raises(value):
    found = problems(value)
    assert isinstance(found, list) and all(': ' in line for line in found)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(run, json_values), max_size=8))
def test_every_record_is_accounted_for(records):
    c = convert([r if isinstance(r, dict) else Rejected(reason='not_an_object', message='', place='') for r in records])
    assert c.report.records_in == len(records) == c.report.records_out + c.report.rejected.total() == len(c.trajectories) + len(c.rejected)
    ids = [t.id for t in c.trajectories]
    assert len(ids) == len(set(ids))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.builds(json.dumps, json_values), st.text(alphabet=st.characters(exclude_characters='\n'))), max_size=6))
def test_a_file_of_anything_is_read_line_by_line(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp('any')/'x.jsonl'
    path.write_bytes(('{}\n' + '\n'.join(lines)).encode(errors='surrogatepass'))
    assert len(list(scan(path))) == 1 + sum(bool(x.encode(errors='surrogatepass').strip()) for x in lines)
