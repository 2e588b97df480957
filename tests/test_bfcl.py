"Our verdicts beside those of the benchmark's own checker, run from its wheel."
import copy
import random
import sys
import types

import pytest

from actionstudio.assets import bfcl_files, fetch_wheel
from actionstudio.bfcl import _ANY, _CALLS, _SILENT, bfcl, bfcl_verdict
from actionstudio.bfcl_literals import LANGUAGES
from actionstudio.formats.gold import first_allowed
from actionstudio.schema import InputError


@pytest.fixture(scope='module')
def checker():
    "`ast_checker` of the wheel. Its table of models, which imports every vendor's client, is all that is replaced."
    try: wheel = str(fetch_wheel('bfcl-eval'))
    except InputError as e: pytest.skip(f'the wheel of bfcl-eval cannot be had: {e}')
    table = types.ModuleType('bfcl_eval.constants.model_config')
    table.MODEL_CONFIG_MAPPING = {'any': types.SimpleNamespace(underscore_to_dot=False)}
    names = ['bfcl_eval.eval_checker.ast_eval.type_convertor.java_type_converter', 'bfcl_eval.eval_checker.ast_eval.type_convertor.js_type_converter']
    sys.path.insert(0, wheel)
    sys.modules[table.__name__] = table
    try:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
        assert all(n in sys.modules for n in names)
        def valid(case, calls):
            if case.gold is None: return bool(calls) is (case.category in _ANY)
            made = [{c['name']: c['arguments']} for c in calls]
            language = {'simple_java': Language.JAVA, 'simple_javascript': Language.JAVASCRIPT}.get(case.category, Language.PYTHON)
            try: return ast_checker(case.functions, made, case.gold, language, case.category, 'any')['valid']
            except (AttributeError, TypeError, KeyError): return False  # It falls over a value of a kind that it did not foresee
        yield valid
    finally:
        sys.path.remove(wheel)
        for m in [m for m in sys.modules if m.startswith('bfcl_eval')]: del sys.modules[m]


def other(v, draw):
    "A value near `v`: another type, another case, another element, another acceptable value."
    near = [None, str(v), [v], {'a': v}, not v, 7, 7.0, 'x', '', [], {}, True, 0]
    if isinstance(v, str): near += [v.upper(), v.replace(' ', '-'), v + '.', v + 'x', f"{v[:1]}'{v[1:]}"]
    if isinstance(v, (int, float)): near += [float(v), int(v), -v, v + 1, bool(v)]
    if isinstance(v, list): near += [v[::-1], v[1:], [*v, *v[:1]], [str(x) for x in v], [float(x) if isinstance(x, int) else x for x in v], [x.upper() if isinstance(x, str) else x for x in v], tuple(v) and [other(v[0], draw), *v[1:]]]
    if isinstance(v, dict): near += [{k: x for k, x in list(v.items())[1:]}, v | {'zq': 1}, {k: other(x, draw) for k, x in v.items()}, {k: x.upper() if isinstance(x, str) else x for k, x in v.items()}]
    return draw.choice(near)


def true_calls(case):
    if case.category in LANGUAGES: return [{'name': c.name, 'arguments': dict(c.arguments)} for c in case.run.conversation[-1].calls]
    return [{'name': n, 'arguments': first_allowed(a)} for g in case.gold or () for n, a in g.items()]


SOURCE = ['5', '5L', '5l', '-5', '5f', '2.5', '2.5e3F', '5n', 'true', 'TRUE', 'null', '"a"', "'a'", "'a", 'new int[]{1, 2}', 'new String[] { "a", "b" }', 'new int[]{}', 'new ArrayList<>()', 'new ArrayList<Integer>(Arrays.asList(1, 2))',
          'new ArrayList<>() {{ add("a"); add(2); }}', 'new ArrayList<>() {{ }}', 'new HashMap<>()', 'new HashMap<>() {{ }}', 'new HashMap<String, Object>() {{put("a", 1); put("b", "x y");}}', 'new HashMap<>() { { put("k", true); } }',
          'new HashMap<>() {', '[]', '[1, 2]', '["a", \'b\', c]', '[[1, 2], [3]]', 'new Array(1, "a")', 'new Array([1], [2])', '{}', '{"a": 1}', "{a: 'x', b: [1, 2], c: true}", '{"a": {"b": 1}}', '{a}', '{', '']


def spoiled(case, draw):
    calls = true_calls(case)
    if not calls: return [{'name': case.functions[0]['name'], 'arguments': {}}] if case.functions and draw.random() < .5 else []
    for _ in range(draw.choice([1, 1, 2])):
        k, how = draw.randrange(len(calls)), draw.random()
        args, (want,) = calls[k]['arguments'], case.gold[k % len(case.gold)].values()
        if how < .05: del calls[k]
        elif how < .1: calls.append(copy.deepcopy(calls[k]))
        elif how < .15: draw.shuffle(calls)
        elif how < .2: calls[k]['name'] = draw.choice([calls[k]['name'].upper(), *(f['name'] for f in case.functions)])
        elif how < .3 and args: del args[draw.choice(list(args))]
        elif how < .35: args[draw.choice(['zq', *case.functions[0]['parameters']['properties']])] = 1
        elif how < .55 and want and case.category not in LANGUAGES: args.update({n: v for n in [draw.choice(list(want))] if want[n] and (v := first_allowed({n: [draw.choice(want[n])]}).get(n)) is not None})
        elif args and case.category in LANGUAGES and draw.random() < .6: args[draw.choice(list(args))] = draw.choice(SOURCE)
        elif args: args.update({n: other(args[n], draw) for n in [draw.choice(list(args))]})
        if not calls: break
    return calls


@pytest.mark.parametrize('category', _CALLS + _SILENT + _ANY)
def test_verdicts_are_the_public_ones(checker, category):
    draw, seen = random.Random(category), set()
    for case in bfcl(bfcl_files((category,))[0]):
        gold = true_calls(case)
        for calls in [gold, gold[::-1], *(spoiled(case, draw) for _ in range(8))]:
            right = checker(case, calls)
            assert (bfcl_verdict(case, calls) == '') is right, (case.id, calls, bfcl_verdict(case, calls))
            seen.add(right)
    assert seen == {True, False}
