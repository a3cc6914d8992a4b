from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from stratcore.data.errors import DataError
from stratcore.data.table import EmbeddingTable, load_table, require_domains, require_rows
from stratcore.data.table_files import save_table

RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal((6, 4)).astype(np.float32)
DOMAIN = np.array([0, 1, 2, 0, 1, 2])
NAMES = ("a", "b", "c")


@pytest.fixture
def table() -> EmbeddingTable:
    return EmbeddingTable.from_arrays(VALUES, DOMAIN, NAMES, [1, 0, -1, 1, 0, 1], [5, 6, 7, 8, 9, -1])


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_table(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    return message[len(str(path)) :]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_from_arrays_and_select(table: EmbeddingTable) -> None:
    assert (table.num_rows, table.dim) == (6, 4)
    assert table.embeddings.dtype == np.float32 and table.label.dtype == np.int64
    part = table.select(np.array([4, 0]))
    np.testing.assert_array_equal(part.embeddings, VALUES[[4, 0]])
    np.testing.assert_array_equal(part.token_count, [9, 5])
    np.testing.assert_array_equal(part.domain, [1, 0])
    np.testing.assert_array_equal(table.select(table.label == 0).label, [0, 0])
    for bad in (np.array([6]), np.array([-1]), np.array([0.5]), np.array([True]), np.array([], int)):
        with pytest.raises(DataError):
            table.select(bad)


def test_content_hash_follows_values_not_source(table: EmbeddingTable) -> None:
    same = EmbeddingTable(
        table.embeddings.copy(), table.domain, table.domain_names, table.label, table.token_count, "other"
    )
    assert len(table.content_hash()) == 64
    assert same.content_hash() == table.content_hash()
    hashes = {table.content_hash()}
    changed = VALUES.copy()
    changed[5, 3] = np.nextafter(changed[5, 3], np.float32(9))
    hashes.add(
        EmbeddingTable.from_arrays(changed, DOMAIN, NAMES, table.label, table.token_count).content_hash()
    )
    hashes.add(EmbeddingTable.from_arrays(VALUES, DOMAIN, ("ab", "c", "d"), table.label).content_hash())
    hashes.add(EmbeddingTable.from_arrays(VALUES, DOMAIN, ("a", "bc", "d"), table.label).content_hash())
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": VALUES.astype(np.float64)}, "float32 array, got float64"),
        ({"embeddings": VALUES[0]}, "1-D of shape (4,)"),
        ({"embeddings": VALUES[:0]}, "at least one row"),
        ({"domain": DOMAIN[:3]}, "key 'domain' must be int64 of shape (6,)"),
        ({"domain": np.array([0, 1, 3, 0, 0, 0])}, "row 2, key 'domain': expected in 0..2, got 3"),
        ({"label": np.array([0, 0, 0, 0, -2, 0])}, "row 4, key 'label': expected >= -1, got -2"),
        ({"token_count": np.zeros(6)}, "key 'token_count' must be int64"),
        ({"domain_names": ("a", "b", "a")}, "domain_names[2]: duplicate name 'a'"),
        ({"domain_names": ()}, "domain_names is empty"),
        ({"domain_names": ("a", "b", 3)}, "domain_names[2] must be a non-empty string, got 3"),
    ],
)
def test_rejects(table: EmbeddingTable, change: dict, message: str) -> None:
    with pytest.raises(DataError, match="^here: .*" + re.escape(message)):
        EmbeddingTable(
            **({k: getattr(table, k) for k in table.__dataclass_fields__} | {"source": "here"} | change)
        )


def test_require(table: EmbeddingTable) -> None:
    require_domains(table, 3)
    require_rows(table, 6)
    with pytest.raises(DataError, match=r"^arrays: at least 2 domains are needed, got 1 \('b'\)$"):
        require_domains(table.select(np.array([1, 4])))
    with pytest.raises(DataError, match=r"^arrays: at least 7 rows are needed, got 6$"):
        require_rows(table, 7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, dtype: type, order: str) -> None:
    values = np.asarray(VALUES.astype(dtype), order=order)
    np.save(tmp_path / "x.npy", values)
    loaded = load_table(tmp_path / "x.npy")
    np.testing.assert_array_equal(loaded.embeddings, values.astype(np.float32))
    assert loaded.embeddings.flags.c_contiguous and loaded.domain_names == ("domain 0",)
    np.testing.assert_array_equal(loaded.token_count, np.full(6, -1))


def test_npy_rejects(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"

    def refused(array: np.ndarray) -> str:
        np.save(path, array, allow_pickle=True)
        return error_of(path)

    assert "got <U1" in refused(np.array([["a"]]))
    assert "got int64" in refused(DOMAIN[:, None])
    assert "got complex64" in refused(VALUES.astype(np.complex64))
    assert "got object" in refused(np.array([[1.0, None]], dtype=object))
    assert "got bool" in refused(VALUES > 0)
    assert "1-D of shape (4,)" in refused(VALUES[0])
    assert "3-D of shape (1, 6, 4)" in refused(VALUES[None])
    assert "at least one row" in refused(VALUES[:0])
    assert "at least one row and one dimension" in refused(VALUES[:, :0])
    bad = VALUES.astype(np.float64)
    bad[2, 1], bad[4] = np.nan, np.inf
    assert refused(bad) == ": row 2, column 1: nan is not a finite float32; 2 of 6 rows are not finite"
    assert "row 1, column 0: 1e+300 is too large for float32" in refused(np.array([[1.0], [1e300]]))


def test_npy_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, VALUES)
    content = path.read_bytes()
    for size in range(1, len(content), 7):
        message = error_of(write(path, content[:size]))
        assert (
            "not a readable .npy file" in message
            or "truncated: (6, 4) float32 values take 96 bytes" in message
        )
    assert "too long" in error_of(write(path, content + b"\0"))
    huge = content.replace(b"(6, 4), }" + b" " * 12, b"(6000000000, 40000), }"[:21])
    assert "truncated" in error_of(write(path, huge)) or "not a readable" in error_of(path)
    assert "not a readable .npy file" in error_of(write(path, b"PK\x03\x04 a zip"))
    assert "not a readable .npy file" in error_of(write(path, b"\x80\x04cos\nsystem\n"))


def test_files_that_are_none(tmp_path: Path) -> None:
    assert error_of(tmp_path / "missing.npy") == ": no such file"
    (tmp_path / "folder.csv").mkdir()
    assert error_of(tmp_path / "folder.csv") == ": is a directory, expected a file"
    for name in ("e.npy", "e.csv", "e.parquet", "e.safetensors"):
        assert error_of(write(tmp_path / name, "")) == ": the file is empty (0 bytes)"
    assert "unknown kind of file '.pt'" in error_of(write(tmp_path / "x.pt", "x"))
    assert "unknown kind of file ''" in error_of(tmp_path)


@pytest.mark.parametrize("half", [False, True])
def test_safetensors_round_trip(tmp_path: Path, table: EmbeddingTable, half: bool) -> None:
    save_table(table, tmp_path / "x.safetensors", half=half)
    loaded = load_table(tmp_path / "x.safetensors")
    expected = VALUES.astype(np.float16).astype(np.float32) if half else VALUES
    np.testing.assert_array_equal(loaded.embeddings, expected)
    assert loaded.domain_names == NAMES
    for key in ("domain", "label", "token_count"):
        np.testing.assert_array_equal(getattr(loaded, key), getattr(table, key))
    assert half or loaded.content_hash() == table.content_hash()


def test_save_refuses_half_overflow(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="70000 does not fit float16"):
        save_table(EmbeddingTable.from_arrays(np.array([[7e4]])), tmp_path / "x.safetensors", half=True)


def test_safetensors_bfloat16(tmp_path: Path) -> None:
    values = torch.from_numpy(VALUES).bfloat16()
    save_torch_file({"embeddings": values}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(load_table(tmp_path / "x.safetensors").embeddings, values.float().numpy())


def test_safetensors_rejects(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def refused(arrays: dict, **metadata: str) -> str:
        save_file(arrays, path, metadata=metadata)
        return error_of(path)

    good = {"embeddings": VALUES, "domain": DOMAIN}
    assert "key 'embeddings' is missing, the file holds ['x']" in refused({"x": VALUES})
    assert "key 'embeddings' must be one of F16, BF16, F32, F64, got I64" in refused({"embeddings": DOMAIN})
    assert "1-D of shape (4,)" in refused({"embeddings": VALUES[0]})
    assert "key 'label' must hold integers of shape (6,), got F32" in refused(good | {"label": VALUES[:, 0]})
    assert "of shape (6,), got I64 of shape (3,)" in refused(good | {"token_count": DOMAIN[:3]})
    assert "'domain_names' must be a JSON list" in refused(good, domain_names="a,b")
    assert "duplicate name 'a'" in refused(good, domain_names='["a", "b", "a"]')
    assert "row 1, key 'domain': expected in 0..0, got 1" in refused(good, domain_names='["a"]')
    assert "row 0, key 'domain'" in refused(good | {"domain": DOMAIN - 1}, domain_names='["a", "b", "c"]')
    assert "not an index of an unnamed domain" in refused(good | {"domain": DOMAIN + 2**60})
    nan = VALUES.copy()
    nan[3, 2] = np.nan
    assert "row 3, column 2: nan" in refused({"embeddings": nan})


def test_safetensors_truncated_anywhere(tmp_path: Path, table: EmbeddingTable) -> None:
    path = tmp_path / "x.safetensors"
    save_table(table, path)
    content = path.read_bytes()
    for size in range(1, len(content), 11):
        assert "not a readable safetensors file" in error_of(write(path, content[:size]))
    assert "not a readable" in error_of(write(path, (2**63).to_bytes(8, "little") + content[8:]))


CSV = "e1,e0,domain,label,text\n0.5,1,film,1,x\n-2,3e-1,tweet,,y\n"


def test_csv(tmp_path: Path) -> None:
    loaded = load_table(write(tmp_path / "x.csv", CSV))
    np.testing.assert_array_equal(loaded.embeddings, np.float32([[1, 0.5], [0.3, -2]]))
    assert loaded.domain_names == ("film", "tweet")
    np.testing.assert_array_equal(loaded.label, [1, -1])
    plain = load_table(write(tmp_path / "y.csv", "width,height\r\n1,2\r\n\r\n3,4\r\n"))
    np.testing.assert_array_equal(plain.embeddings, np.float32([[1, 2], [3, 4]]))
    lists = load_table(write(tmp_path / "z.csv", 'id,embedding\na,"[1, 2.5]"\nb,"[3, 4]"\n'))
    np.testing.assert_array_equal(lists.embeddings, np.float32([[1, 2.5], [3, 4]]))
    frame = load_table(write(tmp_path / "w.csv", "0,1\n5,6\n"))
    np.testing.assert_array_equal(frame.embeddings, np.float32([[5, 6]]))
    ordered = load_table(
        write(
            tmp_path / "v.csv",
            "dim_10,dim_9,dim_1"
            + "".join(f",dim_{i}" for i in range(2, 9))
            + "\n"
            + "10,9,1,2,3,4,5,6,7,8\n",
        )
    )
    np.testing.assert_array_equal(ordered.embeddings[0], np.arange(1, 11))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("e0,e1\n1,2\n3\n", ": line 3: expected 2 columns, got 1"),
        ("e0,e1\n1,2,3\n", ": line 2: expected 2 columns, got 3"),
        ("e0,e1\n1,2\n3,x\n", ": line 3, column 'e1': expected a number, got 'x'"),
        ("e0,e1\n1,\n", ": line 2, column 'e1': expected a number, got ''"),
        (
            "e0,e1\n1,2\n3,nan\n4,5\n",
            ": row 1, column 1: nan is not a finite float32; 1 of 3 rows are not finite",
        ),
        ("e0,e0\n1,2\n", ": duplicate column name 'e0'"),
        ("e0,e1,e3\n1,2,3\n", ": embedding column number 2 is missing beside 'e0'"),
        ("e0,e1,p0,p1\n1,2,3,4\n", ": several families of embedding columns, expected one: 'e0', 'p0'"),
        ("e0,e1,e01\n1,2,3\n", ": columns 'e1' and 'e01' have the same number"),
        ("0.5,1.5\n1,2\n", ": line 1 holds numbers, expected a header with column names"),
        ("e0,e1\n", ": no row below the header"),
        ("\n\n", ": no header line"),
        ("domain,label\nx,1\n", ": no embedding column beside ['domain', 'label']"),
        ("text,e0,e1,label\nt,1,2,pos\n", ": row 0, column 'label': expected an integer >= -1, got 'pos'"),
        ("e0,e1,label\n1,2,-3\n", ": row 0, column 'label': expected an integer >= -1, got '-3'"),
        ("e0,e1,domain\n1,2,a\n1,2,\n", ": row 1, column 'domain': expected a name, got ''"),
        ('embedding\n"[1, 2]"\n"[1]"\n', ": line 3: ragged: 1 dimensions, the first row has 2"),
        (
            "embedding\n\"[1, 'a']\"\n",
            ": line 2, column 'embedding': expected a list of numbers, got \"[1, 'a']\"",
        ),
        ("embedding\n[[1]]\n", ": line 2, column 'embedding': expected a list of numbers, got '[[1]]'"),
        (b"e0,e1\n1,\xff\n", ": after line 0: not UTF-8 (invalid start byte)"),
        ('e0,e1\n1,"2\n', ": line 2: unexpected end of data"),
    ],
)
def test_csv_rejects(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert error_of(write(tmp_path / "x.csv", content)) == message


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    columns = {f"e{i}": VALUES[:, i] for i in (2, 0, 3, 1)}
    extra = {
        "domain": ["b", "a", "b", "b", "a", "a"],
        "label": [0, 1, None, 0, 1, 0],
        "token_count": range(6),
    }
    pq.write_table(pa.table(columns | extra), path)
    loaded = load_table(path)
    np.testing.assert_array_equal(loaded.embeddings, VALUES)
    assert loaded.domain_names == ("a", "b")
    np.testing.assert_array_equal(loaded.domain, [1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(loaded.label, [0, 1, -1, 0, 1, 0])
    np.testing.assert_array_equal(loaded.token_count, range(6))
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 4), pa.large_list(pa.float64())):
        pq.write_table(pa.table({"embedding": pa.array(VALUES.tolist(), kind)}), path)
        np.testing.assert_array_equal(load_table(path).embeddings, VALUES)


def test_parquet_rejects(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"

    def refused(columns: dict) -> str:
        pq.write_table(pa.table(columns), path)
        return error_of(path)

    assert refused({"e0": ["a"], "e1": ["b"]}) == ": column 'e0' must hold floats, got string"
    assert refused({"e0": [1.0], "e1": [2]}) == ": column 'e1' must hold floats, got int64"
    assert refused({"embedding": [[1.0], [2.0, 3.0]]}) == ": row 1: ragged: 2 dimensions, row 0 has 1"
    assert refused({"embedding": [[1.0], None]}) == ": row 1, column 'embedding': the list is empty"
    assert "must be a list of floats, got list<" in refused({"embedding": [[1], [2]]})
    assert "row 1, column 0: nan" in refused({"e0": [1.0, None], "e1": [1.0, 2.0]})
    assert refused({"e0": pa.array([], pa.float32())}) == ": the table has no row"
    assert "got 1.5" in refused({"e0": [1.0], "label": [1.5]})
    pq.write_table(pa.table({"e0": VALUES[:, 0]}), path)
    content = path.read_bytes()
    for size in range(1, len(content), 23):
        assert "not a readable parquet file" in error_of(write(path, content[:size]))


def test_domain_names_stay_json(tmp_path: Path) -> None:
    names = ("a,b", 'q"', "ü")
    table = EmbeddingTable.from_arrays(VALUES, DOMAIN, names)
    save_table(table, tmp_path / "x.safetensors")
    assert load_table(tmp_path / "x.safetensors").domain_names == names
    assert json.dumps(names)


def test_from_arrays_rejects_types() -> None:
    for values, got in (
        (DOMAIN[:, None], "int64"),
        (VALUES.astype(np.complex64), "complex64"),
        (VALUES.astype(np.longdouble), str(np.dtype(np.longdouble))),
        ([["1", "2"]], "<U1"),
        (np.array([[1.0, None]]), "object"),
    ):
        with pytest.raises(DataError, match=f"must be float16, float32 or float64, got {re.escape(got)}$"):
            EmbeddingTable.from_arrays(values)
    with pytest.raises(DataError, match="^arrays: key 'label' must hold integers, got float64$"):
        EmbeddingTable.from_arrays(VALUES, label=np.zeros(6))


def test_npy_takes_its_domains_from_the_file_beside_it(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32))
    (tmp_path / "x.domains.txt").write_text("news\ntweets\nnews\n")
    table = load_table(tmp_path / "x.npy")
    assert table.domain.tolist() == [0, 1, 0] and table.domain_names == ("news", "tweets")
    (tmp_path / "x.domains.txt").write_text("news\n\nnews\n")
    with pytest.raises(DataError, match="x.domains.txt: expected one domain a line for 3 rows, got 2"):
        load_table(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (1e200, "row 0, column 0: 1e+200 is too large for float32; scale the rows"),
        (1e-200, "row 0: every number is too small for float32, such as 1e-200; scale the rows"),
    ],
)
def test_numbers_that_float32_cannot_hold(scale, words, tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((5, 3)) * scale)
    with pytest.raises(DataError) as caught:
        load_table(tmp_path / "rows.npy")
    assert str(caught.value).endswith(words)


def test_rows_of_zeros_and_single_small_numbers_stay(tmp_path):
    rows = np.zeros((4, 2))
    rows[1] = 1.0, 1e-200
    np.save(tmp_path / "rows.npy", rows)
    np.testing.assert_array_equal(
        load_table(tmp_path / "rows.npy").embeddings, [[0, 0], [1, 0], [0, 0], [0, 0]]
    )
