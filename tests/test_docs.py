"""README and the site: short enough, without a dead link, and built without a warning."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(DOCS.rglob('*.md'))]


def test_readme_is_short():
  assert len((ROOT / 'README.md').read_text().split()) <= 700


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_linked_are_there(page):
  """Links of other pages and pictures; Sphinx looks at anchors."""
  text = re.sub(r'```.*?```|`[^`]*`', '', page.read_text(), flags=re.DOTALL)
  for link in re.findall(r'\]\(([^)\s]+)\)', text):
    if not re.match(r'[a-z]+:|#', link):
      assert (page.parent / link.partition('#')[0]).exists(), link


def test_the_site_is_built_without_a_warning(tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', str(DOCS),
       str(tmp_path / 'html')],
      capture_output=True, text=True, timeout=600,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  index = (tmp_path / 'html' / 'index.html').read_text()
  assert 'api/index.html' in index and 'train_a_head.html' in index
