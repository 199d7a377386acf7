"""Chat templates as models were published with them, which llama.cpp collects.

They are fetched from the package index for a run, as a part of the source of `llama-cpp-python`,
and are not in this repository: each has a licence of its own.
"""

import pathlib
import subprocess
import sys
import tarfile

NAME, VERSION = 'llama-cpp-python', '0.3.36'
_INSIDE = '/vendor/llama.cpp/models/templates/'


def fetch(folder: pathlib.Path, names) -> dict[str, str]:
  """The templates of these names; pip keeps the package for the next time.

  Raises:
    OSError: where the package cannot be had, or has not all of them.
  """
  command = [
      sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check',
      '--no-deps', '--no-binary', NAME, '--dest', str(folder), f'{NAME}=={VERSION}',
  ]
  try:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
  except subprocess.SubprocessError as error:
    lines = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()
    raise OSError(f'{NAME} {VERSION} cannot be fetched: {lines[-1]}') from error
  (archive,) = folder.glob('*.tar.gz')
  texts = {}
  with tarfile.open(archive) as files:
    for member in files:
      _, inside, file = member.name.partition(_INSIDE)
      name = file.removesuffix('.jinja')
      if inside and name in names:
        texts[name] = files.extractfile(member).read().decode('utf-8')
  if missing := sorted(set(names) - set(texts)):
    raise OSError(f'{archive.name} has no templates {", ".join(missing)}.')
  return texts
