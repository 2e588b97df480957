"The parser on text that nobody meant."
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actionstudio.parse import parse_tool_calls

BITS = ['<tool_call>', '</tool_call>', '<think>', '</think>', '[TOOL_CALLS]', '```json', '```', '{"name": "f", "arguments": {', '}}', '[f(', 'x=1', ')]', "'", '"', '\\', '\n', '<function=f>', '<parameter=a>', '</parameter>',
        '</function>', '<arg_key>a</arg_key>', '<arg_value>', '</arg_value>', '<|channel|>', '<|message|>', ' to=f', '<|tool_call>call:f{', '<|"|>', '<|python_tag|>', '<｜tool▁call▁begin｜>', '<|tool_call_begin|>', '\ud800', 'é', ' ']


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(BITS), st.text(max_size=5))).map(''.join))
def test_never_raises(text):
    parse_tool_calls(text)


@pytest.mark.slow
@pytest.mark.parametrize('bit', ['{', '[', '<tool_call>', '<function=f><parameter=a>', '[f("', '<|tool_call>call:f{a:', '<tool_call>f<arg_key>a</arg_key><arg_value>', 'word and word ', "{'name': 'f', "])
def test_ten_megabytes_end(bit):
    parse_tool_calls(bit * (10**7 // len(bit)))
