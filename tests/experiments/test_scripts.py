"""The shell scripts: the interpreter that they find, the environment that they make or keep."""

import json
import os
import pathlib
import shlex
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / 'scripts' / 'clusters'
SCRIPTS = [
    *sorted(ROOT.glob('scripts/*.sh')), *sorted(CLUSTERS.glob('*.s*')), ROOT / '.ci' / 'run'
]
REAL = getattr(sys, '_base_executable', None) or sys.executable


def executable(path: pathlib.Path, text: str) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return path


def pretend(path: pathlib.Path, version: str, *, works: bool = True) -> pathlib.Path:
  """An interpreter that says it has `version` where the scripts ask."""
  major, minor = version.split('.')
  code = (
      f'import sys, collections; '
      f'v = collections.namedtuple("v", "major minor micro releaselevel")'
      f'({major}, {minor}, 0, "final"); sys.version_info = v; '
      f'sys._base_executable = {json.dumps(str(path))}; '
      f'exec(sys.stdin.read())'
  )
  body = f"exec {REAL} -I -c '{code}'" if works else 'echo "no version is chosen" >&2; exit 127'
  return executable(path, f'#!/bin/sh\n{body}\n')


def shell(command: str, *, root: pathlib.Path = ROOT, **env: str) -> subprocess.CompletedProcess:
  return subprocess.run(
      ['bash', '-c', f'set -euo pipefail\n. "{root}/scripts/python_env.sh"\n{command}'],
      capture_output=True, text=True, cwd='/', env={'PATH': '/usr/bin:/bin', **env},
  )


def test_launched_processes_know_their_numbers_and_end_together(tmp_path):
  executable(tmp_path / 'venv/bin/python', """#!/bin/bash
[ "$1" != -c ] || exec echo 4321
id="${*: -1}"
echo "$* $XLA_FLAGS" > "$OUT.$id"
case "$MODE $id" in "fails --process_id=1") exit 3 ;; fails*) exec sleep 60 ;; esac
""")

  def launch(mode: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / 'scripts/launch_processes.sh', *arguments], capture_output=True, text=True,
        timeout=30, env=os.environ | {
            'SPECJAX_VENV': str(tmp_path / 'venv'), 'OUT': str(tmp_path / mode), 'MODE': mode,
        },
    )

  assert launch('works', '2', '4', 'plan', '--config=x').returncode == 0
  for number in (0, 1):
    said = (tmp_path / f'works.--process_id={number}').read_text()
    assert said.startswith('-m experiments.plan --config=x --coordinator_address=localhost:4321')
    assert '--num_processes=2' in said and 'device_count=4' in said
  failed = launch('fails', '3', '1', 'plan')
  assert failed.returncode == 3 and 'A process ended with code 3' in failed.stderr
  usage = launch('works', '2')
  assert usage.returncode == 2 and usage.stderr.rstrip().endswith('the others are ended too.')


def test_slurm_starts_the_experiment_on_every_task(tmp_path):
  executable(tmp_path / 'venv/bin/python', '#!/bin/bash\necho "$SLURM_PROCID: $*"\n')
  # What srun does, on one machine: the command once per task, each with its number.
  executable(tmp_path / 'bin/srun', """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
for i in 0 1; do SLURM_PROCID=$i "$@"; done
""")
  variables = {
      'PATH': f'{tmp_path / "bin"}:/usr/bin:/bin', 'SPECJAX_VENV': str(tmp_path / 'venv'),
      'SLURM_SUBMIT_DIR': str(tmp_path),
  }
  command = [CLUSTERS / 'slurm.sbatch', 'plan', '--config=a b']
  done = subprocess.run(command, capture_output=True, text=True, env=variables)
  said = [f'{number}: -m experiments.plan --config=a b' for number in (0, 1)]
  assert done.stdout.splitlines() == said, done.stderr
  missing = subprocess.run(
      command, capture_output=True, text=True, env=variables | {'SPECJAX_VENV': 'nothing'}
  )
  assert missing.returncode == 1 and 'quickstart.sh' in missing.stderr


def test_commands_reach_every_host_as_they_were_typed(tmp_path):
  """A dry run: the shell of a host reads the words that were given here."""
  variables = os.environ | {
      'SPECJAX_DRY_RUN': '1', 'XPK_CLUSTER': 'c', 'XPK_ZONE': 'z', 'XPK_PROJECT': 'p',
  }
  words = ['generate', '--config=x', "--config.prompt=it's def f("]
  for script, arguments in [
      ('tpu_pod.sh', ['run', 'slice', 'zone']), ('xpk.sh', ['load', 'v5litepod-16']),
  ]:
    done = subprocess.run(
        [CLUSTERS / script, *arguments, *words], capture_output=True, text=True, env=variables
    )
    sent = next(word for word in shlex.split(done.stdout) if word.startswith('--command='))
    assert shlex.split(sent)[-2:] == words[1:] and 'experiments.generate' in sent
    assert subprocess.run([CLUSTERS / script], capture_output=True).returncode == 2


def test_the_job_of_kubernetes_is_one_slice():
  job = yaml.safe_load((CLUSTERS / 'gke.yaml').read_text())
  spec = job['spec']['replicatedJobs'][0]['template']['spec']
  assert spec['completionMode'] == 'Indexed'
  container = spec['template']['spec']['containers'][0]
  rows, columns = spec['template']['spec']['nodeSelector'][
      'cloud.google.com/gke-tpu-topology'
  ].split('x')
  chips = container['resources']['limits']['google.com/tpu']
  assert spec['completions'] * chips == spec['parallelism'] * chips == int(rows) * int(columns)
  assert f'--config.mesh.model={int(rows) * int(columns)}' in container['command']


@pytest.fixture
def home(tmp_path):
  """A machine with the tools of the scripts and no Python at all."""
  tools = tmp_path / 'tools'
  tools.mkdir()
  for name in ('bash', 'sh', 'awk', 'cat', 'dirname', 'grep', 'mkdir', 'rm', 'sort', 'cp', 'chmod'):
    (tools / name).symlink_to(shutil.which(name))
  return tmp_path


def env(home, *folders, **more):
  paths = [str(home / folder) for folder in folders] + [str(home / 'tools')]
  return {'PATH': ':'.join(paths), 'HOME': str(home)} | more


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_only_the_sourced_one_cannot_be_run(script):
  subprocess.run(['bash', '-n', str(script)], check=True)
  assert os.access(script, os.X_OK) == (script.name != 'python_env.sh')


def test_the_newest_usable_interpreter_is_found(home):
  pretend(home / 'bin' / 'python3.13', '3.13', works=False)  # a version manager's shim
  pretend(home / 'bin' / 'python3', '3.11')
  pretend(home / 'bin' / 'python', '3.10')
  pretend(home / '.pyenv' / 'versions' / '3.12.1' / 'bin' / 'python3', '3.12')
  pretend(home / '.pyenv' / 'versions' / '2.7' / 'bin' / 'python3', '2.7', works=False)
  found = shell('find_python', **env(home, 'bin'))
  assert found.stdout.strip() == str(home / '.pyenv/versions/3.12.1/bin/python3')
  # 3.13 is preferred, also to a newer one that may lack wheels; 3.14 to 3.11.
  pretend(home / '.local/share/uv/python/cpython-3.14/bin/python3', '3.14')
  pretend(home / '.local/share/uv/python/cpython-3.13/bin/python3', '3.13')
  assert 'cpython-3.13' in shell('find_python', **env(home, 'bin')).stdout
  shutil.rmtree(home / '.local/share/uv/python/cpython-3.13')
  shutil.rmtree(home / '.pyenv')
  assert 'cpython-3.14' in shell('find_python', **env(home, 'bin')).stdout
  shutil.rmtree(home / '.local')
  assert shell('find_python', **env(home, 'bin')).stdout.strip() == str(home / 'bin' / 'python3')


def test_no_interpreter_is_said_clearly(home):
  pretend(home / 'bin' / 'python3', '3.10')
  found = shell('list_pythons() { echo "$HOME/bin/python3"; }; find_python', **env(home, 'bin'))
  assert found.returncode == 1
  assert 'no usable Python 3.11 or newer was found' in found.stderr
  assert 'SPECJAX_PYTHON=' in found.stderr


def test_an_interpreter_can_be_named(home):
  named = pretend(home / 'my python', '3.11')
  pretend(home / 'bin' / 'python3', '3.13')
  found = shell('find_python', **env(home, 'bin', SPECJAX_PYTHON=str(named)))
  assert found.stdout.strip() == str(named)
  bad = shell('find_python', **env(home, 'bin', SPECJAX_PYTHON='/nowhere/python'))
  assert bad.returncode == 1 and 'is not a usable Python' in bad.stderr


# An interpreter whose environments hold a copy of it, and which notes down what pip is asked.
_STUB = f"""#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install"*) echo "$*" >> "$LOG"; exit "${{PIP_EXIT:-0}}" ;;
  *) exec {REAL} "$@" ;;
esac
"""


@pytest.fixture
def checkout(home):
  """A copy of the scripts in a folder with a space, and an interpreter that installs nothing."""
  root = home / 'a checkout'
  (root / 'scripts').mkdir(parents=True)
  for name in ('python_env.sh', 'quickstart.sh', 'test.sh'):
    shutil.copy(ROOT / 'scripts' / name, root / 'scripts')
  (root / 'pyproject.toml').write_text('[project]\n')
  python = executable(home / 'stub' / 'python3', _STUB)
  return root, env(home, SPECJAX_PYTHON=str(python), LOG=str(home / 'log'))


def installs(home):
  log = home / 'log'
  return log.read_text().splitlines() if log.exists() else []


def stub_setup(checkout, extras='experiments', then='echo "$PYTHON in $PWD"', **more):
  root, variables = checkout
  # The stub's real interpreter is what SPECJAX_PYTHON would be resolved to.
  find = 'find_python() { printf "%s\\n" "$SPECJAX_PYTHON"; }'
  return shell(f'{find}\nsetup {extras}\n{then}', root=root, **(variables | more))


def test_the_environment_is_made_once_and_kept(home, checkout):
  root, _ = checkout
  made = stub_setup(checkout)
  assert made.returncode == 0, made.stderr
  assert made.stdout.strip() == f'{root}/.venv/bin/python in {root}'
  assert [line.split()[-1] for line in installs(home)] == ['checkout[experiments]']
  again = stub_setup(checkout)
  assert again.stderr == '' and len(installs(home)) == 1
  # Another extra, then the first alone: only what is missing is installed.
  stub_setup(checkout, 'experiments,test')
  stub_setup(checkout, 'experiments')
  assert len(installs(home)) == 2
  # A changed pyproject.toml is installed anew.
  (root / 'pyproject.toml').write_text('[project]\nname = "x"\n')
  stub_setup(checkout)
  assert len(installs(home)) == 3


def test_a_broken_environment_is_rebuilt(home, checkout):
  root, _ = checkout
  stub_setup(checkout)
  executable(root / '.venv/bin/python', '#!/bin/sh\nexit 1\n')
  (root / '.venv' / 'left over').touch()
  rebuilt = stub_setup(checkout)
  assert rebuilt.returncode == 0 and 'Rebuilding' in rebuilt.stderr
  assert not (root / '.venv' / 'left over').exists() and len(installs(home)) == 2


def test_an_interrupted_set_up_is_taken_up_again(home, checkout):
  root, _ = checkout
  failed = stub_setup(checkout, PIP_EXIT='1')
  assert failed.returncode == 1 and 'the installation failed' in failed.stderr
  assert 'HTTPS_PROXY' in failed.stderr
  assert stub_setup(checkout).returncode == 0 and len(installs(home)) == 2
  shutil.rmtree(root / '.venv' / 'bin')  # as if making it had been cut off
  assert stub_setup(checkout).returncode == 0


def test_an_environment_of_the_users_own_is_never_removed(home, checkout):
  root, _ = checkout
  (root / '.venv').mkdir()
  (root / '.venv' / 'precious').touch()
  refused = stub_setup(checkout)
  assert refused.returncode == 1 and 'was not made by this script' in refused.stderr
  assert (root / '.venv' / 'precious').exists()


def test_quickstart_runs_the_main_job_with_the_users_arguments(home, checkout):
  root, variables = checkout
  stub_setup(checkout)
  # The environment's interpreter now only says what it was asked to run.
  python = root / '.venv/bin/python'
  stub = _STUB.replace('  "-m pip', '  "-m experiments"*) echo "ran $*" ;;\n  "-m pip')
  executable(python, stub)
  named = variables['SPECJAX_PYTHON']
  executable(pathlib.Path(named), stub)
  ran = subprocess.run(
      [str(root / 'scripts/quickstart.sh'), '--config.seed=1'],
      capture_output=True, text=True, cwd='/', env=variables,
  )
  assert ran.returncode == 0, ran.stderr
  expected = '-m experiments.benchmark --config=configs/quickstart.py --workdir=runs/quickstart'
  assert f'ran {expected} --config.seed=1' in ran.stdout


def test_the_accelerator_is_what_the_machine_says(home):
  """nvidia-smi may be there without a GPU."""
  found = lambda **more: shell('accelerator', **env(home, **more)).stdout.strip()
  executable(home / 'tools' / 'nvidia-smi', '#!/bin/sh\nexit 0\n')
  assert found() == 'cuda'
  executable(home / 'tools' / 'nvidia-smi', '#!/bin/sh\nexit 9\n')
  assert found() in ('cpu', 'tpu')
  assert found(SPECJAX_EXTRA='tpu') == 'tpu'
