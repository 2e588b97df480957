"""Two hosts, each a network namespace with an address of its own: the generated scripts run as they are.

What the hosts share is the file system, as nodes of a cluster do."""
import os
import shlex
import shutil
import subprocess
import time

import pytest
from conftest import LAUNCHED

SBIN = f"/usr/sbin:/sbin:{os.environ['PATH']}"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason='network namespaces need root'),
              pytest.mark.skipif(shutil.which('ip', path=SBIN) is None, reason='no ip here: apt-get install iproute2')]
NODE = ('PATH', 'PYTHONPATH', 'OMP_NUM_THREADS', 'GLOO_SOCKET_IFNAME', 'SLURMD_NODENAME')
HOSTS = {'as-a': '10.77.41.1', 'as-b': '10.77.41.2'}


def ip(*words): subprocess.run(['ip', *words], check=True, env=os.environ | {'PATH': SBIN}, capture_output=True, text=True)


def remove():
    for name in HOSTS: subprocess.run(['ip', 'netns', 'del', name], env=os.environ | {'PATH': SBIN}, capture_output=True)


@pytest.fixture(scope='module')
def hosts():
    remove()  # Of a test that was killed
    try:
        try: ip('netns', 'add', 'as-a')
        except subprocess.CalledProcessError as e: pytest.skip(f'no network namespaces here: {e.stderr.strip()}')
        ip('netns', 'add', 'as-b')
        ip('link', 'add', 'as-va', 'netns', 'as-a', 'type', 'veth', 'peer', 'name', 'as-vb', 'netns', 'as-b')
        for name, address, link in (('as-a', HOSTS['as-a'], 'as-va'), ('as-b', HOSTS['as-b'], 'as-vb')):
            ip('-n', name, 'addr', 'add', f'{address}/24', 'dev', link)
            for dev in ('lo', link): ip('-n', name, 'link', 'set', dev, 'up')
        yield HOSTS
    finally: remove()


def env(host, link): return LAUNCHED | {'PATH': f"{LAUNCHED['PATH']}:{SBIN}", 'GLOO_SOCKET_IFNAME': link, 'SLURMD_NODENAME': host}


def check(work, name, said):
    assert (work/name/'report.json').is_file(), said
    logs = [f for f in (work/name/'logs').rglob('stdout.log') if 'dry-run' not in f.parts]
    assert 'dry run: 2 steps on 2 processes' in ''.join(said) and not (work/name/'dry_run').exists(), said
    assert len(logs) == 2, logs
    assert sorted(p.name for p in (work/name/'versions').iterdir()) == ['as-a', 'as-b']


def test_one_command_for_each_host(hosts, work, launch_files):
    "node.sh on both hosts; the second starts while the first already waits."
    folder, nodes = launch_files('bare', row_tokens=128), []
    for host, link in (('as-a', 'as-va'), ('as-b', 'as-vb')):
        # A namespace has the machine's name; the variable is what the script reads first
        nodes.append(subprocess.Popen(['ip', 'netns', 'exec', host, 'bash', folder/'node.sh', hosts['as-a']], env=env(host, link), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        time.sleep(2)
    try: said = [p.communicate(timeout=100)[0] for p in nodes]
    finally:
        for p in nodes: p.kill()
    assert [p.returncode for p in nodes] == [0, 0], '\n---\n'.join(x[-2500:] for x in said)
    check(work, 'bare', said)


@pytest.mark.skipif(shutil.which('sshd', path=SBIN) is None, reason='no sshd here: apt-get install openssh-server')
def test_one_command_over_ssh(hosts, work, launch_files, tmp_path):
    "all.sh on the first host starts both over ssh, with a key, servers and a list of known hosts of the test's own."
    keys, ssh = tmp_path/'keys', shutil.which('ssh')
    keys.mkdir(mode=0o700)
    for name in ('host', 'user'): subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', keys/name], check=True)
    (keys/'authorized').write_text((keys/'user.pub').read_text())
    (keys/'authorized').chmod(0o600)
    os.makedirs('/run/sshd', exist_ok=True)
    servers = []
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin/ssh').write_text(f'#!/bin/sh\nexec {ssh} -F {keys}/config "$@"\n')
    (tmp_path/'bin/ssh').chmod(0o755)
    (keys/'config').write_text(f'Host *\n  IdentityFile {keys}/user\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile {keys}/known\n  Port 2222\n')
    folder = launch_files('ssh', {'hosts': list(hosts.values())}, row_tokens=128)
    try:
        for host, link in (('as-a', 'as-va'), ('as-b', 'as-vb')):
            (keys/host).write_text('#!/bin/bash\n' + ''.join(f'export {k}={shlex.quote(v)}\n' for k, v in env(host, link).items() if k in NODE) + 'eval "$SSH_ORIGINAL_COMMAND"\n')
            (keys/host).chmod(0o755)  # As a login on a node makes the environment active
            options = ['Port=2222', f'HostKey={keys}/host', f'AuthorizedKeysFile={keys}/authorized', 'StrictModes=no', 'PermitRootLogin=yes', 'UsePAM=no', f'PidFile={keys}/{host}.pid', f'ForceCommand={keys}/{host}']
            servers.append(subprocess.Popen(['ip', 'netns', 'exec', host, shutil.which('sshd', path=SBIN), '-D', '-e', '-f', '/dev/null', *(x for o in options for x in ('-o', o))],
                                            env=os.environ | {'PATH': SBIN}, stderr=open(tmp_path/f'{host}.log', 'w')))
        time.sleep(1)
        here = env('as-a', 'as-va')
        done = subprocess.run(['ip', 'netns', 'exec', 'as-a', 'bash', folder/'all.sh'], env=here | {'PATH': f"{tmp_path/'bin'}:{here['PATH']}"}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:] + ''.join((tmp_path/f'{h}.log').read_text()[-800:] for h in hosts)
        check(work, 'ssh', done.stdout + done.stderr)
    finally:
        for p in servers: p.terminate()
        for p in servers: p.wait(20)
