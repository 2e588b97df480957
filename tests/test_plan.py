"What `plan` proposes is what training accepts, and nothing else."
from itertools import product
from typing import get_args

import msgspec
import pytest

from actionstudio.config import Run
from actionstudio.engines import engine
from actionstudio.plan import SHAPES, Shape, plans
from actionstudio.schema import InputError

TINY = Shape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, inner=96, vocab=100)
PLACES = [*product((1, 2, 8), (1, 2), ('h200', 'cpu'))]


def accepted(regime, sharding, optimiser, offload, gpus, nodes, gpu):
    "What training says, of a run file with these words, before it loads a weight"
    try: engine(Run(model='m', data='d', out='o', regime=regime, sharding=sharding, optimiser=optimiser, offload=offload),
                {'WORLD_SIZE': str(gpus * nodes), 'LOCAL_WORLD_SIZE': str(gpus)}, gpu=gpu != 'cpu')
    except InputError: return False
    return True


@pytest.mark.parametrize('regime', ['full', 'lora', 'qlora'])
def test_each_combination_is_planned_where_training_accepts_it(regime):
    said = {}
    for sharding, optimiser, offload, (gpus, nodes, gpu) in product(get_args(Run.__annotations__['sharding']), ('adamw', 'adamw_8bit'), (False, True), PLACES):
        where = (regime, sharding, optimiser, offload, gpus, nodes, gpu)
        try: found = [(p.way.sharding, p.way.optimiser) for p in plans(TINY, regime, gpu, gpus, nodes, shardings=[sharding], optimisers=[optimiser], offload=offload, row=64, batch_tokens=4096)]
        except InputError: found = []
        assert found == [(sharding, optimiser)] * accepted(*where), where
        said.setdefault(bool(found), []).append(where)
    assert len(said[True]) > 10 and len(said[False]) > 10


@pytest.mark.parametrize('name', sorted(SHAPES))
def test_whatever_is_proposed_is_accepted(name):
    for regime, (gpus, nodes, gpu) in product(('full', 'lora', 'qlora'), [(1, 1, 'h200'), (8, 2, 'h200'), (2, 1, 'rtx4090'), (2, 1, 'cpu')]):
        for p in plans(name, regime, gpu, gpus, nodes):
            w = p.way
            run = Run(model='m', data='d', out='o', regime=w.regime, sharding=w.sharding, optimiser=w.optimiser, offload=w.offload, micro_batch=w.rows, grad_accum=w.grad_accum, checkpointed=w.checkpointed)
            engine(run, {'WORLD_SIZE': str(w.world), 'LOCAL_WORLD_SIZE': str(w.gpus)}, gpu=gpu != 'cpu')


def test_a_mixture_that_zero3_does_not_know_is_not_planned_with_it():
    "On cards that hold no layer of it otherwise, a known mixture is offloaded; an unknown one is not"
    from actionstudio.plan import Constants
    known = msgspec.structs.replace(SHAPES['mixtral-8x7b'], layers=4)
    how = dict(gpu='rtx4090', gpus=2, constants=Constants(host=4000.), row=512, batch_tokens=1024)
    assert [p.way.sharding for p in plans(known, 'full', **how) if p.fits] == ['zero3']
    assert not [p for p in plans(msgspec.structs.replace(known, mixture='new_moe'), 'full', **how) if p.fits]


def test_a_plan_holds_to_what_the_file_says():
    train = pytest.importorskip('actionstudio.train')
    from actionstudio.plan import filled
    run = Run(model='llama-3.1-8b', data='d', out='o', regime='full')
    for keys in ({}, {'optimiser': 'adamw_8bit'}, {'sharding': 'hsdp'}, {'sharding': 'zero1'}, {'sharding': 'zero2', 'offload': True}, {'sharding': 'zero3'}, {'sharding': 'zero3', 'offload': True}, {'checkpointed': 5},
                 {'micro_batch': 2, 'grad_accum': 5, 'row_tokens': 2048}):
        r = msgspec.structs.replace(run, **keys)
        p = train.planned(r, train.Machine('h200', 8, 2), {1500: 70_000, 2000: 100}, said=[*keys])
        settled, new = filled(r, ['model', 'data', 'out', 'regime', *keys], p)  # Raises where plan and file contradict each other
        assert all(getattr(settled, k) == v for k, v in keys.items()) and not set(new) & set(keys)
        engine(settled, {'WORLD_SIZE': '16', 'LOCAL_WORLD_SIZE': '8'})
        if 'row_tokens' in keys: assert (p.way.micro_tokens, p.way.rows, p.way.grad_accum) == (4096, 2, 5)
        if 'checkpointed' in keys: assert p.way.checkpointed == 5
