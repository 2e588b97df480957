"Our verdicts on multi-turn questions beside those of the benchmark's own checker, which evaluates the calls as text."
import copy
import random
import sys

import pytest

from actionstudio.assets import fetch_wheel, unpacked
from actionstudio.bfcl_turns import bfcl_turns, turns_verdict
from actionstudio.formats.gold import BFCL_CLASSES
from actionstudio.schema import InputError


@pytest.fixture(scope='module')
def checker():
    try: wheel = str(fetch_wheel('bfcl-eval'))
    except InputError as e: pytest.skip(f'the wheel of bfcl-eval cannot be had: {e}')
    sys.path.insert(0, wheel)
    try:
        from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
        asked = [0]
        def valid(case, replies):
            asked[0] += 1
            text = lambda calls: [f"{c['name']}({', '.join(f'{k}={v!r}' for k, v in c['arguments'].items())})" for c in calls]
            entry = {'id': case.id, 'initial_config': case.config, 'involved_classes': case.classes}
            return multi_turn_checker([[text(s) for s in turn if s] for turn in replies], [text(g) for g in case.gold], entry, 'multi_turn_base', f'm{asked[0]}')['valid']
        yield valid
    finally:
        sys.path.remove(wheel)
        for m in [m for m in sys.modules if m.startswith('bfcl_eval')]: del sys.modules[m]


def spoiled(case, draw):
    turns = [[copy.deepcopy(g)] if g else [] for g in case.gold]
    full = [k for k, t in enumerate(turns) if t]
    k = draw.choice(full)
    calls, how = turns[k][0], draw.randrange(5)
    if how == 0: calls.pop(draw.randrange(len(calls)))
    if how == 1: calls.insert(draw.randrange(len(calls) + 1), {'name': draw.choice([x.name for x in case.run.tools]), 'arguments': {}})
    if how == 2: draw.shuffle(calls)
    if how == 3: turns[k] = [[c] for c in calls]
    if how == 4 and (args := draw.choice(calls)['arguments']): args[draw.choice(list(args))] = draw.choice(['x', 3, 0.5, [], True])
    return turns


@pytest.mark.slow
def test_verdicts_are_the_public_ones(checker):
    base, data = 'BFCL_v4_multi_turn_base.json', 'bfcl_eval/data/'
    file = unpacked('bfcl-eval', [data + base, f'{data}possible_answer/{base}', *(f'{data}multi_turn_func_doc/{d}.json' for d in BFCL_CLASSES.values())])[0]
    draw, seen = random.Random(0), {True: 0, False: 0}
    for case in bfcl_turns(file):
        for replies in ([[g] if g else [] for g in case.gold], spoiled(case, draw), spoiled(case, draw)):
            right = checker(case, replies)
            assert (turns_verdict(case, replies) == '') is right, (case.id, replies, turns_verdict(case, replies))
            seen[right] += 1
    assert seen[True] >= 200 and seen[False] >= 100, seen
    print(seen)
