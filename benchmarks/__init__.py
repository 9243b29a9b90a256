"""One file a question; `python -m benchmarks` runs them, `python -m benchmarks.NAME --help` one of them.

Each measures ours beside what a user would pick instead, in one process and interleaved, and writes
results/NAME.jsonl (a row a case) and results/NAME.md.  Peers that need installing are `pip install -e .[bench]`.
"""
