"""The NumPy face against the torch op. Legend: E experts, B rows, D input size, M atoms, T steps."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from stratcore import array, ops

FORMS = ["classic", "coupled"]
TOLERANCE = {np.float32: 1e-6, np.float64: 1e-12}


def assert_close(result: np.ndarray, wanted: torch.Tensor) -> None:
    """Relative error in norm; the two differ in the order of the sums in their products."""
    assert result.shape == tuple(wanted.shape)
    error = np.linalg.norm(result - wanted.numpy())
    assert error <= TOLERANCE[result.dtype.type] * np.linalg.norm(wanted.numpy())


@dataclass(frozen=True)
class Case:
    form: str = "classic"
    batch: tuple[int, ...] = (5,)
    dim: int = 6
    atoms: int = 11
    k: Any = (2, 4, 11)
    num_steps: int = 3
    per_step: bool = False
    input_per_expert: bool = False
    single: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return {
            "num_steps": self.num_steps,
            "form": self.form,
            "input_per_expert": self.input_per_expert,
        }

    def inputs(self, dtype: Any = np.float64) -> list[np.ndarray]:
        generator = np.random.default_rng(7)
        experts = (3,) * (not self.single)
        square = self.atoms if self.form == "classic" else self.dim
        codes, products = ((self.num_steps + 1,), (self.num_steps,)) if self.per_step else ((), ())
        shapes = [
            (*((3,) if self.input_per_expert else ()), *self.batch, self.dim),
            (*codes, *experts, self.atoms, self.dim),
            (*products, *experts, square, self.atoms),
            (*codes, *experts, self.atoms),
        ]
        scales = [1.0, self.dim**-0.5, self.atoms**-0.5, 0.1]
        arrays = [generator.normal(size=s) * scale for s, scale in zip(shapes, scales, strict=True)]
        arrays[3] = np.abs(arrays[3])
        return [a.astype(dtype) for a in arrays]


LAYOUTS = {
    "experts": Case(),
    "per_step": Case(per_step=True),
    "input_per_expert": Case(input_per_expert=True),
    "one_k": Case(k=3),
    "single": Case(single=True, k=4, batch=(2, 3)),
    "vector": Case(single=True, k=4, batch=()),
    "no_steps": Case(num_steps=0),
    "batch_of_batches": Case(batch=(2, 3, 4)),
    "many_rows": Case(batch=(300,), dim=16, atoms=64, k=(3, 8, 64)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_the_torch_op(name, dtype, form):
    case = replace(LAYOUTS[name], form=form)
    inputs = case.inputs(dtype)
    tensors = [torch.from_numpy(a) for a in inputs]
    codes = array.topk_lista(*inputs, case.k, **case.options)
    assert type(codes) is np.ndarray and codes.dtype == dtype
    assert_close(codes, ops.topk_lista(*tensors, case.k, **case.options))
    for every_step in (False, True):
        sparse = array.topk_lista_sparse(*inputs, case.k, every_step=every_step, **case.options)
        wanted = ops.topk_lista_sparse(*tensors, case.k, every_step=every_step, **case.options)
        assert isinstance(sparse, array.SparseCode) and sparse.indices.dtype == np.int32
        np.testing.assert_array_equal(sparse.indices, wanted.indices)
        assert_close(sparse.values, wanted.values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape, k", [((7,), 3), ((4, 1), 1), ((3, 5, 33), 8), ((0, 4), 2), ((100, 257), 257)]
)
def test_topk_equals_the_torch_op(dtype, shape, k):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    result = array.topk(x, k)
    assert result.dtype == dtype and result is not x
    np.testing.assert_array_equal(result, ops.topk_ste(torch.from_numpy(x), k))


def test_topk_ties_go_to_the_lower_index():
    x = [[1.0, -2.0, 2.0, 0.5, 2.0]]
    assert array.topk(x, 2).tolist() == [[0.0, -2.0, 2.0, 0.0, 0.0]]


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_empty_batch(batch):
    case = Case(batch=batch)
    assert array.topk_lista(*case.inputs(), case.k, **case.options).shape == (3, *batch, 11)
    sparse = array.topk_lista_sparse(*case.inputs(), case.k, every_step=True, **case.options)
    assert sparse.indices.shape == sparse.values.shape == (4, 3, *batch, 11)


def test_any_layout_of_memory():
    case = Case(batch=(6,))
    inputs = case.inputs()
    wanted = array.topk_lista(*inputs, case.k, **case.options)

    def fortran(a: np.ndarray) -> np.ndarray:
        return np.asfortranarray(a)

    def strided(a: np.ndarray) -> np.ndarray:
        wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan)
        wide[..., ::2] = a
        return wide[..., ::2]

    def reversed_rows(a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a[::-1])[::-1]

    def unaligned(a: np.ndarray) -> np.ndarray:
        raw = np.frombuffer(b"\0" + a.tobytes(), dtype=np.uint8)[1:]
        return raw.view(a.dtype).reshape(a.shape)

    for change in (fortran, strided, reversed_rows, unaligned):
        changed = [change(a) for a in inputs]
        np.testing.assert_array_equal(array.topk_lista(*changed, case.k, **case.options), wanted)
    broadcast = np.broadcast_to(inputs[0][:1], inputs[0].shape)
    rows = array.topk_lista(broadcast, *inputs[1:], case.k, **case.options)
    np.testing.assert_array_equal(rows, np.broadcast_to(wanted[:, :1], wanted.shape))


def test_other_array_libraries_and_lists():
    case = Case(single=True, k=4)
    inputs = case.inputs()
    wanted = array.topk_lista(*inputs, case.k, **case.options)
    tensors = [torch.from_numpy(a) for a in inputs]
    read_only = [a.copy() for a in inputs]
    for a in read_only:
        a.flags.writeable = False
    transposed = [t.mT.contiguous().mT if t.ndim > 1 else t for t in tensors]
    for others in (tensors, transposed, [a.tolist() for a in inputs], read_only):
        np.testing.assert_array_equal(array.topk_lista(*others, case.k, **case.options), wanted)
    np.testing.assert_array_equal(
        array.topk_lista(*inputs, np.int64(4), **(case.options | {"num_steps": np.int32(3)})), wanted
    )


def test_inputs_are_not_written():
    case = Case()
    inputs = case.inputs()
    before = [a.copy() for a in inputs]
    array.topk_lista(*inputs, case.k, **case.options)
    array.topk(inputs[0], 2)
    for a, b in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_concurrent_calls_give_the_same_bits():
    case = LAYOUTS["many_rows"]
    inputs = case.inputs(np.float32)
    wanted = array.topk_lista(*inputs, case.k, **case.options)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(array.topk_lista, *inputs, case.k, **case.options) for _ in range(32)]
        for job in jobs:
            np.testing.assert_array_equal(job.result(), wanted)


def test_nan_stays_in_its_row():
    case = Case()
    inputs = case.inputs()
    clean = array.topk_lista(*inputs, case.k, **case.options)
    inputs[0][1, 2] = np.nan
    codes = array.topk_lista(*inputs, case.k, **case.options)
    assert np.isnan(codes[:, 1]).any()
    np.testing.assert_array_equal(np.delete(codes, 1, axis=1), np.delete(clean, 1, axis=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k, pool", [(4, None), (1, 20), (8, 9)])
def test_simplex_cv_equals_the_torch_op(dtype, k, pool):
    x = np.random.default_rng(0).normal(size=(70, 11)).astype(dtype)
    options = {"k": k, "num_simplices": 45, "pool": pool, "target": 0.2, "min_valid": 5, "eps": 1e-8}
    for changed in (x, np.asfortranarray(x), torch.from_numpy(x)):
        found = array.simplex_cv(changed, seed=(3, 1), **options)
        wanted = ops.simplex_cv(torch.from_numpy(x), seed=torch.tensor([3, 1]), **options)
        assert isinstance(found, array.SimplexCV) and found.volumes.dtype == dtype
        np.testing.assert_array_equal(found.indices, wanted.indices)
        np.testing.assert_array_equal(found.volumes, wanted.volumes)
        assert found[:5] == tuple(t.item() for t in wanted[:5])
    first = array.simplex_cv(x, seed=3, **options)
    np.testing.assert_array_equal(first.indices, array.simplex_cv(x, seed=(3, 0), **options).indices)


@pytest.mark.parametrize(
    "changes",
    [{"k": 9}, {"num_simplices": 0}, {"pool": 3}, {"pool": 71}, {"eps": -1.0}, {"min_valid": 1},
     {"valid_above": -1.0}, {"x": np.ones((2, 3, 4))}, {"x": np.ones((6, 0))}],
)  # fmt: skip
def test_simplex_cv_rejects_in_the_words_of_the_torch_op(changes):
    call = {"x": np.ones((70, 11)), "seed": 0, "target": 0.2} | changes
    with pytest.raises(ValueError, match="^simplex_cv: expected .*, got ") as ours:
        array.simplex_cv(**call)
    with pytest.raises(ValueError) as theirs:
        ops.simplex_cv(torch.from_numpy(call.pop("x")), **call)
    assert str(ours.value) == str(theirs.value)


REJECTED = {
    "form": lambda i: ((*i, (2, 4, 11)), {"form": "tied"}),
    "encoder dimensions": lambda i: ((i[0], i[1][0, 0], *i[2:], (2, 4, 11)), {}),
    "theta dimensions": lambda i: ((*i[:3], i[3][None, None], (2, 4, 11)), {}),
    "x width": lambda i: ((i[0][:, :5], *i[1:], (2, 4, 11)), {}),
    "x for every expert": lambda i: ((*i, (2, 4, 11)), {"input_per_expert": True}),
    "recurrent": lambda i: ((*i[:2], i[2][:, :10], i[3], (2, 4, 11)), {}),
    "dictionary": lambda i: ((*i, (2, 4, 11)), {"form": "coupled"}),
    "theta": lambda i: ((*i[:3], i[3][:, :10], (2, 4, 11)), {}),
    "steps of the encoder": lambda i: ((i[0], np.stack([i[1]] * 2), *i[2:], (2, 4, 11)), {}),
    "steps of recurrent": lambda i: ((*i[:2], np.stack([i[2]] * 4), i[3], (2, 4, 11)), {}),
    "number of k": lambda i: ((*i, (2, 4)), {}),
    "k too large": lambda i: ((*i, (2, 4, 12)), {}),
    "k too small": lambda i: ((*i, 0), {}),
    "negative num_steps": lambda i: ((*i, 2), {"num_steps": -1}),
    "no atoms": lambda i: ((i[0], i[1][:, :0], i[2][:, :0, :0], i[3][:, :0], 1), {}),
    "differing dtypes": lambda i: ((i[0], i[1].astype(np.float32), *i[2:], 2), {}),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejects_in_the_words_of_the_torch_op(name):
    arguments, options = REJECTED[name](Case().inputs())
    options = {"num_steps": 3} | options
    with pytest.raises((ValueError, TypeError), match=r"^topk_lista: expected .*, got ") as ours:
        array.topk_lista(*arguments, **options)
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arguments[:4]]
    with pytest.raises(ours.type) as theirs:
        ops.topk_lista(*tensors, arguments[4], **options)
    assert str(ours.value) == str(theirs.value).replace("torch.", "")


@pytest.mark.parametrize("x, k", [(np.ones((2, 3)), 4), (np.ones((2, 3)), 0), (np.float64(1.0), 1)])
def test_topk_rejects_in_the_words_of_the_torch_op(x, k):
    with pytest.raises(ValueError, match="topk: expected k in") as ours:
        array.topk(x, k)
    with pytest.raises(ValueError) as theirs:
        ops.topk_ste(torch.from_numpy(np.asarray(x)), k)
    assert str(ours.value) == str(theirs.value).replace("topk_ste", "topk")


@pytest.mark.parametrize(
    "x, got",
    [
        (np.ones((2, 3), np.float16), "got float16"),
        (np.ones((2, 3), int), "got int64"),
        (np.ones((2, 3), ">f4"), "got >f4"),
        (np.ones((2, 3), complex), "got complex128"),
        (torch.ones(2, 3, dtype=torch.bfloat16), "got torch.bfloat16"),
    ],
)
def test_rejects_other_dtypes(x, got):
    with pytest.raises(TypeError, match=f"^topk: expected x of dtype float64 or float32.*{got}"):
        array.topk(x, 1)


def test_refuses_what_would_lose_a_gradient_or_lives_elsewhere():
    case = Case(single=True, k=2)
    inputs = case.inputs()
    learned = torch.from_numpy(inputs[1]).requires_grad_()
    with pytest.raises(
        ValueError, match="^topk_lista: expected encoder without a gradient, got a tensor that"
    ):
        array.topk_lista(inputs[0], learned, *inputs[2:], 2, num_steps=3)

    class OnGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError("nothing may be exported")

    with pytest.raises(ValueError, match=r"^topk: expected x on the CPU, got DLPack device \(2, 0\)"):
        array.topk(OnGpu(), 1)
    with pytest.raises(TypeError, match="^topk: expected x of dtype float64 or float32 on the CPU, got"):
        array.topk(torch.empty(2, 3, device="meta"), 1)


def run_python(code: str) -> str:
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_works_where_torch_is_not_installed():
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
from stratcore import array
x = np.eye(3)
print(array.topk_lista(2 * x, x, 0 * x, np.full(3, 0.5), 1, num_steps=2).tolist())
assert not any(name.split(".")[0] == "torch" for name in sys.modules if sys.modules[name])
"""
    assert run_python(code).strip() == "[[1.5, 0.0, 0.0], [0.0, 1.5, 0.0], [0.0, 0.0, 1.5]]"


def test_says_in_one_line_when_the_module_was_not_built():
    code = """
import sys
sys.modules["stratcore._array"] = None
try:
    from stratcore import array
except ImportError as error:
    print(error)
"""
    (line,) = run_python(code).strip().splitlines()
    assert line.startswith("stratcore.array needs the compiled module _array, which did not load: ")
    assert "STRATCORE_ARRAY=on" in line


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape, anchors", [((7,), 3), ((4, 1), 1), ((3, 5, 33), 300), ((0, 4), 2), ((100, 257), 40)]
)
def test_sphere_normalize_equals_the_torch_op(dtype, shape, anchors):
    generator = np.random.default_rng(0)
    x = generator.normal(size=shape).astype(dtype)
    directions = generator.normal(size=(anchors, shape[-1])).astype(dtype)
    tensors = torch.from_numpy(x), torch.from_numpy(directions)
    result, wanted = (
        array.sphere_normalize_nearest(x, directions),
        ops.sphere_normalize_nearest(*tensors),
    )
    assert type(result.y) is np.ndarray and result.y.dtype == result.cosine.dtype == dtype
    for ours, theirs in zip(result, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(array.sphere_normalize(x), ops.sphere_normalize(tensors[0]))
    strided = np.asfortranarray(x), np.asfortranarray(directions)
    for ours, theirs in zip(array.sphere_normalize_nearest(*strided), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "x, anchors, options",
    [
        (np.float64(1.0), np.ones((4, 6)), {}),
        (np.ones((5, 0)), np.ones((4, 0)), {}),
        (np.ones((5, 6)), np.ones((4, 5)), {}),
        (np.ones((5, 6)), np.ones((0, 6)), {}),
        (np.ones((5, 6)), np.ones(6), {}),
        (np.ones((5, 6)), np.ones((4, 6), np.float32), {}),
        (np.ones((5, 6)), np.ones((4, 6)), {"eps": 1e-20}),
        (np.ones((5, 6)), np.ones((4, 6)), {"eps": float("nan")}),
    ],
)
def test_sphere_normalize_rejects_in_the_words_of_the_torch_op(x, anchors, options):
    with pytest.raises((ValueError, TypeError), match="^tangent_projection: expected ") as ours:
        array.sphere_normalize_nearest(x, anchors, **options)
    with pytest.raises(ours.type) as theirs:
        ops.sphere_normalize_nearest(torch.from_numpy(np.asarray(x)), torch.from_numpy(anchors), **options)
    assert str(ours.value) == str(theirs.value).replace("torch.", "")
