from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.bundle import FeatureSpec
from contracts.task import Spine
from training.frame import Frame, FrameError, content_hash

ROLES = Spine.model_validate(
    {
        "sql": "q.sql",
        "tables": {},
        "id": "id",
        "event_timestamp": "at",
        "keys": ["id"],
        "label": "y",
        "label_known_at": "known",
    }
)


def spine(labels):
    at = pa.array(range(len(labels)), pa.timestamp("us", tz="UTC"))
    return pa.table({"id": [str(i) for i in range(len(labels))], "at": at, "y": labels, "known": at})


columns = st.fixed_dictionaries(
    {
        "whole": st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=3, max_size=3),
        "real": st.lists(st.one_of(st.none(), st.floats(allow_nan=False, width=32)), min_size=3, max_size=3),
        "text": st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=3, max_size=3),
        "flag": st.lists(st.one_of(st.none(), st.booleans()), min_size=3, max_size=3),
    }
)


def table_of(values):
    kinds = {"whole": pa.int64(), "real": pa.float32(), "text": pa.string(), "flag": pa.bool_()}
    return pa.table({name: pa.array(values[name], kind) for name, kind in kinds.items()})


class TestContentHash:
    @given(columns)
    def test_says_nothing_of_chunks_encodings_or_files(self, values):
        table = table_of(values)
        hashed = content_hash(table)
        chunked = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1)])
        assert content_hash(chunked) == hashed
        padded = pa.concat_tables([table, table]).slice(3, 3)
        assert content_hash(padded) == hashed
        large = table.set_column(2, "text", table["text"].cast(pa.large_string()))
        coded = table.set_column(2, "text", table["text"].dictionary_encode())
        assert content_hash(large) == content_hash(coded) == hashed

    @given(columns)
    def test_survives_parquet(self, values):
        table = table_of(values)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=2)
        assert content_hash(pq.read_table(pa.BufferReader(sink.getvalue()))) == content_hash(table)

    def test_survives_pandas(self):
        table = pa.table(
            {
                "real": pa.array([1.5, None, -0.25], pa.float32()),
                "text": pa.array(["a", None, ""]),
                "at": pa.array([1, 2, 3], pa.timestamp("us", tz="UTC")),
            }
        )
        back = pa.Table.from_pandas(table.to_pandas(), preserve_index=False)
        assert back["real"].null_count == 1
        assert content_hash(back) == content_hash(table)
        kept_nan = pa.table(
            {**{n: back[n] for n in back.column_names}, "real": pa.array(np.array([1.5, np.nan, -0.25], "f4"))}
        )
        assert content_hash(kept_nan.select(table.column_names)) == content_hash(table)

    @given(columns, columns)
    def test_differs_where_any_value_does(self, one, other):
        a, b = table_of(one), table_of(other)
        zero_signs = [np.signbit(np.array([v or 0.0 for v in t["real"].to_pylist()])).tolist() for t in (a, b)]
        same = a.equals(b) and zero_signs[0] == zero_signs[1]
        assert (content_hash(a) == content_hash(b)) == same

    @pytest.mark.parametrize(
        "other",
        [
            pa.table({"b": [1, 0]}),
            pa.table({"a": pa.array([1, 0], pa.int32())}),
            pa.table({"a": [1, None]}),
            pa.table({"a": [0, 1]}),
            pa.table({"a": [1, 0], "b": [1, 0]}),
            pa.table({"a": ["1", "0"]}),
        ],
    )
    def test_notices_name_type_null_order_and_column(self, other):
        assert content_hash(pa.table({"a": [1, 0]})) != content_hash(other)

    def test_text_cannot_move_between_rows_or_into_null(self):
        hashes = {
            content_hash(pa.table({"t": pa.array(t)})) for t in (["ab", "c"], ["a", "bc"], ["abc", ""], ["abc", None])
        }
        assert len(hashes) == 4

    def test_other_types_are_hashed_by_value(self):
        one, other = (pa.table({"l": [[1, 2], [value]]}) for value in (3, 4))
        assert content_hash(one) != content_hash(other)
        assert content_hash(one) == content_hash(pa.table({"l": [[1, 2], [3]]}))


class TestFrame:
    def test_types_are_the_models(self):
        features = pa.table(
            {
                "i": [1, None],
                "b": [True, None],
                "d": pa.array([float("nan"), 2.5]),
                "t": pa.array(["x", None]).dictionary_encode(),
                "n": pa.nulls(2),
            }
        )
        frame = Frame.of(spine([0, 1]), features, ROLES)
        assert frame.specs == tuple(
            FeatureSpec(name, kind)
            for name, kind in [("i", "number"), ("b", "number"), ("d", "number"), ("t", "text"), ("n", "number")]
        )
        inputs = frame.inputs()
        assert inputs.numbers.dtype == np.float32
        np.testing.assert_array_equal(inputs.numbers, [[1, 1, np.nan, np.nan], [np.nan, np.nan, 2.5, np.nan]])
        assert inputs.texts.tolist() == [["x"], [""]]
        assert frame.table["feature.d"].null_count == 1

    def test_inputs_follow_the_order_another_model_wants(self):
        frame = Frame.of(spine([0, 1]), pa.table({"a": [1, 2], "t": ["x", "y"], "b": [3, 4]}), ROLES)
        wanted = (FeatureSpec("b", "number"), FeatureSpec("t", "text"), FeatureSpec("a", "number"))
        assert frame.inputs(wanted).numbers.tolist() == [[3, 1], [4, 2]]
        assert frame.inputs((FeatureSpec("t", "text"),)).numbers.shape == (2, 0)

    def test_a_feature_it_lacks_or_has_as_another_kind_is_named(self):
        frame = Frame.of(spine([0, 1]), pa.table({"a": [1, 2]}), ROLES)
        with pytest.raises(FrameError, match=r"lacks feature a \(text\), z \(number\)"):
            frame.inputs((FeatureSpec("z", "number"), FeatureSpec("a", "text")))

    def test_a_spine_column_may_have_a_features_name(self):
        frame = Frame.of(spine([0, 1]), pa.table({"id": [5, 6]}), ROLES)
        assert frame.table["id"].to_pylist() == ["0", "1"]
        assert frame.inputs().numbers.tolist() == [[5], [6]]

    @pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.list_(pa.string()), pa.binary()])
    def test_what_is_no_model_input_is_refused(self, kind):
        with pytest.raises(FrameError, match=r"Feature 'odd' is of type"):
            Frame.of(spine([0, 1]), pa.table({"odd": pa.nulls(2, kind)}), ROLES)

    @pytest.mark.parametrize("name", ["score", "label", "event_timestamp"])
    def test_a_name_the_reference_needs_is_refused(self, name):
        with pytest.raises(FrameError, match=repr(name)):
            Frame.of(spine([0, 1]), pa.table({name: [1, 2]}), ROLES)

    @pytest.mark.parametrize("labels", [[0, 2], [0.5, 1.0], ["yes", "no"], [0, None]])
    def test_a_label_is_0_or_1(self, labels):
        with pytest.raises(FrameError, match="Label 'y' has the value"):
            Frame.of(spine(labels), pa.table({"a": [1, 2]}), ROLES)

    @pytest.mark.parametrize("labels", [[0, 1], [False, True], [0.0, 1.0]])
    def test_labels_of_any_two_valued_type(self, labels):
        assert Frame.of(spine(labels), pa.table({"a": [1, 2]}), ROLES).labels.tolist() == [0, 1]

    def test_row_counts_must_agree(self):
        with pytest.raises(FrameError, match="2 spine rows came back with 3"):
            Frame.of(spine([0, 1]), pa.table({"a": [1, 2, 3]}), ROLES)

    def test_reference_holds_features_score_label_and_instant(self):
        frame = Frame.of(spine([0, 1, 1]), pa.table({"a": [1, 2, 3], "t": ["x", None, "z"]}), ROLES)
        reference = frame.reference(np.array([2, 0]), np.array([0.9, 0.1], np.float32))
        assert reference.column_names == ["a", "t", "score", "label", "event_timestamp"]
        assert reference["a"].to_pylist() == [3, 1]
        assert reference["label"].to_pylist() == [1, 0]
        assert reference["event_timestamp"].cast(pa.int64()).to_pylist() == [2, 0]

    def test_slices_are_texts(self):
        frame = Frame.of(spine([0, 1]).append_column("hour", pa.array([7, None])), pa.table({"a": [1, 2]}), ROLES)
        assert frame.slice_values("hour").tolist() == ["7", ""]

    def test_a_snapshot_is_named_by_its_content_and_written_once(self, tmp_path):
        frame = Frame.of(spine([0, 1]), pa.table({"a": [1, None]}), ROLES)
        name, path = frame.save(tmp_path)
        assert path == tmp_path / name / "frame.parquet"
        assert content_hash(pq.read_table(path)) == name
        written = path.stat().st_ino
        assert frame.save(tmp_path) == (name, path)
        assert path.stat().st_ino == written
        assert pd.read_parquet(path)["feature.a"].isna().tolist() == [False, True]
