"""The command line: `python -m benchmarks.peers --config=configs/benchmark_peers.py`."""

from benchmarks import peers
from experiments import cli

if __name__ == '__main__':
  cli.main(peers.run)
