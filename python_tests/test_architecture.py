"""Holds the project to its rules, and every rule to a planted breach of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from python_tests import architecture_csrc_rules as csrc
from python_tests import architecture_rules as python
from python_tests.architecture_rules import Files

Rule = Callable[[Files], list[str]]

RULES: tuple[Rule, ...] = (
    python.import_direction,
    python.heavy_imports,
    python.unsafe_loading,
    python.no_catch_all_modules,
    python.bench_clock,
    python.mirrored_tests,
    python.documented,
    python.places_and_people,
    csrc.includes,
    csrc.whole_slices,
    csrc.launches_checked,
    csrc.no_synchronization,
    csrc.budgets,
)
OP = {path.format(op="knot"): "" for path in csrc.SLICE} | {"CMakeLists.txt": "set(OPS knot)\n"}
LAUNCH = "  knot_kernel<<<grid, 256>>>(\n      a);\n"

# (rule, files that breach it, words of the one line that it answers with)
PLANTS: tuple[tuple[Rule, Files, str], ...] = (
    (
        python.import_direction,
        {"stratcore/ops/a.py": "from stratcore import layers"},
        "ops imports stratcore.layers",
    ),
    (
        python.import_direction,
        {"stratcore/ops/a.py": "import stratcore.models.m"},
        "ops imports stratcore.models",
    ),
    (python.import_direction, {"stratcore/ops/a.py": "from stratcore.ops import reference"}, "ops.reference"),
    (python.import_direction, {"stratcore/ops/a.py": "from .reference.b import c"}, "ops.reference"),
    (
        python.import_direction,
        {"stratcore/ops/reference/a.py": "from stratcore.ops.b import c"},
        "ops.reference",
    ),
    (
        python.import_direction,
        {"stratcore/data/a.py": "def f():\n    from ..training import x"},
        ":2: data imports",
    ),
    (
        python.import_direction,
        {"stratcore/models/a.py": "from stratcore.training import x"},
        "models imports",
    ),
    (
        python.import_direction,
        {"stratcore/training/a.py": "from stratcore.recipes.b import x"},
        "training imports",
    ),
    (python.import_direction, {"stratcore/analysis/a.py": "from stratcore.data import X"}, "for types only"),
    (python.import_direction, {"stratcore/a.py": ""}, "no place in MAY_IMPORT"),
    (python.import_direction, {"stratcore/array/_a.py": "import_module('stratcore.ops')"}, "array imports"),
    (
        python.import_direction,
        {"stratcore/data/a.py": "from python_tests.accuracy import x"},
        "imports python_tests",
    ),
    (python.import_direction, {"stratcore/recipes/settings.py": "import bench.harness"}, "imports bench"),
    (
        python.heavy_imports,
        {"stratcore/training/a.py": "def f():\n    import matplotlib.pyplot"},
        ":2: imports matplot",
    ),
    (
        python.heavy_imports,
        {"stratcore/layers/a.py": "from transformers import AutoModel"},
        "imports transformers",
    ),
    (
        python.heavy_imports,
        {"stratcore/analysis/geometry/a.py": "from matplotlib.figure import Figure"},
        "imports matplotlib",
    ),
    (python.unsafe_loading, {"stratcore/data/a.py": "import pickle"}, "imports pickle"),
    (python.unsafe_loading, {"stratcore/data/a.py": "torch.load(path)"}, "torch.load"),
    (
        python.unsafe_loading,
        {"stratcore/data/a.py": "read(path, weights_only=False)"},
        "weights_only is not True",
    ),
    (python.unsafe_loading, {"stratcore/recipes/settings.py": "yaml.load(text)"}, "without a safe loader"),
    (
        python.unsafe_loading,
        {"stratcore/recipes/settings.py": "yaml.load(text, Loader=yaml.Loader)"},
        "without a safe loader",
    ),
    (
        python.unsafe_loading,
        {"stratcore/data/a.py": "f(trust_remote_code=flag)"},
        "trust_remote_code is not False",
    ),
    (python.unsafe_loading, {"bench/a.py": "np.load(path, allow_pickle=True)"}, "allow_pickle is not False"),
    (python.no_catch_all_modules, {"stratcore/training/utils.py": ""}, "utils"),
    (python.no_catch_all_modules, {"csrc/utils/sum.h": ""}, "utils"),
    (python.bench_clock, {"bench/harness.py": "import time\nstart = time.time()"}, ":2: time.time"),
    (python.bench_clock, {"bench/harness.py": "from time import time"}, ":1: time.time"),
    (
        python.mirrored_tests,
        {"stratcore/data/a.py": "", "python_tests/test_a.py": ""},
        "python_tests/data/test_a.py",
    ),
    (python.documented, {"stratcore/data/a.py": "def f() -> int:\n    return 1"}, "f has no docstring"),
    (python.documented, {"stratcore/data/a.py": "class A:\n    x = 1"}, "A has no docstring"),
    (
        python.documented,
        {"stratcore/data/a.py": "def f(x, y: int) -> int:\n    'F.'"},
        "['x'] without a type",
    ),
    (
        python.documented,
        {"stratcore/data/a.py": "class A:\n    'A.'\n    def f(self, x: int):\n        'F.'"},
        ":3: f leaves ['the result']",
    ),
    (python.places_and_people, {"README.md": "\ncd /" + "work/main"}, "README.md:2: '/" + "work/'"),
    (python.places_and_people, {"bench/a.py": "# out of /" + "tmp/data"}, "bench/a.py:1"),
    (python.places_and_people, {"CHANGELOG.md": "Added in an earlier s" + "ession"}, "CHANGELOG.md:1"),
    (python.places_and_people, {"README.md": "written by an AI a" + "gent"}, "README.md:1"),
    (
        csrc.includes,
        OP | {"csrc/bead/bead.h": '#include "../knot/knot.h"'},
        "csrc/bead/bead.h:1: includes ../knot",
    ),
    (csrc.includes, OP | {"csrc/common/sum.h": '\n#include "../knot/knot.h"'}, "csrc/common/sum.h:2"),
    (csrc.includes, {"csrc/knot/knot_cpu.cpp": "#include <torch/csrc/stable/tensor.h>"}, "is no *_op.cpp"),
    (csrc.includes, {"csrc/knot/knot_math.h": '#include "../common/torch_op.h"'}, "is no *_op.cpp"),
    (csrc.includes, {"csrc/knot/knot_op.cpp": "#include <nanobind/ndarray.h>"}, "belongs to csrc/array"),
    *(
        (
            csrc.whole_slices,
            {path: "" for path in OP if path != gone} | {"CMakeLists.txt": "set(OPS knot)"},
            gone,
        )
        for gone in OP
        if gone != "CMakeLists.txt"
    ),
    (csrc.whole_slices, OP | {"CMakeLists.txt": "set(OPS bead)"}, "builds ['bead'], csrc holds ['knot']"),
    (csrc.launches_checked, {"csrc/knot/knot_cuda.cu": LAUNCH + "  return kOk;\n"}, ":1: launch without"),
    (
        csrc.launches_checked,
        {"csrc/knot/knot_cuda.cu": LAUNCH + "\n\n\n\n  return launch_status();\n"},
        ":1: launch",
    ),
    (
        csrc.no_synchronization,
        {"csrc/knot/knot_cuda.cu": "\ncuda" + "StreamSynchronize(s);"},
        ":2: cudaStream",
    ),
    (csrc.budgets, {"csrc/knot/knot_cpu.cpp": "\n" * 401}, "401 lines, of 400"),
    (csrc.budgets, {"csrc/knot/knot_cuda.cu": "\n" * 601}, "601 lines, of 600"),
    (csrc.budgets, {"bench/a.py": "def f():\n" + "    f()\n" * 60}, "bench/a.py::f:1: 61 lines, of 60"),
    (
        csrc.budgets,
        {
            "csrc/knot/knot_cpu.cpp": "namespace a {\n// {\nStatus f(int i) {\n"
            + '  g("}");\n' * 59
            + "}\n}\n"
        },
        "knot_cpu.cpp::f:3: 61 lines, of 60",
    ),
    (
        csrc.budgets,
        {
            "csrc/knot/knot_cuda.cu": "__global__ void __launch_bounds__(64)\n    f(int i) {\n"
            + "  g();\n" * 148
            + "}\n"
        },
        "knot_cuda.cu::f:1: 151 lines, of 150",
    ),
)

# What the rules must not mistake for a breach.
CLEAN: tuple[tuple[Rule, Files], ...] = (
    (python.import_direction, {"stratcore/ops/__init__.py": "from stratcore.ops.a import b"}),
    (python.import_direction, {"stratcore/ops/_library.py": "from stratcore import _C as _C"}),
    (
        python.import_direction,
        {"stratcore/analysis/a.py": "if TYPE_CHECKING:\n    from stratcore.data import EmbeddingTable"},
    ),
    (python.heavy_imports, {"stratcore/analysis/plots/a.py": "from matplotlib.figure import Figure"}),
    (python.unsafe_loading, {"stratcore/data/a.py": "f(trust_remote_code=False)\nyaml.safe_load(text)"}),
    (python.places_and_people, {"a.py": "torch.library.register(op)\n@fixture(scope='session')\n"}),
    (csrc.includes, OP | {"csrc/array/knot_array.cpp": '#include "../knot/knot.h"'}),
    (csrc.whole_slices, OP),
    (csrc.launches_checked, {"csrc/knot/knot_cuda.cu": LAUNCH + "  return launch_status();\n"}),
    (csrc.budgets, {"csrc/knot/knot_cpu.cpp": "void f() {\n" + "  if (a) {\n  }\n" * 29 + "}\n"}),
)


@cache
def project() -> Files:
    return python.read_project()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_project(rule: Rule) -> None:
    found = rule(project())
    assert not found, f"{rule.__doc__}\n" + "\n".join(found)


@pytest.mark.parametrize(("rule", "files", "words"), PLANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_planted_breach_is_found(rule: Rule, files: Files, words: str) -> None:
    found = rule(files)
    assert len(found) == 1, found
    assert words in found[0]


@pytest.mark.parametrize(("rule", "files"), CLEAN, ids=lambda value: getattr(value, "__name__", ""))
def test_no_false_alarm(rule: Rule, files: Files) -> None:
    assert rule(files) == []


def test_every_rule_is_planted() -> None:
    assert {rule for rule, _, _ in PLANTS} == set(RULES)
