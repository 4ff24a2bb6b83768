"""Pure: the commands of managed engines: whole as text, and what services may not say."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engines import (
    ENGINES,
    EngineError,
    Launch,
    install_hint,
    launch,
    model_form,
    problems,
    upstream_model,
)
from schemas.unit import EngineSpec, ModelSpec, unit_id
from tests.conftest import Golden

TOKEN = "canary-token"


def spec(engine: Any, context: int | None = None, **args: Any) -> EngineSpec:
    model = ModelSpec(name="tiny", source="path:/srv/tiny", context=context)
    named = {key.replace("_", "-"): value for key, value in args.items()}
    return EngineSpec(node="here", service="chat", replica=0, engine=engine, model=model, max_batch=4, args=named)


def started(wanted: EngineSpec, host: str = "127.0.0.1") -> Launch:
    return launch(wanted, program="/opt/bin/engine", host=host, port=18100, model_path="/srv/my model", token=TOKEN)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("llama-server", spec("llama-server")),
        ("llama-server-context", spec("llama-server", 8192, n_gpu_layers=99, no_webui=False, flash_attn="on")),
        ("llama-server-own-context", spec("llama-server", 8192, ctx_size=4096, parallel=1)),
        ("vllm", spec("vllm")),
        ("vllm-context", spec("vllm", 32768, max_num_seqs=64, gpu_memory_utilization=0.85, enforce_eager=True)),
        ("mlx-lm-server", spec("mlx-lm-server", max_tokens=2048)),
        ("command", spec("command", command="serve --at {host}:{port} '--model={model_path}' --as {model_name} {a b}")),
    ],
)
def test_command_of_an_engine(golden: Golden, name: str, wanted: EngineSpec) -> None:
    found = started(wanted)

    lines = [*found.argv, "", *(f"{key}={value}" for key, value in sorted(found.env.items()))]
    golden.check(f"engines/{name}.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize("engine", ["llama-server", "vllm", "command"])
def test_key_is_in_the_environment_and_on_no_command_line(engine: str) -> None:
    found = started(spec(engine, **({"command": "serve {port}"} if engine == "command" else {})))

    assert TOKEN in found.env.values()
    assert not any(TOKEN in word for word in found.argv)
    assert TOKEN not in repr(found)


@pytest.mark.parametrize("engine", ["llama-server", "vllm", "mlx-lm-server"])
def test_what_the_stack_decides_cannot_be_decided_again(engine: str) -> None:
    for option in ("host", "port", "model", "mod"):
        (problem,) = problems(spec(engine, **{option: "x"}), "127.0.0.1")
        assert problem == f"services.chat.args.{option}: {engine} gets this option from the stack; leave it out"
    for option in ("api-key", "served-model-name"):
        if option in ENGINES[engine].reserved:
            assert problems(spec(engine, **{option: "x"}), "127.0.0.1")
            assert problems(spec(engine, **{option.replace("-", "_"): "x"}), "127.0.0.1")


@pytest.mark.parametrize("option", ["hf-repo-draft", "hf_repo_draft", "hfd", "hfrd"])
def test_llama_server_fetches_no_draft_model(option: str) -> None:
    assert problems(spec("llama-server", **{option: "lab/draft"}), "127.0.0.1")


@pytest.mark.parametrize("option", ["gpt-oss-20b-default", "embd_gemma_default", "fim-qwen-7b-spec", "fim-qwen"])
def test_llama_server_fetches_no_model_of_a_preset(option: str) -> None:
    assert problems(spec("llama-server", **{option: True}), "127.0.0.1")
    assert not problems(spec("llama-server", **{"spec-default": True}), "127.0.0.1")


@pytest.mark.parametrize("key", ["--host", "-h", "a b", "", "x=y", "ünicode", "n\n"])
def test_argument_that_is_no_option_is_refused(key: str) -> None:
    wanted = EngineSpec(
        node="here", service="chat", replica=0, engine="vllm", model=spec("vllm").model, max_batch=4, args={key: 1}
    )

    with pytest.raises(EngineError, match=r"(?s)services\.chat\.args\..*long name of an option"):
        started(wanted)


def test_all_problems_are_told_at_once() -> None:
    (problem,) = problems(spec("llama-server", host="x", hf_repo="a/b"), "127.0.0.1")

    assert "args.host" in problem
    assert "args.hf-repo" in problem


@given(
    st.dictionaries(st.from_regex(r"[a-z]{2,6}(-[a-z]{2,6})?", fullmatch=True), st.text(max_size=12), max_size=4),
    st.sampled_from(["vllm", "mlx-lm-server"]),
)
def test_no_value_becomes_an_option_of_its_own(args: dict[str, str], engine: str) -> None:
    """argparse would take a word like `--host=0.0.0.0` for an option wherever it stands alone."""
    wanted = spec(engine, **args)
    if problems(wanted, "127.0.0.1"):
        return

    found = started(wanted)

    names = {key for key in wanted.args if key not in ENGINES[engine].own}
    options = [word.partition("=")[0].removeprefix("--") for word in found.argv if word.startswith("--")]
    assert options.count("host") == options.count("port") == 1
    assert names <= set(options)


def test_server_without_keys_stays_on_loopback_unless_that_is_accepted() -> None:
    (problem,) = problems(spec("mlx-lm-server"), "192.168.1.5")
    assert "asks for no key and would listen on 192.168.1.5" in problem
    assert "services.chat.args.exposed=accepted" in problem

    assert not problems(spec("mlx-lm-server", exposed="accepted"), "192.168.1.5")
    assert "--exposed=accepted" not in started(spec("mlx-lm-server", exposed="accepted"), "192.168.1.5").argv


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({}, "expected the command"),
        ({"command": "  "}, "expected the command"),
        ({"command": 3}, "expected the command"),
        ({"command": "serve 'x"}, "No closing quotation"),
        ({"command": "serve {port} {modle_path}"}, r"\{modle_path\} is none of \{port\}, \{host\}"),
        ({"command": "serve --port 8000"}, r"expected \{port\} in it"),
        ({"command": "serve {port}", "model": "x"}, r"args\.model: engine command takes `command` only"),
    ],
)
def test_command_that_cannot_be_started_is_refused(args: dict[str, Any], text: str) -> None:
    with pytest.raises(EngineError, match=text):
        started(spec("command", **args))


def test_nothing_of_a_command_is_run_by_a_shell() -> None:
    found = started(spec("command", command="serve {port} ; rm -rf / && echo $HOME `id` > x | tee '{model_path}'"))

    assert found.argv[1:] == (
        "18100", ";", "rm", "-rf", "/", "&&", "echo", "$HOME", "`id`", ">", "x", "|", "tee", "/srv/my model",
    )  # fmt: skip
    assert shlex.split(shlex.join(found.argv)) == list(found.argv)


def test_model_is_needed_in_the_form_that_the_engine_loads() -> None:
    forms = {engine: model_form(spec(engine)) for engine in ("llama-server", "vllm", "mlx-lm-server")}
    assert forms == {"llama-server": "original", "vllm": "original", "mlx-lm-server": "mlx"}
    assert model_form(spec("command", command="serve {port}")) is None
    assert model_form(spec("command", command="serve {port} {model_path}")) == "original"


def test_upstream_name_is_what_the_engine_answers_to() -> None:
    assert upstream_model(spec("llama-server")) == upstream_model(spec("vllm")) == "tiny"
    assert upstream_model(spec("mlx-lm-server")) == "default_model"


def test_missing_program_is_named_with_what_to_do() -> None:
    assert install_hint(spec("llama-server"), "mono512").startswith("llama-server is not on mono512: install llama.cpp")
    assert install_hint(spec("vllm", program="/opt/vllm"), "rtx").startswith("/opt/vllm is not on rtx: ")
    assert install_hint(spec("command", command="mine {port}"), "rtx").startswith("mine is not on rtx: ")
    with pytest.raises(EngineError, match=r"args\.program"):
        install_hint(spec("vllm", program="-x"), "rtx")


def test_arguments_are_part_of_what_a_unit_is() -> None:
    assert unit_id(spec("vllm")) != unit_id(spec("vllm", enforce_eager=True))
