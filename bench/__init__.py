"""Benchmarks: every number with its correctness gate, its roofline and the command that made it.

    python -m bench.ops.bench_topk_lista --device cuda --out bench/results/h100/topk_lista.jsonl
    python -m bench.compare before.jsonl after.jsonl

The driver that times kernels without torch's dispatcher (`bench/native`, pybind11) is built on request:

    CMAKE_ARGS=-DSTRATCORE_BENCH=ON python setup.py build_ext --inplace
"""
