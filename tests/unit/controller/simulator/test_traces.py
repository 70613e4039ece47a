"""Readers of traces on small files in the published formats, and synthetic traffic."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import statistics
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.simulator.request_work import RequestCosts
from controller.simulator.synthetic import synthetic_traffic
from controller.simulator.trace_rows import InvalidTrace
from controller.simulator.traces import read_numbers, read_trace

COSTS = RequestCosts(step_s=0.1, token_s=0.05, request_s=3.0, pixels=512 * 512)

FILES = {
    "ours": ("arrival_s,steps,width,height,exec_s\n16.92,,,,19.106\n18.0,,,,17.5\n", [16.92, 18.0], [19.106, 17.5]),
    "our steps": ("arrival_s,steps,width,height,exec_s\n1,30,512,512,\n2,10,512,512,\n", [1, 2], [3.0, 1.0]),
    "our tokens": ("arrival_s,input_tokens,output_tokens\n0.0,374,44\n4.315,396,109\n", [0.0, 4.315], [2.2, 5.45]),
    "record of arrivals": (
        (
            "arrived,model,steps,width,height,request_images,waited_s,ran_s,exec_s,outcome\n"
            "1700000005.000,m,25,512,512,1,0.100,3.000,2.500,done\n"
            "1700000000.500,m,25,512,512,2,0.200,9.000,,failed\n"
            "1700000001.500,m,20,512,512,1,60.0,,,expired\n"
        ),
        [0.0, 1.0, 4.5],
        [9.0, 2.0, 2.5],
    ),
    "azure 2023": (
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
        ),
        [0.0, 4.314579],
        [2.2, 5.45],
    ),
    "azure 2024": (
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,2399,6\n"
        ),
        [0.0, 0.99007],
        [0.25, 0.3],
    ),
    "gentd26 pipeline": (
        "timestamp_anon,value,container_ip\n60.0,19106.0,abc\n120.0,4000,def\n",
        [0.0, 60.0],
        [19.106, 4.0],
    ),
    "sizes of images": (
        "arrival_s,steps,width,height\n1,10,512,512\n2,10,1024,512\n3,10,,\n",
        [1, 2, 3],
        [1.0, 2.0, 1.0],
    ),
    "nginx": (
        (
            '127.0.0.1 - - [28/Nov/2026:13:05:55 +0000] "POST /v1/chat HTTP/1.1" 200 512 "-" "curl/8" 4.500\n'
            '127.0.0.1 - - [28/Nov/2026:13:05:56 +0000] "GET /metrics HTTP/1.1" 200 99 "-" "a \\" quote" 0.001\n'
            '::1 - a name [28/Nov/2026:13:05:57 +0000] "POST /predict HTTP/2.0" 200 - "-" "-" rt="1.250" 0.1\n'
            '127.0.0.1 - - [28/Nov/2026:13:05:58 +0000] "POST /predict HTTP/1.1" 429 99 "-" "-" 0.001\n'
            '127.0.0.1 - - [28/Nov/2026:14:05:59 +0100] "POST /predict HTTP/1.1" 200 9 "-" "-"\n'
        ),
        [0.0, 5.25, 8.5],
        [4.5, 1.25, 3.0],
    ),
    "log of a server": (
        (
            '{"time": "2026-11-28T13:05:55.5Z", "model": "m", "duration_s": 2.5}\n'
            '{"time": "2026-11-28T08:06:00.0-05:00", "model": "m", "duration_s": 1}\n'
            '{"time": 1795871161, "model": "m"}\n'
        ),
        [0.0, 6.0, 8.0],
        [2.5, 1.0, 3.0],
    ),
    "json lines": (
        '{"timestamp": 1.5, "input_length": 9, "output_length": 20}\n\n{"timestamp": 1, "output_length": 10}\n',
        [0.0, 0.5],
        [0.5, 1.0],
    ),
    "locust": (
        (
            '"Timestamp","User Count","Type","Name","Requests/s","Total Request Count"\n'
            "1700000000,1,,Aggregated,0,0\n1700000000,1,POST,/v1,0,0\n"
            "1700000002,1,,Aggregated,1,2\n1700000003,1,,Aggregated,1,2\n1700000004,1,,Aggregated,1,3\n"
        ),
        [0.0, 1.0, 3.0],
        [3.0, 3.0, 3.0],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_formats(tmp_path: Path, name: str) -> None:
    text, times, work = FILES[name]
    file = tmp_path / "trace.csv"
    file.write_text(text)
    (traffic,) = read_trace(file, COSTS).values()
    assert list(traffic.times) == pytest.approx(times, abs=1e-5)
    assert list(traffic.work) == pytest.approx(work)


GENTD26 = """\
gmt_create,predict_type,predict_status,exec_time_seconds,groupId,num_images_per_prompt,num_inference_steps,\
checkpoint_model_version_id,num_lora
2024-11-15 16:57:50,TXT_2_IMG,SUCCEED,32.0,G0000,1.0,30.0,M0000,0
2024-11-15 18:16:14,TXT_2_IMG,SUCCEED,43.0,G0001,1.0,40.0,M0001,0
2024-11-15 18:17:06,TXT_2_IMG,FAILED,,G0001,8.0,40.0,M0001,0
"""


def test_traffic_is_split_by_model(tmp_path: Path) -> None:
    file = tmp_path / "lora_request_trace.csv"
    file.write_text(GENTD26)
    found = read_trace(file, COSTS)
    assert {name: (list(one.times), list(one.work)) for name, one in found.items()} == {
        "M0000": ([0.0], [32.0]),
        "M0001": ([4704.0, 4756.0], [43.0, 32.0]),
    }


def test_compressed_files(tmp_path: Path) -> None:
    text = FILES["ours"][0].encode()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text))
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("folder/b.csv")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    for name in ("a.csv.gz", "b.tar.gz"):
        assert list(read_trace(tmp_path / name)[""].times) == [16.92, 18.0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(b"arrival_s\n1\n", mtime=0)[:14], "cannot be read"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0" + b"\x5a" * 40, "cannot be read"),
        (b"arrival_s,model\n1,caf\xe9\n", "line 2: byte 0xe9 is no UTF-8 text"),
        ("arrival_s\n1\n".encode("utf-16"), "line 1: byte 0xff is no UTF-8 text"),
    ],
    ids=["incomplete gzip", "damaged gzip", "Latin-1", "UTF-16"],
)
def test_unreadable_bytes_raise(tmp_path: Path, data: bytes, says: str) -> None:
    for name in ("trace.csv", "trace.csv.gz"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidTrace, match=says):
            read_trace(tmp_path / name)


def test_gzip_is_recognized_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_bytes(gzip.compress(b"arrival_s,exec_s\n1,2\n"))
    assert list(read_trace(tmp_path / "trace.csv")[""].work) == [2.0]


def test_spaces_around_column_names_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("\ufeffarrival_s, exec_s \r\n1, 60\r\n")
    assert list(read_trace(file)[""].work) == [60.0]


def test_requests_without_size_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,exec_s\n1,2\n2,\n3,\n")
    warnings: list[str] = []
    assert list(read_trace(file, COSTS, warn=warnings.append)[""].work) == [2.0, 3.0, 3.0]
    assert warnings == [f"2 of 3 requests in {file} have no size; each counts as 3 s of work (--request-s)"]


def test_bucket_and_stretch_change_the_times(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("timestamp_anon,value\n" + "0,1000\n" * 500 + "57,1000\n" * 500)
    (traffic,) = read_trace(file, stretch=60 / 57, bucket_s=60.0, seed=1).values()
    assert len(traffic.times) == 1000
    assert statistics.mean(traffic.times) == pytest.approx(60, abs=5)
    assert read_trace(file, stretch=60 / 57, bucket_s=60.0, seed=1)[""] == traffic


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no requests$"),
        ("arrival_s,exec_s\n", "has no requests$"),
        ('{"logger": "worker", "level": "info"}\n', "no requests; of an access log, answered POST requests count"),
        ('- - - [28/Nov/2026:13:05:55 +0000] "GET / H" 200 1 "-" "-"\n', "no requests; of an access log, answered"),
        ("a,b\n1,2\n", "none of the columns arrival_s"),
        ("a;b\n1;2\n", "its columns are a;b; commas separate the columns of CSV$"),
        ("\x1b[31m\n1\n", "its columns are \\\\x1b"),
        ("x" * 9000 + "\n1\n", "its columns are x{100,250}"),
        ("arrival_s,exec_s\nsoon,1\n", "line 2: arrival_s \\('soon'\\) is no number and no date"),
        ("arrival_s,exec_s\n1,much\n", "line 2: exec_s \\('much'\\) is not a number"),
        ("arrival_s,exec_s\n0,1\n1,inf\n", "line 3: exec_s \\(inf\\) is not finite"),
        ("arrival_s,exec_s\n0,1\n\n-1,2\n", "line 4: arrival_s \\(-1\\) is negative"),
        ("arrival_s,steps\n0,-3\n", "line 2: steps \\(-3\\) is negative"),
        ("arrival_s,exec_s\n0,1,2\n", "line 2: more values than columns"),
        ("arrival_s,exec_s\n,1\n", "line 2: arrival_s"),
        ("arrival_s,exec_s\n0\n", "line 2: fewer values than columns; 1 bad line, and 0 are allowed"),
        ("arrival_s,exec_s\n0,-2\n", "line 2: exec_s \\(-2\\) is negative"),
        ("arrival_s,exec_s\n0,1e300\n", "line 2: 1e\\+300 s of work are too much"),
        ("arrival_s,output_tokens\n0,1e308\n", "s of work are too much"),
        ("timestamp,exec_s\n0,1\n1700000000000,1\n", "spans 19675926 days, and 366 are allowed"),
        ("[]\n1\n", "none of the columns"),
        (
            "Timestamp,Name,Total Request Count\n0,Aggregated,many\n",
            "Total Request Count \\('many'\\) is not a number",
        ),
        ("timestamp\n2026-11-28T13:05:55.x\n", "line 2: timestamp .* is no number and no date"),
        ('{"timestamp": 1}\n{"model": "m"}\n', "line 2: timestamp is missing"),
        ('{"timestamp": 1}\n{"timestamp": \n', "line 2: this is not JSON"),
        ('{"timestamp": 1}\n3\n', "line 2: this is not a JSON object"),
        ('{"timestamp": \n', "line 1: this is not JSON"),
    ],
)
def test_unreadable_trace_raises(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(InvalidTrace, match=says):
        read_trace(file)


@pytest.mark.parametrize(
    "text", ["arrival_s,exec_s\n0,1\nx,1\n1,y\n2,1\n", '{"timestamp": 0}\n[\n7\n{"timestamp": 2}\n']
)
def test_allowed_bad_lines_are_left_out(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    warnings: list[str] = []
    (traffic,) = read_trace(file, max_bad_lines=2, warn=warnings.append).values()
    assert list(traffic.times) == [0.0, 2.0]
    left_out = [warning for warning in warnings if warning.startswith("left out")]
    assert [warning.split(":")[1].strip() for warning in left_out] == [f"{file}, line {n}" for n in _bad_lines(text)]
    with pytest.raises(InvalidTrace, match=r"2 bad lines, and 1 are allowed \(--bad-lines\); 2 are good"):
        read_trace(file, max_bad_lines=1)


def _bad_lines(text: str) -> tuple[int, int]:
    return (3, 4) if text.startswith("arrival_s") else (2, 3)


def test_bad_lines_are_counted_up_to_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s\n" + "x\n" * 3000)
    with pytest.raises(InvalidTrace, match="and 996 more bad lines\n1001 bad lines, and 0 are allowed") as caught:
        read_trace(file)
    assert len(str(caught.value).splitlines()) == 7


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=6), st.integers(0, 9))
def test_any_text_is_read_or_refused(lines: list[str], allowed: int) -> None:
    starts = (
        "arrival_s,exec_s\n",
        '{"time": 1}\n',
        '- - - [28/Nov/2026:13:05:55 +0000] "POST / H" 200 1 "-" "-"\n',
        "",
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace"
        for start in starts:
            file.write_text(start + "\n".join(lines), encoding="utf-8", newline="")
            with contextlib.suppress(InvalidTrace):
                for traffic in read_trace(file, max_bad_lines=allowed).values():
                    assert all(math.isfinite(value) for value in (*traffic.times, *traffic.work))


def test_missing_file_raises_invalid_trace(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrace, match="cannot be read"):
        read_trace(tmp_path / "none.csv")


def test_start_times_are_read(tmp_path: Path) -> None:
    file = tmp_path / "loads.csv"
    file.write_text("load_s\n1.5\n20\n")
    assert read_numbers(file) == (1.5, 20.0)
    file.write_text("timestamp_anon,value,container_ip\n1,22700,x\n")
    assert read_numbers(file) == (22.7,)
    file.write_text("seconds\n1\n")
    with pytest.raises(InvalidTrace, match="load_s"):
        read_numbers(file)


# ---- synthetic traffic


def test_equal_seeds_make_equal_traffic() -> None:
    assert synthetic_traffic("synthetic:poisson?hours=1", 7) == synthetic_traffic("synthetic:poisson?hours=1", 7)
    assert synthetic_traffic("synthetic:poisson?hours=1", 7) != synthetic_traffic("synthetic:poisson?hours=1", 8)


def test_rates_and_sizes_match_their_options() -> None:
    traffic = synthetic_traffic("synthetic:poisson?rate=2&hours=5&work=3&cv=0.5")
    assert len(traffic.times) == pytest.approx(36_000, rel=0.03)
    assert statistics.mean(traffic.work) == pytest.approx(3, rel=0.03)
    assert statistics.stdev(traffic.work) / 3 == pytest.approx(0.5, rel=0.05)
    assert list(traffic.times) == sorted(traffic.times)


def test_daily_pattern_has_a_cycle() -> None:
    traffic = synthetic_traffic("synthetic:daily?rate=1&swing=0.9")
    night = sum(at < 3600 or at >= 23 * 3600 for at in traffic.times)
    noon = sum(11 * 3600 <= at < 13 * 3600 for at in traffic.times)
    assert night < noon / 8


@pytest.mark.parametrize(("before", "after"), [(0.2, 3.0), (3.0, 0.2), (0.0, 2.0)])
def test_step_pattern(before: float, after: float) -> None:
    times = synthetic_traffic(f"synthetic:step?rate={after}&before={before}&at=1800&hours=1").times
    early = sum(at < 1800 for at in times)
    for count, rate in ((early, before), (len(times) - early, after)):
        assert count == pytest.approx(rate * 1800, abs=5 * (rate * 1800) ** 0.5)


def test_onoff_pattern() -> None:
    traffic = synthetic_traffic("synthetic:onoff?rate=1&on=600&off=1800&hours=4")
    assert all(at % 2400 < 600 for at in traffic.times)
    assert len(traffic.times) == pytest.approx(3600, rel=0.1)


def test_bursts() -> None:
    traffic = synthetic_traffic("synthetic:bursts?rate=0&burst=20&every=600&hours=10")
    assert traffic.times
    assert len(traffic.times) % 20 == 0
    for at in traffic.times:
        assert sum(abs(other - at) < 10 for other in traffic.times) >= 20


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("synthetic:square", "no such pattern: square; allowed: poisson"),
        ("synthetic:poisson?burst=3", "no option burst"),
        ("synthetic:poisson?rate=fast", "must be a number"),
        ("synthetic:poisson?rate=-1", "at least 0"),
        ("synthetic:poisson?rate=1e9&hours=1e9", "too many; at most"),
        ("synthetic:bursts?burst=1e300&every=1", "too many; at most"),
        ("synthetic:bursts?burst=0&every=1e-300", "too many; at most"),
        ("synthetic:bursts?every=0", "above 0"),
        ("synthetic:onoff?on=0&off=0", "above 0"),
        ("synthetic:daily?swing=2", "at most 1"),
        ("synthetic:poisson?cv=1e200", "at most 100"),
    ],
)
def test_invalid_synthetic_traffic_raises(text: str, says: str) -> None:
    with pytest.raises(InvalidTrace, match=says):
        synthetic_traffic(text)
