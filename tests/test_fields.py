"Teacher-forced fields in sharded training: two processes, FSDP, the same counts as one."
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def samples_of(tok):
    from actionstudio.encode import encode
    from actionstudio.schema import Trajectory
    def run(k):
        call = [{'id': 'c', 'type': 'function', 'function': {'name': 'f', 'arguments': {'x': k}}}]
        return Trajectory.from_dict({'unique_trajectory_id': f'r{k}', 'task_instruction': '', 'tools': [], 'conversation': [
            {'role': 'user', 'content': f'Call {k}.'}, {'role': 'assistant', 'content': '', 'tool_calls': call}]})
    return [e for k in range(5) for e in encode(run(k), tok)]  # Five samples: one process has one less


def counts(rank, folder, port, world, back):
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    from actionstudio.fields import teacher_forced
    tok = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(AutoConfig.from_pretrained(folder))
    if world > 1:
        dist.init_process_group('gloo', init_method=f'tcp://localhost:{port}', rank=rank, world_size=world)
        mesh = torch.distributed.init_device_mesh('cpu', (world,))
        for layer in model.model.layers: fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    back[rank, world] = teacher_forced(model, samples_of(tok), tok)[['right', 'all']].to_dict()
    if world > 1: dist.destroy_process_group()


@pytest.mark.slow
def test_two_sharded_processes_count_what_one_counts(model):
    import socket
    with socket.socket() as s: s.bind(('localhost', 0)); port = s.getsockname()[1]
    back = mp.Manager().dict()
    counts(0, str(model), port, 1, back)
    mp.spawn(counts, (str(model), port, 2, back), nprocs=2)
    assert back[0, 1]['all'] == {'call or answer': 5, 'tool name': 5, 'argument': 5, 'stop': 5}
    assert back[0, 2] == back[1, 2] == back[0, 1]
