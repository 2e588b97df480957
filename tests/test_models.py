"Small random twins of the models that people train: one step of each kind, and the first loss is the one that transformers computes without us."
import json
import math

import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48)
TWINS = {  # Config, what it differs in, the layers that an adapter learns beside
    'llama': ('LlamaConfig', {}, None), 'mistral': ('MistralConfig', dict(sliding_window=12), None), 'mixtral': ('MixtralConfig', dict(num_local_experts=4), None),
    'qwen2': ('Qwen2Config', {}, None), 'qwen3': ('Qwen3Config', dict(head_dim=8), None), 'qwen3_moe': ('Qwen3MoeConfig', dict(head_dim=8, **MOE), None),
    'gemma': ('GemmaConfig', dict(head_dim=8), None), 'gemma3': ('Gemma3TextConfig', dict(head_dim=8, sliding_window=12), None),
    'phi': ('PhiConfig', {}, ['q_proj', 'k_proj', 'v_proj', 'dense']), 'phi3': ('Phi3Config', dict(sliding_window=12, pad_token_id=0), ['qkv_proj', 'o_proj'])}


def turn(*words): return [{"role": "assistant", "content": " ".join(words)}]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Runs and pairs, as they come before they are encoded"
    folder = tmp_path_factory.mktemp('data')
    runs = [{"unique_trajectory_id": str(k), "task_instruction": "", "tools": [], "conversation": [{"role": "user", "content": f"Say {k}."}]} for k in range(4)]
    for name, more in (('sft', lambda k: {}), ('dpo', lambda k: {"chosen": turn(f"{k}!"), "rejected": turn("Why", str(k), "?")})):
        records = [r | {"conversation": r["conversation"] + (turn("word", "by", "word", str(k)) if name == 'sft' else [])} | more(k) for k, r in enumerate(runs)]
        (folder/f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
    return folder


def twin(name, model, folder, data=None):
    "The folder of a random model with our tokenizer; with `data`, rows of it beside"
    from actionstudio.encode_file import encode_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    config, more, _ = TWINS[name]
    tok = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(0)
    config = getattr(transformers, config)(**SMALL | dict(vocab_size=len(tok), eos_token_id=tok.eos_token_id, bos_token_id=None) | more)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    if data: encode_file(data/'sft.jsonl', rows_of(folder), folder)  # Some models have a tokenizer class of their own
    return folder


def rows_of(folder): return folder.with_name(folder.name + '_rows')


def loss_by_transformers(folder, rows):
    "Mean over trained tokens, each sample alone, plain attention"
    from transformers import AutoModelForCausalLM
    model, lost, count = AutoModelForCausalLM.from_pretrained(folder, attn_implementation='eager', dtype=torch.float32).eval(), 0., 0
    for r in rows:
        with torch.no_grad(): logits = model(torch.tensor([r.input_ids])).logits[0, :-1]
        lost += torch.nn.functional.cross_entropy(logits, torch.tensor(r.labels[1:]), reduction='sum').item()
        count += r.trained
    return lost / count


def step(folder, data, out, regime, targets=None, objective='sft', **more):
    "The report of a run of one step"
    from actionstudio.config import Run
    from actionstudio.dpo import train_dpo
    from actionstudio.sft import train_sft
    if targets and regime != 'full': more['lora_targets'] = targets
    run = Run(model=str(folder), data=str(rows_of(folder) if objective == 'sft' else data/'dpo.jsonl'), out=str(out), objective=objective, regime=regime, dtype='float32', row_tokens=512, lr=1e-3, **more)
    report = (train_sft if objective == 'sft' else train_dpo)(run)
    assert report['steps'] == 1 and 0 < report['learns'] <= report['all']
    return report


@pytest.mark.parametrize('name', [n if n not in ('gemma3', 'phi3') else pytest.param(n, marks=pytest.mark.slow) for n in TWINS])
def test_a_step_of_each_kind(name, model, data, tmp_path):
    from actionstudio.dataset import load_encoded
    from safetensors.torch import load_file
    folder, targets = twin(name, model, tmp_path/name, data), TWINS[name][2]
    expected = loss_by_transformers(folder, load_encoded(rows_of(folder)/'encoded.parquet'))
    for regime in ('full', 'lora'):
        assert step(folder, data, tmp_path/regime, regime, targets)['loss_first'] == pytest.approx(expected, rel=1e-5), regime
    quantised = step(folder, data, tmp_path/'qlora', 'qlora', targets)
    assert quantised['loss_first'] == pytest.approx(expected, rel=.05)
    for regime in ('lora', 'qlora'):  # B begins at 0, so it is not 0 where a step has learnt
        learnt = {k: v.abs().max() for k, v in load_file(tmp_path/regime/'adapter'/'adapter_model.safetensors').items() if 'lora_B' in k}
        assert len(learnt) >= 4 and min(learnt.values()) > 0, regime
    assert step(folder, data, tmp_path/'dpo', 'lora', targets, 'dpo')['loss_first'] == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize('name', [n if n in ('qwen2', 'mixtral') else pytest.param(n, marks=pytest.mark.slow) for n in TWINS])
def test_a_step_by_preference_in_each_regime(name, model, data, tmp_path):
    from safetensors.torch import load_file
    folder, targets = twin(name, model, tmp_path/name), TWINS[name][2]
    before = {k: v for f in folder.glob('*.safetensors') for k, v in load_file(f).items()}
    for regime in ('full', 'qlora'):  # The test above has lora
        assert step(folder, data, tmp_path/regime, regime, targets, 'dpo')['loss_first'] == pytest.approx(math.log(2), rel=1e-5), regime
    after = {k: v for f in (tmp_path/'full'/'model').glob('*.safetensors') for k, v in load_file(f).items()}
    assert after.keys() == before.keys() and sum(not torch.equal(after[k].float(), before[k].float()) for k in before) > len(before) / 2
    learnt = {k: v.abs().max() for k, v in load_file(tmp_path/'qlora'/'adapter'/'adapter_model.safetensors').items() if 'lora_B' in k}
    assert len(learnt) >= 4 and min(learnt.values()) > 0


@pytest.mark.parametrize('name', ['mixtral', pytest.param('qwen3_moe', marks=pytest.mark.slow)])
def test_adapters_on_attention_beside_experts_in_nf4(name, model, data, tmp_path):
    "The experts are 4-bit by their bytes, stay as they are, and the adapters learn through them"
    from actionstudio.config import Run
    from actionstudio.model import expert_parameters, load_for_training
    from safetensors.torch import load_file
    folder = twin(name, model, tmp_path/name, data)
    run = Run(model=str(folder), data='d', out='o', regime='qlora', dtype='bfloat16', row_tokens=512)
    plain, quantised = load_for_training(run.__class__(model=str(folder), data='d', out='o', regime='lora')), load_for_training(run)
    wide = sum(plain.get_submodule(m).get_parameter(p).numel() for m, p in expert_parameters(plain))
    packed = [m for m in quantised.modules() if type(m).__name__ == 'ParametrizationList']
    scales = sum(t.numel() * t.element_size() for m in packed for s in [m[0].quant_state] for t in (s.absmax, s.state2.absmax))
    held = sum(m.original.numel() * m.original.element_size() for m in packed)
    assert len(packed) == 4 and held == wide / 2 and scales < wide * .02  # Half a byte a weight, and its scales
    assert not expert_parameters(quantised)  # No expert is left as it was
    assert step(folder, data, tmp_path/'out', 'qlora')['learns'] == sum(p.numel() for p in quantised.parameters() if p.requires_grad)
    learnt = {k: v for k, v in load_file(tmp_path/'out'/'adapter'/'adapter_model.safetensors').items() if 'lora_B' in k}
    assert learnt and all('self_attn' in k for k in learnt) and min(v.abs().max() for v in learnt.values()) > 0


@pytest.mark.parametrize('name', ['mixtral', pytest.param('qwen3_moe', marks=pytest.mark.slow)])
def test_adapters_on_experts(name, model, data, tmp_path):
    from actionstudio.model import merge
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    folder = twin(name, model, tmp_path/name, data)
    plain, more = (step(folder, data, tmp_path/out, 'lora', lora_experts=e) for out, e in (('plain', False), ('experts', True)))
    assert more['loss_first'] == pytest.approx(plain['loss_first'], rel=1e-5) and more['learns'] > plain['learns']
    learnt = {k: v for k, v in load_file(tmp_path/'experts'/'adapter'/'adapter_model.safetensors').items() if 'lora_B' in k and 'experts' in k}
    assert len(learnt) == 4 and min(v.abs().max() for v in learnt.values()) > 0  # Two stacks of weights in two layers
    merge(tmp_path/'experts'/'adapter', folder, tmp_path/'merged', dtype='float32')
    base, merged = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).state_dict() for f in (folder, tmp_path/'merged'))
    moved = {k for k in base if not torch.equal(base[k], merged[k])}
    assert sum('experts' in k for k in moved) == 4 and sum('self_attn' in k for k in moved) == 8 and len(moved) == 12


def test_what_no_adapter_can_be_beside_is_refused(model, data, tmp_path):
    from actionstudio.schema import InputError
    for name, more, message in (('phi', {}, 'lora_targets: found o_proj'), ('llama', {'lora_experts': True}, 'found a model without experts')):
        folder = twin(name, model, tmp_path/name, data)
        with pytest.raises(InputError, match=message): step(folder, data, tmp_path/f'{name}_out', 'lora', **more)


def test_adapters_on_quantised_experts_are_refused():
    from actionstudio.config import Run
    from actionstudio.schema import InputError
    with pytest.raises(InputError, match='`lora_experts`: found true'): Run(model='m', data='d', out='o', regime='qlora', lora_experts=True)


def test_capped_attention_is_refused(model, data, tmp_path, monkeypatch):
    from actionstudio.schema import InputError
    monkeypatch.setitem(TWINS, 'gemma2', ('Gemma2Config', dict(head_dim=8), None))
    with pytest.raises(InputError, match='attn_logit_softcapping: found 50'): step(twin('gemma2', model, tmp_path/'gemma2', data), data, tmp_path/'out', 'full')
