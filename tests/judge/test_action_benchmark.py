import json

from optsd.judge.action_benchmark import FILES, write


def test_two_files_one_for_each_direction(make_run, with_value, tmp_path):
    results = with_value(make_run(), "int8", "clip_shapes", 0.3, low=0.29, high=0.31)
    results = with_value(results, "int8", "fid_shapes", None)
    write(results, tmp_path)
    smaller, bigger = (json.loads((tmp_path / FILES[better]).read_text()) for better in ("lower", "higher"))
    assert {row["name"].split()[1] for row in smaller} == {"latency_s", "peak_memory_bytes"}
    assert {row["name"].split()[1] for row in bigger} == {"speedup", "clip_shapes"}
    quality = next(row for row in bigger if row["name"] == "int8 clip_shapes")
    assert quality["value"] == 0.3
    assert quality["range"] == "0.29 to 0.31"
    assert all({"name", "unit", "value"} <= set(row) for row in smaller + bigger)
