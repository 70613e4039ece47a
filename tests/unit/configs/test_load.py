"""Loading of the configuration: precedence, validation and error texts."""

from __future__ import annotations

import json
import socket
import tempfile
from pathlib import Path

import pytest

from configs import samplers
from configs.cli import to_yaml
from configs.environment import CLIENT_KEY
from configs.load import DEFAULT_FILE, ConfigError, load, replaced_limits
from configs.paths import internal_token, run_dir, worker_address
from configs.section_base import Section
from scripts.generate.config_schema import documented_schema

ROOT = Path(__file__).parents[3]
VARIABLE = "MUSTER_MODELS__M__SCALING__MIN_WORKERS"
GENERAL = "min_workers is 2 for every model (FILE:1)"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "muster.yaml"
    file.write_text(text)
    return file


def test_default_serves_builtin_model() -> None:
    settings = load()
    assert list(settings.models) == ["digits"]
    assert settings.models["digits"].path == "builtin:digits"
    assert settings.server.host == "127.0.0.1"
    assert settings.models["digits"].max_batch_size == "auto"
    assert settings.scaling("digits").interval_s == 30


def test_file_of_an_agent_needs_no_models(tmp_path: Path) -> None:
    """The server sends them."""
    file = write(tmp_path, "agent: {max_fetched_bytes: 1GiB}\ndevices: {cpu_slots: 1}\n")
    settings = load(file, needs_models=False)
    assert settings.agent.max_fetched_bytes == 1 << 30
    assert list(settings.models) == ["digits"]
    with pytest.raises(ConfigError, match="models: is required"):
        load(file)
    with pytest.raises(ConfigError, match="models"):
        load(write(tmp_path, "models: {}\n"), needs_models=False)


def test_command_line_overrides_environment_overrides_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(
        tmp_path,
        "server: {port: 1001, timeout_s: 11}\nqueue: {max_tasks: 50}\nmodels: {m: {engine: sim, max_batch_size: 3}}",
    )
    monkeypatch.setenv("MUSTER_SERVER__PORT", "1002")
    monkeypatch.setenv("MUSTER_QUEUE__MAX_TASKS", "60")
    monkeypatch.setenv("MUSTER_MODELS__m__MAX_BATCH_SIZE", "4")
    monkeypatch.setenv("MUSTER_DATA_DIR", str(tmp_path))
    settings = load(file, {"server": {"port": 1003}})
    assert (settings.server.port, settings.server.timeout_s, settings.queue.max_tasks) == (1003, 11, 60)
    assert settings.models["m"].max_batch_size == 4
    assert settings.data_dir == tmp_path


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("65536", 65_536), ("64KiB", 65_536), (" 64 kib ", 65_536), ("1.5MB", 1_500_000), ("'65536'", 65_536)],
)
def test_every_size_may_have_a_unit(tmp_path: Path, text: str, bytes_: int) -> None:
    file = write(
        tmp_path,
        f"server: {{max_header_bytes: {text}, max_response_bytes_in_memory_per_key: {text}}}\n"
        f"jobs: {{max_bytes: {text}}}\nresults: {{max_bytes: {text}}}\nagent: {{max_fetched_bytes: {text}}}\n"
        f"models: {{m: {{engine: sim, gpu_memory: {text}, text: {{kv_cache: {text}}}}}}}",
    )
    settings = load(file)
    model = settings.models["m"]
    found = {
        settings.server.max_header_bytes,
        settings.server.max_response_bytes_in_memory_per_key,
        settings.jobs.max_bytes,
        settings.results.max_bytes,
        settings.agent.max_fetched_bytes,
        model.gpu_memory,
        model.text.kv_cache,
    }
    assert found == {bytes_}
    assert load(write(tmp_path, to_yaml(settings))) == settings


def test_sizes_in_bytes_have_the_type_of_sizes() -> None:
    """A new key for a size accepts units as the others do."""
    for section in Section.__subclasses__():
        for name, field in section.model_fields.items():
            if "bytes" in name.split("_"):
                assert "ByteUnits" in f"{field!r}{field.annotation}", f"{section.__name__}.{name}"


def test_printed_settings_load_equal(tmp_path: Path) -> None:
    settings = load(overrides={"min_workers": 2})
    assert load(write(tmp_path, to_yaml(settings))) == settings


@pytest.mark.parametrize(
    ("min_workers", "max_workers", "own", "expected"),
    [
        (None, None, "{min_workers: 2, max_workers: 3}", (2, 3)),
        (4, None, "{min_workers: 2, max_workers: 3}", (4, 4)),
        (None, 1, "{min_workers: 2, max_workers: 3}", (1, 1)),
        (2, 5, "{min_workers: 1, max_workers: 3}", (2, 5)),
        (2, None, "{min_workers: 1}", (2, "auto")),
    ],
)
def test_top_level_bounds_replace_each_models(
    tmp_path: Path, min_workers: int | None, max_workers: int | None, own: str, expected: tuple[int, object]
) -> None:
    file = write(tmp_path, f"models: {{m: {{engine: sim, scaling: {own}}}}}")
    scaling = load(file, {"min_workers": min_workers, "max_workers": max_workers}).scaling("m")
    assert (scaling.min_workers, scaling.max_workers) == expected


@pytest.mark.parametrize(
    ("general", "own", "variable", "expected"),
    [
        ("", "min_workers: 3", None, []),
        ("min_workers: 3", "min_workers: 3", None, []),
        ("min_workers: 2", "max_workers: auto", None, []),
        (
            "min_workers: 2",
            "min_workers: 3",
            None,
            ["FILE:3: models.m.scaling.min_workers = 3: 2 is used, because min_workers is 2 for every model (FILE:1)"],
        ),
        (
            "max_workers: 1\n",
            "min_replicas: 2, initial_replicas: 2, max_replicas: auto",
            None,
            [
                f"FILE:4: models.m.scaling.{name} = {own}: 1 is used, because max_workers is 1 for every model (FILE:1)"
                for name, own in (("min_workers", 2), ("max_workers", "auto"), ("initial_workers", 2))
            ],
        ),
        (
            "min_workers: 5",
            "max_workers: 4",
            None,
            ["FILE:3: models.m.scaling.max_workers = 4: 5 is used, because min_workers is 5 for every model (FILE:1)"],
        ),
        (
            "min_workers: 2",
            "batch: 1",
            (VARIABLE, "4"),
            [
                f"environment: {VARIABLE}: models.m.scaling.min_workers = 4: 2 is used, because {GENERAL}",
            ],
        ),
        ("", "min_workers: 3", ("MUSTER_MIN_WORKERS", "4"), []),
    ],
)
def test_replaced_limits_are_listed_with_their_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    general: str,
    own: str,
    variable: tuple[str, str] | None,
    expected: list[str],
) -> None:
    if variable is not None:
        monkeypatch.setenv(*variable)
    own = own.replace("batch: 1", "")
    file = write(tmp_path, f"{general}\nmodels:\n  m: {{engine: sim, scaling: {{{own}}}}}")
    assert replaced_limits(file) == [text.replace("FILE", str(file)) for text in expected]
    assert replaced_limits(file, {"min_workers": 4, "max_workers": 5}) == [], "an option is meant to replace them"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "models: {m: {engine: sim}}\nserver:\n  port: 99999",
            ["muster.yaml:3: server.port = 99999", "less than or equal to 65535"],
        ),
        (
            "models: {m: {engine: sim}}\nserver: {hots: a}",
            ["muster.yaml:2: server.hots = 'a'", "did you mean `host`?", "port"],
        ),
        ("modles: {m: {}}", ["modles", "did you mean `models`?"]),
        ("models: {}", ["models", "at least 1 entry"]),
        ("server: {port: 1}", ["models", "required"]),
        (
            "models:\n  m:\n    scaling: {min_workers: 3, max_workers: 2}",
            ["min_workers (3) must not exceed", "m.scaling"],
        ),
        (
            "models:\n  m:\n    scaling: {scale_up_at: 2, scale_down_at: 2}",
            ["scale_down_at (2) must be below scale_up_at (2)"],
        ),
        ("models: {m: {scaling: {max_workers: many}}}", ["max_workers = 'many'", "'auto'", "integer"]),
        ("models: {m: {scaling: {interval_s: -1}}}", ["interval_s = -1", "greater than 0"]),
        ("models: {m: {scaling: {policy: magic}}}", ["policy = 'magic'", "'queue_depth'"]),
        ("models: {m: {defaults: {size: 100x100}}}", ["size = '100x100'", "multiples of 8"]),
        ("models: {m: {defaults: {size: big}}}", ["size = 'big'", "WIDTHxHEIGHT"]),
        ("models: {m: {defaults: {scheduler: magic}}}", ["scheduler = 'magic'", "allowed: default, ddim"]),
        ("models: {m: {engine: sim, defaults: {steps: 200}}}", ["defaults.steps (200) exceeds limits.max_steps (150)"]),
        (
            "models: {m: {engine: sim, quality: {high: {steps: 200}}}}",
            ["quality.high.steps (200) exceeds limits.max_steps (150)"],
        ),
        (
            "models: {m: {engine: sim}}\nworkers: {heartbeat_s: 5, lost_after_s: 6}",
            ["lost_after_s (6) must be at least twice"],
        ),
        (
            "models: {m: {engine: sim}}\nqueue: {max_tasks: 3}",
            ["server.max_n (10) must not exceed queue.max_tasks (3)"],
        ),
        ("models: {'Bad Name': {}}", ["Bad Name", "letters (a to z, A to Z), digits"]),
        ("models: {m: {engine: sims}}", ["engine = 'sims'", "vllm, openvino, sim, package.module:Class"]),
        ("models: {m: {}}", ["models.m", "path is required", "builtin:digits"]),
        ("models: {m: {engine: diffusion, path: ' '}}", ["path is required"]),
        ("models:\n  m:", ["path is required"]),
        ("models:", ["at least 1 entry"]),
        ("models: {m: {engine: sim}}\nserver: 8000", ["server = 8000", "must be a section"]),
        ("models: {m: {engine: sim}}\nserver:\n  port: 1\n  port: 2", ["muster.yaml:4", "first in line 3"]),
        ("models: {m: {engine: sim, compile: on}}", ["compile = 'on'", "'off'"]),
        ("models: {m: {engine: sim}}\ndata_dir: ~nobody-here/x", ["data_dir = '~nobody-here/x'", "user after ~"]),
        ("models: {m: {engine: sim}}\ndata_dir: ''", ["data_dir", "path of a file or folder"]),
        *[
            (f"models: {{{name}: {{engine: sim}}}}", ["a model's name has up to 96 letters"])
            for name in ("'a//b'", "'/a'", "'a/'", "'a/../b'", "ü", "'a b'", "'-a'", "''", "x" + "y" * 96)
        ],
        ("models: {m: {scaling: {interval_s: .inf}}}", ["interval_s = inf", "finite number"]),
        (
            "models: {m: {scaling: {interval_s: 1e10}}}",
            ["interval_s = 10000000000.0", "less than or equal to 1000000000"],
        ),
        ("models: {m: {scaling: {min_workers: 1000000000}}}", ["min_workers = 1000000000", "equal to 4096"]),
        ("models: {m: {engine: sim}}\nmin_workers: 100000", ["min_workers = 100000", "equal to 4096"]),
        ("models: {m: {engine: sim}}\nserver: {port: true}", ["server.port = True", "must be a number"]),
        ("models: {m: {engine: sim}}\nqueue: {max_tasks: 99999999999999999999}", ["max_tasks", "must be at most"]),
        ("models: {m: {engine: sim}}\nserver: {host: ''}", ["server.host = ''", "an address, or a host name"]),
        ("models: {m: {engine: sim}}\nserver: {host: 'a b'}", ["server.host = 'a b'", "an address, or a host name"]),
        ('models: {m: {engine: sim}}\ndata_dir: "\\ud800"', [r"data_dir = '\ud800'", "must be UTF-8"]),
        ('models: {m: {engine: sim}}\naccess: {hosts: ["\\ud800"]}', ["access.hosts", "must be UTF-8"]),
        ('models: {"a\\eb\\n": {engine: sim}}', [r"models.a\x1bb\n = "]),
        *[
            (f"models: {{m: {{engine: {engine}}}}}", ["models.m.engine", "valid string"])
            for engine in ("[text]", "{name: text}", "5", "true")
        ],
        *[
            (f"models: {{m: {{engine: sim, gpu_memory: '{size}'}}}}", [f"gpu_memory = '{size}'", "such as 9.5GiB"])
            for size in ("9,5GiB", "50%", "2026-01-01", "1 GiB each", "9.5.1GiB", "-1GiB", "GiB", "1e9", "0x10", "")
        ],
        ("models: {m: {engine: sim, gpu_memory: 0GiB}}", ["gpu_memory = 0", "must be above 0, such as 9.5GiB"]),
        ("models: {m: {engine: sim, gpu_memory: 10x}}", ["gpu_memory = '10x'", "unknown unit; allowed: B, KB"]),
        ("models: {m: {engine: sim}}\nresults: {max_bytes: 1KiB}", ["results.max_bytes = 1024", "equal to 65536"]),
        ("models: {m: {engine: sim}}\nresults: {max_bytes: 99999TB}", ["results.max_bytes", "must be at most"]),
        ("models: {m: {engine: sim}}\naccess: {hosts: a}", ["access.hosts = 'a'", "must be a list"]),
        ("models: {m: {engine: sim, scaling: 4}}", ["models.m.scaling = 4", "must be a section"]),
        ("models: {m: {engine: sim, cold_start_proxy: a}}", ["cold_start_proxy = 'a'", "must be a section"]),
        ("models: {m: {engine: sim, options: 4}}", ["models.m.options = 4", "must be a section"]),
        ("models: {m: {engine: sim, loras: 4}}", ["models.m.loras = 4", "path of a file or folder"]),
        ('models: {m: {engine: sim}}\nserver: {host: "a\\0b"}', ["server.host", "an address, or a host name"]),
        ('models: {m: {path: "a\\0b"}}', ["models.m.path", "a folder, a file, or a hub id"]),
        *[
            (
                f"models: {{m: {{engine: sim, {part}: ' '}}}}",
                [f"models.m.{part} = ' '", "a folder, a file, or a hub id"],
            )
            for part in ("controlnet", "base", "vae", "text_encoder", "unet")
        ],
        ("models: [", ["not valid YAML"]),
        ("- a", ["`key: value`"]),
    ],
)
def test_mistake_names_key_value_place_and_allowed(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(write(tmp_path, text))
    for part in parts:
        assert part in str(refusal.value)
    assert "muster.yaml" in str(refusal.value)


def test_all_mistakes_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(write(tmp_path, "server: {port: 0, hots: x}\nmodels: {m: {max_batch_size: 0}}"))
    assert {problem.key for problem in refusal.value.problems} == {
        "server.port",
        "server.hots",
        "models.m.max_batch_size",
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MUSTER_PROT", "1", "environment: MUSTER_PROT = '1': no such setting; did you mean"),
        ("MUSTER_SERVER__PORT", "many", "environment: MUSTER_SERVER__PORT: server.port = 'many'"),
        ("MUSTER_MIN_WORKERS", "-1", "environment: MUSTER_MIN_WORKERS: min_workers = '-1'"),
    ],
)
def test_environment_is_validated(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refusal:
        load()
    assert message in str(refusal.value)


def test_words_for_off_and_empty_sections(tmp_path: Path) -> None:
    text = """
server:
  # port: 9000
access:
  hosts:
models:
  A/b.C-1: {engine: sim, compile: off, safety_checker: off}
  SDXL: {engine: sim, compile: false, scaling: , loras: ~/loras}
data_dir: ~/x
"""
    settings = load(write(tmp_path, text))
    assert list(settings.models) == ["A/b.C-1", "SDXL"]
    assert {model.compile for model in settings.models.values()} == {"off"}
    assert (settings.server.port, settings.access.hosts) == (8000, ())
    assert (settings.data_dir, settings.models["SDXL"].loras) == (Path.home() / "x", Path.home() / "loras")


@pytest.mark.parametrize("path", ["~/m", "~/m.safetensors"])
def test_home_is_expanded_in_checkpoints(tmp_path: Path, path: str) -> None:
    file = write(tmp_path, f"models: {{m: {{path: {path}, controlnet: {path}}}}}")
    model = load(file).models["m"]
    assert model.path == model.controlnet == str(Path.home() / path.removeprefix("~/"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: file: cannot be read"):
        load(tmp_path / "nowhere.yaml")


def test_schema_file_is_current() -> None:
    committed = json.loads((ROOT / "configs" / "schema.json").read_text())
    assert committed == documented_schema(), "run: python -m scripts.generate.config_schema"


def test_sections_that_are_defaults_are_valid() -> None:
    fields = [field for section in Section.__subclasses__() for field in section.model_fields.values()]
    defaults = [field.default for field in fields if isinstance(field.default, Section)]
    assert len(defaults) > 10
    assert [type(each)() for each in defaults] == defaults


def test_default_file_refers_to_schema() -> None:
    assert "schema.json" in DEFAULT_FILE.read_text().splitlines()[0]


@pytest.mark.parametrize("below", ["", "below"])
def test_data_dir_that_leads_to_itself_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=r"data_dir = .*a link that leads back to itself"):
        load(overrides={"data_dir": str(tmp_path / "loop" / below)})
    (tmp_path / "early").symlink_to(tmp_path / "not-mounted-yet")
    assert load(overrides={"data_dir": str(tmp_path / "early")}).data_dir == tmp_path / "early"


def test_words_that_are_not_utf8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_SERVER__HOST", "h\udcff")
    with pytest.raises(ConfigError, match=r"server\.host") as refusal:
        load(overrides={"data_dir": "/tmp/\udcff"})
    assert str(refusal.value).count("must be UTF-8") == 2
    assert str(refusal.value).isprintable() or "\n" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("ddim", "ddim"),
        ("DDIM", "ddim"),
        ("DDIMScheduler", "ddim"),
        ("DPM++-2M", "dpmpp_2m"),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral"),
        ("default", "default"),
        ("magic", None),
        ("", None),
    ],
)
def test_sampler_spellings(name: str, known: str | None) -> None:
    assert samplers.canonical_sampler(name) == known


def test_run_dir_and_token_are_private_and_stable(tmp_path: Path) -> None:
    assert run_dir(tmp_path).stat().st_mode & 0o777 == 0o700
    token = internal_token(tmp_path)
    assert internal_token(tmp_path) == token
    assert len(token) >= 32
    assert (tmp_path / "run" / "internal.token").stat().st_mode & 0o777 == 0o600
    assert worker_address(tmp_path) == f"ipc://{tmp_path}/run/workers.sock"


@pytest.mark.parametrize("variable", [None, "/tmp/" + "t" * 150, "/nowhere"])
def test_long_socket_path_moves_to_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    before = worker_address(deep)
    if variable is not None:
        monkeypatch.setenv("TMPDIR", variable)
        monkeypatch.setattr(tempfile, "tempdir", None)
    address = worker_address(deep)
    assert len(address.removeprefix("ipc://")) <= 107
    assert address == before, "all programs agree, whatever their TMPDIR"
    assert Path(address.removeprefix("ipc://")).parent.stat().st_mode & 0o777 == 0o700
    assert address != worker_address(tmp_path / ("f" * 60) / ("e" * 60)), "each instance has its own"


@pytest.mark.parametrize("depth", range(80, 130, 7))
def test_socket_path_fits_at_every_length_of_data_dir(tmp_path: Path, depth: int) -> None:
    data_dir = tmp_path / ("d" * (depth - 50)) / "e"
    with socket.socket(socket.AF_UNIX) as bound:
        path = worker_address(data_dir).removeprefix("ipc://")
        bound.bind(path)
        Path(path).unlink()


def test_socket_of_a_folder_that_is_not_utf8(tmp_path: Path) -> None:
    """The working directory is not a setting, and may have any name."""
    address = worker_address(tmp_path / "\udcff")
    assert address.isascii()
    assert address == worker_address(tmp_path / "\udcff")


def test_client_key_variable_is_not_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLIENT_KEY, "sk-muster-secret")
    assert "sk-muster-secret" not in to_yaml(load())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {}", "models: must have at least 1 entry"),
        ("server: {host: éé}", "server.host = 'éé': must be ASCII, such as xn--"),
        ("server: {public_url: ftp://x}", "server.public_url = 'ftp://x': must be an http or https URL"),
        ("server: {record_arrivals: a/b.csv}", "server.record_arrivals = 'a/b.csv': must be the name of a file in"),
        ("server: {send_timeout_s: null}", "server.send_timeout_s = null: must be a valid number"),
        ("workers: {listen: 'tcp//x'}", "workers.listen = 'tcp//x': must be tcp://ADDRESS:PORT, such as tcp://"),
        ("workers: {listen: 'tcp://x:65536'}", "workers.listen = 'tcp://x:65536': must be tcp://ADDRESS:PORT"),
        ("ray: {address: 'ray://x:1'}", "ray.address = 'ray://x:1': must be `auto`, or HOST:PORT such as"),
        ('ray: {data_dir: "a\\0b"}', r"ray.data_dir = 'a\x00b': must be the path of a file or folder"),
        ('ray: {worker_python: "a\\0b"}', r"ray.worker_python = 'a\x00b': must be the path of a file or folder"),
        ("access: {hosts: [a, 'http://b']}", "access.hosts[1] = 'http://b': must be a host name without scheme"),
        ("access: {cors_origins: [b]}", "access.cors_origins[0] = 'b': must be `*`, or an origin without a path"),
        ("agent: {model_folders: [a, b, '']}", "agent.model_folders[2] = '': must be the path of a file or folder"),
        (f"agent: {{max_fetched_bytes: {'9' * 500}GiB}}", "must be at most 9007199254740992"),
        (
            "models: {m: {path: a, scaling: {schedule: [{cron: '0 8 * * *', workers: 1}, {workers: x}]}}}",
            "models.m.scaling.schedule[1].workers = 'x': must be a valid integer",
        ),
        (
            "models: {m: {path: a, scaling: {schedule: [{workers: 1}]}}}",
            "models.m.scaling.schedule[0].cron: is required",
        ),
        (
            "models: {m: {path: a, scaling: {schedule: [{cron: '0 8 * * *', worker: 1}]}}}",
            "models.m.scaling.schedule[0].worker = 1: unknown key; did you mean `workers`?",
        ),
        ("models: {m: {path: a, warm_up: {sizes: [64x64, '64']}}}", "models.m.warm_up.sizes[1] = '64': must be WIDTHx"),
        ("models: {m: {path: a, vae: {tiling: null}}}", "models.m.vae.tiling = null: must be 'auto', 'on' or 'off'"),
        ("models: {m: {path: a, gpu_memory: 0}}", "models.m.gpu_memory = 0: must be above 0, such as 9.5GiB or 'auto'"),
        ("models: {m: {path: a, pipeline: x}}", "models.m.pipeline = 'x': must be a class of diffusers"),
        ("models: {m: {path: a, cold_start_proxy: {url: x}}}", "url = 'x': must be an http or https URL without user"),
        (
            "models: {m: {path: a, cold_start_proxy: {url: 'http://x', api_key_env: 'é'}}}",
            "api_key_env = 'é': must be the name of an environment variable",
        ),
    ],
)
def test_mistakes_are_explained_in_words(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, text + "\n"))
    assert message in str(error.value)
    assert "pattern" not in str(error.value)
    assert "Input should" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "server: {host: '::'}",
        "server: {public_url: 'https://a.example/b@c/d'}",
        "workers: {listen: 'tcp://[::1]:65535'}",
        "ray: {address: 'head:6379', data_dir: '~/x', worker_python: python3}",
        "access: {hosts: [a.b, '[::1]'], cors_origins: ['*', 'app://x']}",
        "models: {m: {path: a, pipeline: SanaPipeline, variant: fp16, revision: refs/pr/1}}",
    ],
)
def test_texts_within_their_patterns_are_accepted(tmp_path: Path, text: str) -> None:
    models = "" if text.startswith("models") else "\nmodels: {m: {path: a}}"
    assert load(write(tmp_path, text + models + "\n"))
