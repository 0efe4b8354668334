"""Rows on disk are arrays, of which no more is read than is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfit._disk.rows import DiskRows

ENDS = [1, 10, 12, 30]
WHOLE = np.arange(90.0).reshape(30, 3)


def made_of(whole, ends=ENDS, **options):
    parts = [lambda a=a, b=b: whole[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    return DiskRows(parts, ends, jax.ShapeDtypeStruct(whole.shape[1:], whole.dtype), **options)


@pytest.fixture
def rows():
    return made_of(WHOLE)


INDICES = st.one_of(
    st.integers(-30, 29),
    st.integers(-30, 29).map(np.int32),
    st.slices(30),
    st.lists(st.integers(-30, 29), max_size=5),
    st.lists(st.integers(-30, 29), max_size=5).map(lambda rows: np.array(rows, int)),
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30).map(np.array),
    st.lists(st.booleans(), min_size=90, max_size=90).map(lambda mask: np.reshape(mask, (30, 3))),
    st.tuples(st.slices(30), st.integers(0, 2)),
    st.tuples(st.integers(-30, 29), st.slices(3)),
    st.tuples(st.just(Ellipsis), st.lists(st.integers(0, 2), max_size=3)),
    st.tuples(st.lists(st.integers(0, 29), min_size=2, max_size=2), st.just([0, 2])),
    st.sampled_from([None, (), ..., True, np.bool_(False)]),
)


@settings(max_examples=200, deadline=None)
@given(INDICES)
def test_they_are_indexed_as_numpy_does(index):
    np.testing.assert_array_equal(made_of(WHOLE)[index], WHOLE[index])


@pytest.mark.parametrize("index", [30, -31, [3, 30], [True], np.ones(29, bool), 1.0, "a", 2**80])
def test_what_numpy_does_not_take_is_refused(index, rows):
    with pytest.raises(IndexError):
        WHOLE[index]
    with pytest.raises(IndexError):
        rows[index]


def test_they_are_arrays_to_numpy_and_read_no_more_than_is_asked_for():
    reads = []
    part = lambda n: lambda: reads.append(n) or np.full((10, 2), n)
    rows = DiskRows([part(0), part(1), part(2)], [10, 20, 30], jax.ShapeDtypeStruct((2,), np.int64))
    assert rows.shape == (30, 2) and rows.ndim == 2 and rows.size == 60 and len(rows) == 30
    assert rows.dtype == np.int64 and rows.itemsize == 8 and rows.nbytes == 480
    assert str(rows) == "Rows of int64[30, 2] on disk (read by np.asarray)"
    for name in "to_numpy", "values", "flags", "fill", "_repr_html_", "__array_interface__":
        assert not hasattr(rows, name)
    with pytest.raises(IndexError, match="index -31 is out of bounds for 30 rows"):
        rows[-31]
    assert reads == []
    assert (rows[12:14] == 1).all() and reads == [1]
    assert (rows[11], rows[19]) and reads == [1]
    assert rows[-1].tolist() == [2, 2] and reads == [1, 2]
    assert rows[[]].shape == (0, 2) and reads == [1, 2]


def test_they_have_what_arrays_have(rows):
    for name in "min", "max", "mean", "sum", "std", "argmax", "ravel", "tolist", "copy":
        np.testing.assert_array_equal(getattr(rows, name)(), getattr(WHOLE, name)())
        if hasattr(np, name):
            np.testing.assert_array_equal(getattr(np, name)(rows), getattr(np, name)(WHOLE))
    assert (rows.T == WHOLE.T).all() and rows.astype(np.float16).dtype == np.float16
    assert rows.reshape(-1, 9).shape == (10, 9) and np.concatenate([rows, rows]).shape == (60, 3)
    assert (rows.mean(axis=0) == np.mean(rows, axis=0)).all() and np.median(rows) == 44.5
    assert 89.0 in rows and 90.0 not in rows
    assert [row.tolist() for row in rows] == WHOLE.tolist()
    assert ((rows - rows) == 0).all() and (2 * rows == rows + WHOLE).all()
    assert isinstance(jnp.ones(3) + rows, np.ndarray) and np.hypot(rows, rows).shape == (30, 3)
    assert np.array(rows, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="is read into a new array: leave copy=False out"):
        np.array(rows, copy=False)


def test_they_are_not_written_to(rows):
    before = rows
    rows += 1
    rows *= 2
    assert isinstance(rows, np.ndarray) and (rows == 2 * (WHOLE + 1)).all()
    assert isinstance(before, DiskRows) and (before == WHOLE).all()
    total = WHOLE.copy()
    total += before
    assert (total == 2 * WHOLE).all()
    for write in lambda: np.add(WHOLE, 1, out=before), lambda: np.add.at(before, 0, 1):
        with pytest.raises(TypeError, match=r"np\.add was to write to an array on disk, which"):
            write()
    with pytest.raises(TypeError, match="does not support item assignment"):
        before[0] = 1


def test_jax_takes_them_as_arrays_once_they_are_read(rows):
    assert isinstance(jnp.asarray(rows), jax.Array) and jnp.array(rows).shape == (30, 3)
    assert jnp.mean(np.asarray(rows)) == rows.mean() == 44.5
    double = lambda rows: 2 * rows
    said = r"Rows of float64\[30, 3\] on disk \(read by np.asarray\).* is not a valid JAX type"
    for call in jax.jit(double), jax.vmap(double), jax.grad(double), jnp.mean, jnp.exp:
        with pytest.raises(TypeError, match=said):
            call(rows)
    for pick in lambda index: rows[index], lambda index: rows[index, 0]:
        with pytest.raises(TypeError, match="indexed by a traced number: read it with"):
            jax.jit(pick)(3)


def test_rows_of_keys_are_keys():
    keys = jax.random.split(jax.random.key(0), 30)
    rows = made_of(np.asarray(jax.random.key_data(keys)), key_kind="threefry2x32")
    assert rows.shape == (30,) and rows.dtype == keys.dtype and rows.nbytes == keys.nbytes
    assert (rows[3:5] == keys[3:5]).all() and rows[-1] == keys[-1]
    assert rows.reshape(5, 6)[2, 3] == keys[15]


def test_a_reader_can_refuse_before_there_is_room_for_rows_of_48_terabytes():
    def refuse():
        raise LookupError("damaged")

    rows = DiskRows([refuse], [10], jax.ShapeDtypeStruct((12 * 10**11,), np.float32))
    assert rows.nbytes == 48 * 10**12
    for index in 3, slice(None), [1, 2]:
        with pytest.raises(LookupError, match="damaged"):
            rows[index]
