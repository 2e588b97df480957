"Calls as <function=…> tags, system fields of text agents, and what the list of formats says of licences."
import json

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from actionstudio.convert import convert, formats, scan_joined, sniff
from actionstudio.formats.xml import functions_said
from actionstudio.schema import problems

SHARED = ROOT.parent/'shared/data'
TOOLS = [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "number"}, "code": {"type": "string"}}}}]
said = lambda text, then='OBSERVATION:\n1': {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": text}, {"role": "user", "content": then}], "tools": TOOLS}
CALL = '<function=f>\n<parameter=x>1.0</parameter>\n<parameter=code>\n  1\n</parameter>\n</function>'


@pytest.mark.parametrize('then', ['OBSERVATION:\n1', 'EXECUTION RESULT of [f]:\n1', '<tool_response>\n1\n</tool_response>'])
def test_call_and_result(then):
    assert sniff(said(CALL, then)) == 'xml_functions'
    c = convert([said('Now.\n' + CALL, then)])
    [call] = c.trajectories[0].conversation[1].calls
    result = c.trajectories[0].conversation[2]
    assert (call.name, call.arguments, result.content, result.tool_call_id) == ('f', {'x': 1.0, 'code': '  1'}, '1', call.id)
    assert c.trajectories[0].conversation[1].content == 'Now.' and c.report.lifted == {'text → number': 1}


@pytest.mark.parametrize('text, reason', [(CALL[:-11], 'broken_call'), ('<function=f>\nx\n</function>', 'broken_call'), ('no call', 'orphan_result'),
                                          ('<function=f>\n<parameter=x>1</parameter>\n<parameter=x>2</parameter>\n</function>', 'broken_call')])
def test_what_is_broken_is_refused(text, reason):
    c = convert([said(text), said(CALL)], 'xml_functions')
    assert c.report.records_out == 1 and c.rejected[0].reason in (reason, 'wrong_format')


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.from_regex(r'\w+', fullmatch=True), st.text().filter(lambda s: '</parameter>' not in s and '</function>' not in s and '<parameter=' not in s), max_size=3))
def test_text_values_come_back(arguments):
    text = '<function=f>\n' + ''.join(f'<parameter={k}>\n{v}\n</parameter>\n' for k, v in arguments.items()) + '</function>'
    assert [p for p in functions_said(text, '') if not isinstance(p, str)] == [{"name": "f", "arguments": arguments}]


def test_the_sft_sample_of_adp():
    if not SHARED.exists(): pytest.skip('no ../shared/data here')
    path = SHARED/'adp_agenttuning_db/reference_sample_sft_sweagent.json'
    c, raw = convert(scan_joined(path)), json.loads(path.read_text())
    assert c.report.formats == {'xml_functions': len(raw)} and not c.rejected and c.report.calls == sum(x['value'].count('<function=submit>') for r in raw for x in r['conversations'] if x['from'] == 'gpt')
    assert [t.task_instruction for t in c.trajectories] == [r['system'] for r in raw]
    for t, r in zip(c.trajectories, raw):
        assert problems(t) == [] and len(t.tools) == r['system'].count('---- BEGIN FUNCTION') and t.conversation[-1].reasoning_content
        assert all(set(x.parameters['required']) <= set(x.parameters['properties']) for x in t.tools)


def test_a_system_field_beside_turns_of_text_is_the_system_message():
    r = {"id": "x", "system": "Be brief.", "conversations": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "<execute>\n1\n</execute>"}]}
    [t] = convert([r], 'codeact').trajectories
    assert t.task_instruction == 'Be brief.' and 'raw' not in t.meta and t.conversation[1].calls


def test_published_data_have_a_licence_note():
    nobodys = {'openai', 'sharegpt', 'anthropic', 'atif', 'openhands', 'alpaca', 'agentohana', 'hermes', 'llama', 'mistral', 'xml_functions', 'unified1', 'unified2', 'trl', 'llamafactory', 'axolotl'}
    assert {n for n, f in formats().items() if not f.licence and not n.startswith('lumos') and f.convert.__module__.startswith('actionstudio.')} == nobodys
    assert formats()['nexusraven'].licence.startswith('CC-BY-NC')
