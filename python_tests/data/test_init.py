from __future__ import annotations

import subprocess
import sys

import pytest

import stratcore.data


def test_every_public_name_is_there() -> None:
    assert set(stratcore.data.__all__) == set(stratcore.data._MODULE_OF)
    for name in stratcore.data.__all__:
        assert getattr(stratcore.data, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = stratcore.data.nothing


def test_import_is_cheap() -> None:
    code = (
        "import sys, stratcore.data, stratcore.data.table, stratcore.data.split, stratcore.data.synthetic;"
        "stratcore.data.load_table('bundled');"
        "heavy = ('torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'sklearn');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
