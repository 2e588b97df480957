"""One rung of the training ladder on one device: a model of a published shape with random weights, some timed optimiser steps, one JSON file of results.

    python nbs/bench/h200.py --list                                # the steps, each under ten minutes on an H200
    python nbs/bench/h200.py --step 8b-lora-D                      # one of them
    python nbs/bench/h200.py --shape llama-3.1-8b --regime lora --row 8192 --rows 3 --attention varlen --checkpointed 16 --liger
    python nbs/bench/h200.py --step tiny --device cpu              # the smallest one, anywhere
"""
import argparse
import contextlib
import datetime
import hashlib
import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from actionstudio.attention import SEGMENTS, VARLEN  # noqa: E402
from actionstudio.config import Run  # noqa: E402
from actionstudio.metrics import known_peak, memory_gib  # noqa: E402
from actionstudio.model import _with_lora, checkpoint_layers, learning, quantise_experts  # noqa: E402
from actionstudio.plan import SHAPES, Shape, Way, flops  # noqa: E402

RESULTS = Path(__file__).parent/'results'
TINY = Shape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, inner=128, vocab=512)
TINY_MOE = Shape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, inner=128, vocab=512, experts=4, active=2)
NAMED = SHAPES | {'tiny': TINY, 'tiny-moe': TINY_MOE}
EVERY = 10 ** 6  # Checkpoint every layer

# A: everything is computed again, plain layers. B: fused norms, rotary and SwiGLU. C: a faster attention. D and E: B and C with nothing computed again
RUNGS = {'A': dict(checkpointed=EVERY), 'B': dict(checkpointed=EVERY, liger=True), 'C': dict(checkpointed=EVERY, liger=True, attention='flash_attention_4'),
         'D': dict(liger=True), 'E': dict(liger=True, attention='flash_attention_4')}
EIGHT, SEVEN, TWENTY2 = 'llama-3.1-8b', 'mixtral-8x7b', 'mixtral-8x22b'
STEPS = {
    'tiny': dict(shape='tiny', row=64, rows=2, attention=SEGMENTS), 'tiny-moe': dict(shape='tiny-moe', regime='qlora', row=64, rows=2, attention=SEGMENTS),
    **{f'8b-lora-{k}': dict(shape=EIGHT, row=8192, rows=3) | v for k, v in RUNGS.items()},
    '8b-lora-cudnn': dict(shape=EIGHT, row=8192, rows=3, liger=True, attention='cudnn'),
    '8b-qlora-B': dict(shape=EIGHT, regime='qlora', row=8192, rows=6) | RUNGS['B'], '8b-qlora-D': dict(shape=EIGHT, regime='qlora', row=8192, rows=3) | RUNGS['D'],
    '8b-qlora-4k': dict(shape=EIGHT, regime='qlora', row=4096, rows=1) | RUNGS['D'],
    '8b-full-A': dict(shape=EIGHT, regime='full', row=8192, rows=2, optimiser='adamw_8bit') | RUNGS['A'],
    '8b-full-D': dict(shape=EIGHT, regime='full', row=8192, rows=1, optimiser='adamw_8bit') | RUNGS['D'],
    **{f'8x7b-{r}-B': dict(shape=SEVEN, regime=r, row=4096, rows=8) | RUNGS['B'] for r in ('lora', 'qlora')},
    **{f'8x22b-qlora-{n}': dict(shape=TWENTY2, regime='qlora', row=row, rows=rows) | RUNGS['B'] for n, row, rows in (('4k', 4096, 8), ('32k', 32768, 1))},
    **{f'8x22b-lora-{n}layers': dict(shape=TWENTY2, row=4096, rows=8, layers=n) | RUNGS['B'] for n in (4, 8)},  # The slope over layers gives the whole: extrapolated
    **{f'8x7b-full-{n}layers': dict(shape=SEVEN, regime='full', row=4096, rows=8, layers=n, optimiser='adamw_8bit') | RUNGS['B'] for n in (4, 8)},
    'mixed': dict(shape=EIGHT, row=8192, rows=3, mixed=True) | RUNGS['D'], 'mixed-padded': dict(shape=EIGHT, row=8192, rows=3, mixed=True, attention='sdpa', liger=True)}


def arguments(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--list', action='store_true', help='name the steps and end')
    p.add_argument('--step', choices=STEPS, help='a named step; the flags below change it')
    p.add_argument('--shape', choices=NAMED, help='sizes of the model')
    p.add_argument('--layers', type=int, help='fewer layers than the shape has')
    p.add_argument('--regime', choices=['lora', 'qlora', 'full'])
    p.add_argument('--row', type=int, help='tokens of a row')
    p.add_argument('--rows', type=int, help='rows of a pass, which is a step')
    p.add_argument('--mixed', action='store_true', default=None, help='samples of mixed lengths: seven of 1/6 of a row for each three of 1/2')
    p.add_argument('--attention', help=f'{VARLEN}, {SEGMENTS}, sdpa, cudnn, flash_attention_4 or another that transformers knows')
    p.add_argument('--checkpointed', type=int, help='layers that are computed again')
    p.add_argument('--liger', action='store_true', default=None, help='fused layers of liger-kernel')
    p.add_argument('--compile', action='store_true', default=None, help='torch.compile of each layer')
    p.add_argument('--optimiser', choices=['adamw', 'adamw_8bit'])
    p.add_argument('--warmup', type=int, help='steps that are not timed')
    p.add_argument('--steps', type=int, help='steps that are')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--out', type=Path, default=RESULTS, help='folder of the results')
    return p.parse_args(args)


DEFAULTS = dict(shape='tiny', layers=None, regime='lora', row=64, rows=2, mixed=False, attention=VARLEN, checkpointed=0, liger=False, compile=False, optimiser='adamw', warmup=3, steps=8)


def settings(a) -> dict:
    "Defaults, then the step, then the flags"
    return DEFAULTS | STEPS.get(a.step, {}) | {k: v for k in DEFAULTS if (v := getattr(a, k)) is not None}


def config_of(s: Shape, layers):
    from transformers import LlamaConfig, MixtralConfig
    sizes = dict(hidden_size=s.hidden, intermediate_size=s.inner, num_hidden_layers=layers or s.layers, num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, head_dim=s.head_dim,
                 vocab_size=s.vocab, tie_word_embeddings=s.tied, max_position_embeddings=131072)
    return MixtralConfig(**sizes, num_local_experts=s.experts, num_experts_per_tok=s.active) if s.experts else LlamaConfig(**sizes)


def fill(module, device):
    "Random weights, made where they are needed"
    module.to_empty(device=device)
    for p in module.parameters(): p.data.fill_(1.) if p.dim() == 1 else p.data.normal_(0, .02)


def to_nf4(layer, device, dtype):
    "Each linear layer and each stack of experts of a decoder layer as NF4, so that only one layer is ever whole"
    import bitsandbytes as bnb
    for module in list(layer.modules()):
        for name, m in list(module.named_children()):
            if type(m) is not torch.nn.Linear: continue
            small = bnb.nn.Linear4bit(m.in_features, m.out_features, m.bias is not None, dtype, True, 'nf4', device='meta')
            small.weight = bnb.nn.Params4bit(m.weight.data.cpu() if device == 'cpu' else m.weight.data, requires_grad=False, quant_type='nf4', compress_statistics=True)
            small.weight = small.weight.to(device)
            small.support_avx512bf16_for_cpu = False
            setattr(module, name, small)
    quantise_experts(layer)


def build(c: dict, device: str):
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head
    dtype = torch.bfloat16 if device == 'cuda' else torch.float32
    config = config_of(NAMED[c['shape']], c['layers'])
    name = 'sdpa' if c['attention'] == 'cudnn' else c['attention']
    with torch.device('meta'): model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=name)
    body = model.model
    for layer in body.layers:
        fill(layer, device)
        if c['regime'] == 'qlora': to_nf4(layer, device, dtype)
    for part in (body.embed_tokens, body.norm, *([] if config.tie_word_embeddings else [model.lm_head])): fill(part, device)
    if config.tie_word_embeddings: model.tie_weights()
    body.rotary_emb = type(body.rotary_emb)(config).to(device)
    if left := [n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]: raise RuntimeError(f'not filled: {left[0]}')
    model.requires_grad_(c['regime'] == 'full')
    if c['liger']:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    layers = len(body.layers)
    checkpointed = min(c['checkpointed'], layers)
    add_fused_lm_head(model)  # Before the adapters, as it asks
    if checkpointed: checkpoint_layers(model, checkpointed)
    if c['compile']:
        for layer in body.layers: layer.compile()
    run = Run(model='m', data='d', out='o', regime=c['regime'])
    return (model if c['regime'] == 'full' else _with_lora(model, run)).train(), checkpointed


def batches(c: dict, device: str, vocab: int) -> dict:
    "One pass: all tokens train, none is padding; each row one sample, or samples of mixed lengths"
    torch.manual_seed(0)
    sizes = [c['row']] * c['rows']
    if c['mixed']: sizes = [n for k in range(c['rows']) for n in ([c['row'] // 6] * 6 if k % 2 == 0 else [c['row'] // 2] * 2)]
    if c['attention'] in (SEGMENTS, VARLEN):
        ends = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32).to(device)
        ids = torch.randint(0, vocab, (1, sum(sizes)), device=device)
        return {'input_ids': ids, 'labels': ids, 'position_ids': torch.cat([torch.arange(n) for n in sizes])[None].to(device), 'cu_seq_lens_q': ends, 'cu_seq_lens_k': ends,
                'max_length_q': max(sizes), 'max_length_k': max(sizes)}
    ids = torch.randint(0, vocab, (len(sizes), max(sizes)), device=device)
    there = torch.arange(max(sizes))[None] < torch.tensor(sizes)[:, None]
    dense = bool(there.all())
    return {'input_ids': ids, 'labels': ids.masked_fill(~there.to(device), -100)} | ({} if dense else {'attention_mask': there.long().to(device)})


def timed(c: dict, device: str) -> dict:
    model, checkpointed = build(c, device)
    shape = NAMED[c['shape']]
    batch = batches(c, device, shape.vocab)
    learns = [p for p in model.parameters() if p.requires_grad]
    if c['optimiser'] == 'adamw_8bit':
        import bitsandbytes as bnb
        optimiser = bnb.optim.AdamW8bit(learns, lr=1e-5)
    else: optimiser = torch.optim.AdamW(learns, lr=1e-5, fused=True)
    kernel = contextlib.nullcontext()
    if c['attention'] == 'cudnn': kernel = torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.CUDNN_ATTENTION])
    tokens, trained = int((batch['labels'] != -100).sum()), int((batch['labels'][:, 1:] != -100).sum())
    seconds, losses = [], []
    if device == 'cuda': torch.cuda.reset_peak_memory_stats()
    with kernel:
        for _ in range(c['warmup'] + c['steps']):
            if device == 'cuda': torch.cuda.synchronize()
            start = time.perf_counter()
            loss = -model(**batch, fused_lm_head=True).log_probs.sum() / trained
            loss.backward()
            optimiser.step(); optimiser.zero_grad(set_to_none=True)
            losses.append(loss.item())  # Waits for the device
            seconds.append(time.perf_counter() - start)
    times = sorted(seconds[c['warmup']:])
    lengths = batch['cu_seq_lens_q'].diff().tolist() if 'cu_seq_lens_q' in batch else (batch['labels'] != -100).sum(1).tolist()
    way = Way(regime=c['regime'], sharding='replica', optimiser=c['optimiser'], micro_tokens=tokens, grad_accum=1, checkpointed=checkpointed, context=sum(n * n for n in lengths) / sum(lengths))
    import msgspec
    work, peak = flops(msgspec.structs.replace(shape, layers=c['layers'] or shape.layers), way), known_peak()
    rate = tokens / times[len(times) // 2]
    return {'tokens': tokens, 'trained': trained, 'seconds': [round(x, 5) for x in seconds[c['warmup']:]], 'tokens_per_second': rate, 'gflop_per_token': work / 1e9,
            'mfu': rate * work / peak if peak else None, 'mfu_at_790': rate * work / 790e12 if peak else None, 'peak_gib': memory_gib(), 'losses': [losses[0], losses[-1]],
            'checkpointed': checkpointed, **learning(model)}


def versions() -> dict:
    found = {}
    for p in ('torch', 'transformers', 'trl', 'peft', 'bitsandbytes', 'liger-kernel', 'flash-attn-4'):
        with contextlib.suppress(PackageNotFoundError): found[p] = version(p)
    return found


def main(args=None) -> int:
    a = arguments(args)
    if a.list:
        for name, s in STEPS.items(): print(f'{name:20}', ', '.join(f'{k} {v}' for k, v in s.items()))
        return 0
    c = settings(a)
    config = hashlib.sha256(json.dumps(c, sort_keys=True).encode()).hexdigest()[:12]
    device = torch.cuda.get_device_name() if a.device == 'cuda' else 'cpu'
    result = {'step': a.step, 'config': c, 'config_hash': config, 'device': device, 'date': datetime.date.today().isoformat(), 'versions': versions()} | timed(c, a.device)
    a.out.mkdir(parents=True, exist_ok=True)
    at = a.out/f"{a.step or c['shape']}-{device.lower().replace(' ', '-')}-{config}.json"
    at.write_text(json.dumps(result, indent=1) + '\n')
    mfu = f"  MFU {result['mfu']:.1%}" if result['mfu'] else ''
    print(f"{a.step or c['shape']}: {result['tokens_per_second']:,.0f} tokens/s{mfu}  {result['peak_gib']:.1f} GiB  → {at.name}")
    return 0


if __name__ == '__main__': sys.exit(main())
