"""One rung of the training ladder on one device: a model of a published shape with random weights, some timed optimiser steps, one JSON file of results.

    python nbs/bench/h200.py --list                                # the steps, each under two minutes on an H200
    python nbs/bench/h200.py --step 8b-lora-D                      # one of them
    python nbs/bench/h200.py --run ceilings 8b-lora-D 8b-full-D    # several, one after the other; what has a result is left out, what fails leaves its message
    python nbs/bench/h200.py --shape llama-3.1-8b --regime lora --row 8192 --rows 3 --attention varlen --checkpointed 16 --liger
    python nbs/bench/h200.py --step tiny --device cpu              # the smallest one, anywhere
"""
import argparse
import contextlib
import datetime
import gc
import hashlib
import json
import signal
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from actionstudio.attention import SEGMENTS, VARLEN, segment_attention, varlen_attention  # noqa: E402
from actionstudio.config import Run  # noqa: E402
from actionstudio.metrics import known_peak, memory_gib  # noqa: E402
from actionstudio.layers import SORTED  # noqa: E402
from actionstudio.model import _with_lora, checkpoint_layers, learning, quantise_experts  # noqa: E402
from actionstudio.plan import SHAPES, Shape, Way, flops  # noqa: E402

RESULTS = Path(__file__).parent/'results'
TINY = Shape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, inner=128, vocab=512)
TINY_MOE = Shape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, inner=128, vocab=512, experts=4, active=2)
NAMED = SHAPES | {'tiny': TINY, 'tiny-moe': TINY_MOE}
EVERY = 10 ** 6  # Checkpoint every layer

# A: everything is computed again, plain layers. B: fused norms, rotary and SwiGLU. C: cuDNN's attention. D and E: B and C with nothing computed again. F: B, with experts that scatter nothing
RUNGS = {'A': dict(checkpointed=EVERY), 'B': dict(checkpointed=EVERY, liger=True), 'C': dict(checkpointed=EVERY, liger=True, attention='cudnn'),
         'F': dict(checkpointed=EVERY, liger=True, experts=SORTED), 'D': dict(liger=True), 'E': dict(liger=True, attention='cudnn')}
EIGHT, SEVEN, TWENTY2, FEW = 'llama-3.1-8b', 'mixtral-8x7b', 'mixtral-8x22b', dict(warmup=1, steps=2)
STEPS = {
    'tiny': dict(shape='tiny', row=64, rows=2, attention=SEGMENTS), 'tiny-moe': dict(shape='tiny-moe', regime='qlora', row=64, rows=2, attention=SEGMENTS),
    **{f'8b-lora-{k}': dict(shape=EIGHT, row=8192, rows=3) | RUNGS[k] for k in 'ABCDE'},
    '8b-lora-D-32bit': dict(shape=EIGHT, row=8192, rows=2, autocast=False) | RUNGS['D'],  # Adapters that compute in 32 bits
    '8b-lora-compile': dict(shape=EIGHT, row=8192, rows=3, compile=True), '8b-lora-fa4': dict(shape=EIGHT, row=8192, rows=3, liger=True, attention='flash_attention_4'),
    **{f'8b-qlora-{k}': dict(shape=EIGHT, regime='qlora', row=8192, rows=3) | RUNGS[k] for k in 'BDE'},
    '8b-qlora-4k': dict(shape=EIGHT, regime='qlora', row=4096, rows=1) | RUNGS['D'],
    **{f'8b-full-{k}': dict(shape=EIGHT, regime='full', row=8192, rows=2, optimiser='adamw_8bit') | RUNGS[k] for k in 'ABDE'},
    '8b-full-master': dict(shape=EIGHT, regime='full', row=8192, rows=2, optimiser='adamw_8bit', master=True) | RUNGS['B'],
    **{f'8x7b-{r}-{k}': dict(shape=SEVEN, regime=r, row=4096, rows=8) | RUNGS[k] | FEW for r in ('lora', 'qlora') for k in 'BF'},
    **{f'8x7b-lora-{n}half': dict(shape=SEVEN, row=4096, rows=2) | RUNGS[k] | dict(checkpointed=16) for n, k in (('', 'B'), ('F-', 'F'))},
    **{f'8x22b-qlora-{n}': dict(shape=TWENTY2, regime='qlora', row=row, rows=rows) | RUNGS['F'] | FEW for n, row, rows in (('4k', 4096, 4), ('32k', 32768, 1))},
    **{f'8x22b-lora-{n}layers': dict(shape=TWENTY2, row=4096, rows=8, layers=n) | RUNGS['F'] | FEW for n in (4, 8)},  # The slope over layers gives the whole: extrapolated
    **{f'8x7b-full-{n}layers': dict(shape=SEVEN, regime='full', row=4096, rows=8, layers=n, optimiser='adamw_8bit') | RUNGS['F'] | FEW for n in (4, 8)},
    'mixed': dict(shape=EIGHT, row=8192, rows=2, mixed=True) | RUNGS['D'], 'mixed-B': dict(shape=EIGHT, row=8192, rows=2, mixed=True) | RUNGS['B'],
    'mixed-padded': dict(shape=EIGHT, row=8192, rows=2, mixed=True) | RUNGS['B'] | dict(attention='sdpa')}


def arguments(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--list', action='store_true', help='name the steps and end')
    p.add_argument('--step', choices=STEPS, help='a named step; the flags below change it')
    p.add_argument('--run', nargs='+', choices=['ceilings', *STEPS], default=[], help='several steps; `ceilings` measures products, copies and attention alone')
    p.add_argument('--budget', type=float, default=float('inf'), help='seconds after which --run starts no further step')
    p.add_argument('--limit', type=int, default=120, help='seconds after which a step of --run is given up')
    p.add_argument('--shape', choices=NAMED, help='sizes of the model')
    p.add_argument('--layers', type=int, help='fewer layers than the shape has')
    p.add_argument('--regime', choices=['lora', 'qlora', 'full'])
    p.add_argument('--row', type=int, help='tokens of a row')
    p.add_argument('--rows', type=int, help='rows of a pass, which is a step')
    p.add_argument('--mixed', action='store_true', default=None, help='samples of mixed lengths: rows of six and rows of two, in turn')
    p.add_argument('--attention', help=f'{VARLEN}, {SEGMENTS}, sdpa, cudnn, flash_attention_4 or another that transformers knows')
    p.add_argument('--experts', help=f'grouped_mm, {SORTED} or another that transformers knows')
    p.add_argument('--checkpointed', type=int, help='layers that are computed again')
    p.add_argument('--liger', action='store_true', default=None, help='fused layers of liger-kernel')
    p.add_argument('--autocast', action=argparse.BooleanOptionalAction, default=None, help='products in bfloat16, those of 32-bit adapters too')
    p.add_argument('--master', action='store_true', default=None, help='weights in 32 bits, as full training keeps them')
    p.add_argument('--compile', action='store_true', default=None, help='torch.compile of each layer')
    p.add_argument('--optimiser', choices=['adamw', 'adamw_8bit'])
    p.add_argument('--warmup', type=int, help='steps that are not timed')
    p.add_argument('--steps', type=int, help='steps that are')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--out', type=Path, default=RESULTS, help='folder of the results')
    return p.parse_args(args)


DEFAULTS = dict(shape='tiny', layers=None, regime='lora', row=64, rows=2, mixed=False, attention=VARLEN, experts='grouped_mm', checkpointed=0, liger=False, autocast=True, master=False, compile=False, optimiser='adamw',
                warmup=2, steps=4)


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
    dtype = torch.bfloat16 if device == 'cuda' and not c['master'] else torch.float32
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
        _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False, swiglu=not NAMED[c['shape']].experts)  # Experts stay with grouped products
    elif 'liger_kernel.transformers' in sys.modules: raise RuntimeError('plain layers after fused ones: the fused ones replaced the classes of this process')
    if NAMED[c['shape']].experts: model.set_experts_implementation(c['experts'])
    layers = len(body.layers)
    checkpointed = min(c['checkpointed'], layers)
    add_fused_lm_head(model)  # Before the adapters, as it asks
    if checkpointed: checkpoint_layers(model, checkpointed)
    if c['compile']:
        for layer in body.layers: layer.compile()
    if c['regime'] == 'full': return model.train(), checkpointed
    model.is_loaded_in_4bit = c['regime'] == 'qlora'  # As a model that was read that way says to peft
    return _with_lora(model, Run(model='m', data='d', out='o', regime=c['regime'])).train(), checkpointed


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
    from peft.helpers import disable_input_dtype_casting
    model, checkpointed = build(c, device)
    shape = NAMED[c['shape']]
    batch = batches(c, device, shape.vocab)
    learns = [p for p in model.parameters() if p.requires_grad]
    if c['optimiser'] == 'adamw_8bit':
        import bitsandbytes as bnb
        optimiser = bnb.optim.AdamW8bit(learns, lr=1e-5)
    else: optimiser = torch.optim.AdamW(learns, lr=1e-5, fused=True)
    low = c['autocast'] and device == 'cuda'
    kernel = torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.CUDNN_ATTENTION]) if c['attention'] == 'cudnn' else contextlib.nullcontext()
    tokens, trained = int((batch['labels'] != -100).sum()), int((batch['labels'][:, 1:] != -100).sum())
    seconds, losses = [], []
    if device == 'cuda': torch.cuda.reset_peak_memory_stats()
    with kernel, disable_input_dtype_casting(model, low):
        for _ in range(c['warmup'] + c['steps']):
            if device == 'cuda': torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.autocast(device, torch.bfloat16, enabled=low): loss = -model(**batch, fused_lm_head=True).log_probs.sum() / trained
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
    for p in ('torch', 'transformers', 'trl', 'peft', 'bitsandbytes', 'liger-kernel', 'flash-attn-4', 'triton'):
        with contextlib.suppress(PackageNotFoundError): found[p] = version(p)
    return found | {'cuda': torch.version.cuda}


def clock(f, times: int = 10) -> float:
    "Seconds of one call, the mean of several after three that are not timed"
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(3): f()
    start.record()
    for _ in range(times): f()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / times


def attention_kernels() -> dict:
    "Functions of (q, k, v) with the layout of `segment_attention`, for rows of equal length"
    from torch.nn.attention import SDPBackend, sdpa_kernel
    def dense(backend):
        def f(q, k, v, ends, longest):
            rows = [x.view(x.shape[1], len(ends) - 1, -1, x.shape[3]).transpose(0, 1) for x in (q, k, v)]
            with sdpa_kernel([backend]): return torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True).transpose(1, 2).reshape(1, q.shape[2], q.shape[1], -1)
        return f
    return {'varlen': lambda q, k, v, ends, longest: varlen_attention(None, q, k, v, None, cu_seq_lens_q=ends, max_length_q=longest)[0], 'flash': dense(SDPBackend.FLASH_ATTENTION), 'cudnn': dense(SDPBackend.CUDNN_ATTENTION)}


def attention_rates(f, rows: int, row: int, heads: int, kv_heads: int, dim: int) -> dict:
    "TFLOP/s forward and backward, the backward pass counted as two forward ones; and the distance to 32-bit attention of the output and the gradients"
    def data(n): return [torch.randn(1, n, h, dim, device='cuda', dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for h in (heads, kv_heads, kv_heads)]
    def ends(n, m): return torch.arange(0, n * m + 1, m, dtype=torch.int32, device='cuda')
    def far(a, b): return ((a.float() - b).norm() / b.norm()).item()
    small, e = data(1024), ends(2, 512)
    large = [x.detach().float().requires_grad_() for x in small]
    out, true = f(*small, e, 512), segment_attention(None, *large, None, cu_seq_lens_q=e)[0]
    back = torch.randn_like(true)
    errors = {'out': far(out, true)} | dict(zip(('q', 'k', 'v'), map(far, torch.autograd.grad(out, small, back.bfloat16()), torch.autograd.grad(true, large, back))))
    qkv, e = data(rows * row), ends(rows, row)
    back, work = torch.randn(1, rows * row, heads, dim, device='cuda', dtype=torch.bfloat16), rows * 2 * row * row * heads * dim
    with torch.no_grad(): forward = clock(lambda: f(*qkv, e, row))
    both = clock(lambda: torch.autograd.grad(f(*qkv, e, row), qkv, back))
    return {'forward': work / forward / 1e12, 'backward': 2 * work / (both - forward) / 1e12, 'errors': errors}


def ceilings() -> dict:
    "What this GPU reaches with nothing else to do; a part that fails says why"
    def rand(*size): return torch.randn(*size, device='cuda', dtype=torch.bfloat16)
    def product(m, k, n):
        a, b = rand(m, k), rand(n, k)
        return 2 * m * k * n / clock(lambda: torch.nn.functional.linear(a, b)) / 1e12
    def copy():
        a, b = (torch.empty(2 ** 32, dtype=torch.uint8, device='cuda') for _ in range(2))
        return 2 * 2 ** 32 / clock(lambda: b.copy_(a)) / 1e12
    def grouped(tokens, hidden, inner):
        x, w, ends = rand(tokens, hidden), rand(8, inner, hidden), torch.arange(1, 9, device='cuda', dtype=torch.int32) * (tokens // 8)
        return 2 * tokens * hidden * inner / clock(lambda: torch.nn.functional.grouped_mm(x, w.transpose(1, 2), offs=ends)) / 1e12
    def dequantise(n):
        import bitsandbytes.functional as F
        q, state = F.quantize_4bit(rand(n, 4096), compress_statistics=True, quant_type='nf4')
        return 2.56 * n * 4096 / clock(lambda: F.dequantize_4bit(q, state)) / 1e12
    parts = {'product_8192': lambda: product(8192, 8192, 8192), 'product_mlp': lambda: product(24576, 4096, 14336), 'copy': copy, 'grouped': lambda: grouped(65536, 4096, 28672), 'dequantise': lambda: dequantise(114688)}
    parts |= {f'attention_{k}': lambda f=f: attention_rates(f, 3, 8192, 32, 8, 128) for k, f in attention_kernels().items()}
    found = {}
    for name, part in parts.items():
        try: found[name] = part()
        except Exception as e: found[name] = said(e)
    return {'ceilings': found}


def said(e: Exception) -> str:
    "One line, and nothing of it kept alive"
    traceback.clear_frames(e.__traceback__)
    return f'{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ""}'[:300]


def written(result: dict, at: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_text(json.dumps(result, indent=1) + '\n')


def described(step: str, r: dict) -> str:
    if 'error' in r: return f"{step}: {r['error']}"
    if 'ceilings' in r: return f"{step}: {json.dumps(r['ceilings'])}"
    return f"{step}: {r['tokens_per_second']:,.0f} tokens/s" + (f"  MFU {r['mfu']:.1%}" if r['mfu'] else '') + f"  {r['peak_gib']:.1f} GiB"


def prepared(a) -> tuple[dict, Path]:
    "What is known of a result before it is measured, and where it goes"
    device = torch.cuda.get_device_name() if a.device == 'cuda' else 'cpu'
    c = {'ceilings': 'all'} if a.step == 'ceilings' else settings(a)
    config = hashlib.sha256(json.dumps(c, sort_keys=True).encode()).hexdigest()[:12]
    return ({'step': a.step, 'config': c, 'config_hash': config, 'device': device, 'date': datetime.date.today().isoformat(), 'versions': versions()},
            a.out/f"{a.step or c['shape']}-{device.lower().replace(' ', '-')}-{config}.json")


def give_up(*_): raise TimeoutError('over the limit of a step')


def several(a) -> int:  # 0: all have a result or a message; 3: the device is lost to this process, call again for the rest
    start = time.monotonic()
    signal.signal(signal.SIGALRM, give_up)
    for step in a.run:
        a.step = step
        result, at = prepared(a)
        if at.exists(): continue
        if time.monotonic() - start > a.budget: print(f'{step}: no time left'); continue
        begun = time.monotonic()
        written(result | {'error': 'the process ended before the step did'}, at)
        signal.alarm(a.limit)
        try: result |= ceilings() if step == 'ceilings' else timed(result['config'], a.device)
        except Exception as e: result['error'] = said(e)
        finally: signal.alarm(0)
        result['wall'] = round(time.monotonic() - begun, 1)
        written(result, at)
        print(described(step, result), f"  {result['wall']:.0f} s", flush=True)
        gc.collect()
        if a.device != 'cuda': continue
        try: torch.cuda.synchronize(); torch.cuda.empty_cache()
        except RuntimeError: return 3
    return 0


def main(args=None) -> int:
    a = arguments(args)
    if a.list:
        for name, s in STEPS.items(): print(f'{name:20}', ', '.join(f'{k} {v}' for k, v in s.items()))
        return 0
    if a.run: return several(a)
    result, at = prepared(a)
    result |= timed(result['config'], a.device)
    written(result, at)
    print(described(a.step or result['config']['shape'], result), f' → {at.name}')
    return 0


if __name__ == '__main__': sys.exit(main())
